"""Flash attention in tiles that fit a core's cache.

Beyond the op's own lines: keys are transposed once, sums over keys are products, arrays are reused, several heads and sequences
share a tile, and a mask is made only for a tile in which an interval ends. No score is larger than |q|·|k|·scale
(Cauchy-Schwarz); if that is small, as it mostly is, m stays 0 and no maximum is taken.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from numllama.blocks import slices
from numllama.checks import check_shape
from numllama.cpu import attention_tiles
from numllama.cpu.attention_tiles import Interval, of_each_tile
from numllama.cpu.rmsnorm import row_dot
from numllama.ops.flash_attention import FlashAttentionCache, finite, visible
from numllama.ops.intervals import check_heads, fold_groups, key_intervals

QUERY_TILE, QUERY_ROWS, KEY_TILE = 64, 128, 96  # times; rows, for the heads that share keys are folded into times; keys
TILE_ELEMENTS = 96 * 1024  # scores of one tile, over all its sequences and heads: they stay in a core's cache
CACHE_LINE = 16  # floats
SMALL_SCORE = 60.0  # exp(60) and exp(-60), and sums of millions of them, are well within the range of float32


def flash_attention_forward(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    first: np.ndarray | None = None,
    last: np.ndarray | None = None,
    scale: float | None = None,
) -> tuple[np.ndarray, FlashAttentionCache]:
    _, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    starts, ends = key_intervals(first, last, q, S)                    # (1 or B, T)
    if attention_tiles.can_run(q, k) and (result := attention_tiles.forward(q, k, v, starts, ends, scale)):
        return result
    k, v = (x.astype(q.dtype, copy=False) for x in (k, v))
    small = q.size == 0 or row_dot(q, q).max() * row_dot(k, k).max() * scale**2 < SMALL_SCORE**2
    kt = transposed(k) * scale                                         # (B, K, D, S)
    out, lse = np.empty_like(q), np.empty((B, H, T), q.dtype)
    for where, kv, pieces in tiles(q, k, starts, ends):
        qi = fold_groups(q[where], k[kv].shape[1])                     # (b, g, R·t, D)
        m = np.full((*qi.shape[:3], 1), 0 if small else -math.inf, q.dtype)
        z, o = np.zeros_like(m), np.zeros(qi.shape, q.dtype)
        for keys, mask in pieces:
            s = scores(qi, kt[kv][..., keys], mask)                    # (b, g, R·t, s)
            if not small:
                m_old, m = m, np.maximum(m, s.max(-1, keepdims=True))
                s -= finite(m)
                shrink = np.exp(m_old - finite(m))                     # 0 for the first piece
                z *= shrink
                o *= shrink
            p = np.exp(s, out=s)
            z += sums(p)                                               # over keys
            o += p @ v[kv][:, :, keys]
        seen = np.where(z == 0, 1, z)                                  # a query that sees nothing: out = 0
        np.divide(o.reshape(out[where].shape), seen.reshape(*lse[where].shape, 1), out=out[where])
        lse[where] = (finite(m) + np.log(seen)).reshape(lse[where].shape)
    return out, FlashAttentionCache(q, k, v, out, lse, starts, ends, scale)


def flash_attention_backward(dout: np.ndarray, cache: FlashAttentionCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    if attention_tiles.can_run(dout, k) and abs(lse).max() < attention_tiles.LARGEST:
        return attention_tiles.backward(dout, cache)
    q, k, v = (x.astype(dout.dtype, copy=False) for x in (q, k, v))
    kt, vt = transposed(k) * scale, transposed(v)                      # (B, K, D, S)
    delta = row_dot(dout, out)                                         # (B, H, T, 1)
    dq, dk, dv = np.empty_like(q), np.zeros(k.shape, k.dtype), np.zeros(v.shape, v.dtype)
    for where, kv, pieces in tiles(q, k, first, last):
        g = k[kv].shape[1]                                             # key heads in the tile
        qi, douti, deltai, lsei = (fold_groups(x[where], g) for x in (q, dout, delta, lse[..., None]))    # (b, g, R·t, ...)
        dqi = np.zeros(qi.shape, q.dtype)
        for keys, mask in pieces:
            s = scores(qi, kt[kv][..., keys], mask)                    # (b, g, R·t, s)
            s -= lsei
            p = np.exp(s, out=s)
            dv[kv][:, :, keys] += p.swapaxes(-1, -2) @ douti
            dp = douti @ vt[kv][..., keys]
            dp -= deltai
            dp *= p
            ds = dp                                                    # (b, g, R·t, s)
            dqi += ds @ k[kv][:, :, keys]
            dk[kv][:, :, keys] += ds.swapaxes(-1, -2) @ qi
        np.multiply(dqi.reshape(dq[where].shape), scale, out=dq[where])
    dk *= scale
    return dq, dk, dv


def transposed(x: np.ndarray) -> np.ndarray:
    """The last two axes exchanged, in memory too, which makes products of small matrices faster."""
    xt = np.empty((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    for rows in slices(0, x.shape[-2], CACHE_LINE):
        xt[..., rows] = x[..., rows, :].swapaxes(-1, -2)
    return xt


def scores(q: np.ndarray, kt: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """q kᵀ, and -inf where a key is hidden."""
    s = q @ kt
    if mask is not None:
        B, K, rows, S = s.shape
        T = mask.shape[-2]
        view = s.reshape(B, K, rows // T, T, S)  # of a new array: never a copy
        view += mask[:, None, None]
    return s


def sums(p: np.ndarray) -> np.ndarray:
    """Σ over keys, (..., S) -> (..., 1), by a product, which is faster than a sum.

    It has two columns. With one, of 5 keys in float32, OpenBLAS 0.3.31 also computes with memory that was never written; the
    sums are right, but NumPy warns of an invalid value if that memory happens to hold one.
    """
    return (p @ np.ones((p.shape[-1], 2), p.dtype))[..., :1]


def tiles(q: np.ndarray, k: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple]:
    """The tiles of queries, each with the pieces of keys that some of its queries see.

    Yields
    ------
    where : tuple of slices
        Sequences, query heads and times of a tile: an index of q.
    kv : tuple of slices
        The same sequences, and the key heads: an index of k and v.
    pieces : list of (slice, array or None)
        Slices of keys, and a mask to add to their scores: -inf if hidden, else 0, (1 or b, t, s); None if all are visible.
    """
    B, H, T, _ = q.shape
    K, S = k.shape[1:3]
    R = H // K
    step_t, step_s = min(T, QUERY_TILE, max(1, QUERY_ROWS // R)), min(S, KEY_TILE)
    pairs = max(1, TILE_ELEMENTS // (R * step_t * step_s))                           # (sequence, key head) in one tile
    step_k = min(K, pairs)
    step_b = max(1, pairs // K) if step_k == K else 1
    shared = len(first) == len(last) == 1                                            # by all sequences
    of_all = of_each_tile(visible_pieces, Interval(first), Interval(last), step_t, S, step_s, q.dtype) if shared else ()
    for i, t in enumerate(slices(0, T, step_t)):
        pieces = of_all[i] if shared else ()
        for b0 in range(0, B, step_b):
            b = slice(b0, min(b0 + step_b, B))
            if not shared:
                begin, end = (x[b, t] if len(x) > 1 else x[:, t] for x in (first, last))
                pieces = visible_pieces(begin, end, S, step_s, q.dtype)
            for k0 in range(0, K, step_k):
                heads = slice(k0, min(k0 + step_k, K))
                yield (b, slice(heads.start * R, heads.stop * R), t), (b, heads), pieces


Pieces = Sequence[tuple[slice, np.ndarray | None]]


def visible_pieces(first: np.ndarray, last: np.ndarray, S: int, step: int, dtype: np.dtype) -> Pieces:
    """The keys that some query of a tile sees, first and last (1 or b, t), in pieces of at most `step`."""
    earliest, latest, full_from, full_to = (int(x) for x in (first.min(), last.max(), first.max(), last.min()))
    pieces = []
    for s0 in range(max(0, earliest), min(S, latest), step):
        keys = slice(s0, min(s0 + step, S, latest))
        mask = None
        if full_from > keys.start or full_to < keys.stop:
            mask = np.where(visible(first, last, keys)[:, 0], 0, -math.inf).astype(dtype)             # (1 or b, t, s)
        pieces.append((keys, mask))
    return pieces
