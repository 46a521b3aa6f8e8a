"""Flash attention: attention in tiles; no (T, S) array is ever made.     Dao et al. 2022, alg. 1, 4; Milakov & Gimelshein 2018

Forward takes the keys of a tile of queries piece by piece and keeps three things for each query: the largest score so far
(m), the sum of exp(s − m) so far (z), and the sum of exp(s − m)·v so far (o). When m rises to m', both sums are rescaled:
    z ← z·exp(m − m') + Σ exp(s − m')        o ← o·exp(m − m') + exp(s − m') v        at the end out = o / z
m keeps exp from overflowing, and cancels. No score is larger than |q|·|k|·scale (Cauchy-Schwarz): where that is small, as it
mostly is, m stays 0 and no maximum is looked for. Only lse = m + log z is kept for backward, from which each tile of p can be
made again:
    p  = exp(s − lse)                        dv += pᵀ dout             dp = dout vᵀ
    ds = p ⊙ (dp − δ)                        dq += ds k · scale        dk += dsᵀ q · scale
where δ = Σ over keys of dp⊙p = Σ over D of dout⊙out, since Σₛ p[s]·(dout·v[s]) = dout·out: a sum over keys turned into a
sum over D, known before any tile is.

Intervals and grouped queries are those of `attention`. Tiles that no query of a tile sees are skipped; a mask is made only
where an interval ends inside a tile.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from numllama.backend import Array, row_dot, xp_of
from numllama.blocks import slices
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.attention import check_heads, key_intervals

QUERY_TILE, QUERY_ROWS, KEY_TILE = 64, 128, 96  # times; rows, for the heads that share keys are folded into times; keys
TILE_ELEMENTS = 96 * 1024  # scores of one tile, over all its sequences and heads: they stay in a core's cache
CACHE_LINE = 16  # floats
SMALL_SCORE = 60.0  # exp(60) and exp(-60), and sums of millions of them, are well within the range of float32


@accelerated
def flash_attention_forward(
    q: Array, k: Array, v: Array, first: Array | None = None, last: Array | None = None, scale: float | None = None
) -> tuple[Array, tuple]:
    """Attention, as :func:`numllama.ops.attention_forward` defines it, in memory that grows with T and not with T·S.

    Parameters
    ----------
    q : array, shape (B, H, T, D)
    k, v : array, shape (B, K, S, D)
    first, last : integer array, shape (T,) or (B, T), optional
        Query t sees the keys ``first <= s < last``; default causal.
    scale : float, optional
        Of the scores; default ``1/sqrt(D)``.

    Returns
    -------
    out : array, shape (B, H, T, D)
    cache : tuple
        ``(q, k, v, out, lse, first, last, scale)``, lse of shape (B, H, T).
    """
    _, S = check_heads(q, k, v)
    xp = xp_of(q)
    B, H, T, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    first, last = key_intervals(first, last, q, S)                     # (1 or B, T)
    small = q.size == 0 or row_dot(q, q).max() * row_dot(k, k).max() * scale**2 < SMALL_SCORE**2
    kt = transposed(k) * scale                                         # (B, K, D, S)
    out, lse = xp.empty_like(q), xp.empty((B, H, T), q.dtype)
    for where, kv, pieces in tiles(q, k, first, last):
        qi = fold(q[where], kv, k)                                     # (b, g, R·t, D)
        m = xp.full((*qi.shape[:3], 1), 0 if small else -math.inf, q.dtype)
        z, o = xp.zeros_like(m), xp.zeros(qi.shape, q.dtype)
        for keys, mask in pieces:
            s = scores(qi, kt[kv][..., keys], mask)                    # (b, g, R·t, s)
            if not small:
                m_old, m = m, xp.maximum(m, s.max(-1, keepdims=True))
                s -= finite(m)
                shrink = xp.exp(m_old - finite(m))                     # 0 for the first piece
                z *= shrink
                o *= shrink
            p = xp.exp(s, out=s)
            z += sums(p)                                               # over keys
            o += p @ v[kv][:, :, keys]
        seen = xp.where(z == 0, 1, z)                                  # a query that sees nothing: out = 0
        xp.divide(o.reshape(out[where].shape), seen.reshape(*lse[where].shape, 1), out=out[where])
        lse[where] = (finite(m) + xp.log(seen)).reshape(lse[where].shape)
    return out, (q, k, v, out, lse, first, last, scale)


@accelerated
def flash_attention_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """Gradients of :func:`flash_attention_forward`: ``dq`` (B, H, T, D), ``dk`` and ``dv`` (B, K, S, D)."""
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    xp = xp_of(q)
    kt, vt = transposed(k) * scale, transposed(v)                      # (B, K, D, S)
    delta = row_dot(dout, out)                                         # (B, H, T, 1)
    dq, dk, dv = xp.empty_like(q), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    for where, kv, pieces in tiles(q, k, first, last):
        qi, douti = fold(q[where], kv, k), fold(dout[where], kv, k)    # (b, g, R·t, D)
        deltai, lsei = fold(delta[where], kv, k), fold(lse[where][..., None], kv, k)                # (b, g, R·t, 1)
        dqi = xp.zeros(qi.shape, q.dtype)
        for keys, mask in pieces:
            s = scores(qi, kt[kv][..., keys], mask)                    # (b, g, R·t, s)
            s -= lsei
            p = xp.exp(s, out=s)
            dv[kv][:, :, keys] += p.swapaxes(-1, -2) @ douti
            dp = douti @ vt[kv][..., keys]
            dp -= deltai
            dp *= p
            ds = dp                                                    # (b, g, R·t, s)
            dqi += ds @ k[kv][:, :, keys]
            dk[kv][:, :, keys] += ds.swapaxes(-1, -2) @ qi
        xp.multiply(dqi.reshape(dq[where].shape), scale, out=dq[where])
    dk *= scale
    return dq, dk, dv


def transposed(x: Array) -> Array:
    """The last two axes exchanged, in memory too: products of small matrices are faster so."""
    xt = xp_of(x).empty((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    for rows in slices(0, x.shape[-2], CACHE_LINE if isinstance(x, np.ndarray) else x.shape[-2]):
        xt[..., rows] = x[..., rows, :].swapaxes(-1, -2)
    return xt


def scores(q: Array, kt: Array, mask: Array | None) -> Array:
    """q kᵀ, and -inf where a query must not look."""
    s = q @ kt
    if mask is not None:
        B, K, rows, S = s.shape
        T = mask.shape[-2]
        view = s.reshape(B, K, rows // T, T, S)  # of a new array: never a copy
        view += mask[:, None, None]
    return s


def sums(p: Array) -> Array:
    """Σ over keys, (..., S) -> (..., 1), by a product, which is faster than a sum.

    It has two columns. With one, of 5 keys in float32, OpenBLAS 0.3.31 also computes with memory that was never written; the
    sums are right, but NumPy warns of an invalid value if that memory happens to hold one.
    """
    return (p @ xp_of(p).ones((p.shape[-1], 2), p.dtype))[..., :1]


def finite(m: Array) -> Array:
    """The maximum of scores, 0 where there were none."""
    return xp_of(m).where(xp_of(m).isinf(m), 0, m)


def fold(x: Array, kv: tuple, k: Array) -> Array:
    """Query heads of one key head behind each other in time: (b, g·R, t, n) -> (b, g, R·t, n)."""
    b, heads, t, n = x.shape
    g = len(range(k.shape[1])[kv[1]])
    return x.reshape(b, g, heads // g * t, n)


def tiles(q: Array, k: Array, first: Array, last: Array) -> Iterator[tuple]:
    """The tiles of queries, and for each the pieces of keys that some of its queries see.

    Yields
    ------
    where : tuple of slices
        Sequences, query heads and times of a tile: an index of q.
    kv : tuple of slices
        The same sequences, and the key heads: an index of k and v.
    pieces : list of (slice, array or None)
        Slices of keys, and what to add to their scores: -inf where they are hidden, else 0, (1 or b, t, s); None if nowhere.
    """
    B, H, T, _ = q.shape
    K, S = k.shape[1:3]
    R = H // K
    on_cpu = isinstance(q, np.ndarray)
    step_t, step_s = (min(T, QUERY_TILE, max(1, QUERY_ROWS // R)), min(S, KEY_TILE)) if on_cpu else (T, S)
    pairs = max(1, TILE_ELEMENTS // (R * step_t * step_s)) if on_cpu else B * K      # (sequence, key head) in one tile
    step_k = min(K, pairs)
    step_b = max(1, pairs // K) if step_k == K else 1
    shared = len(first) == len(last) == 1                                            # by all sequences
    for t0 in range(0, T, step_t):
        t = slice(t0, min(t0 + step_t, T))
        pieces = visible_pieces(first[:, t], last[:, t], S, step_s, q.dtype) if shared else None
        for b0 in range(0, B, step_b):
            b = slice(b0, min(b0 + step_b, B))
            if not shared:
                pieces = visible_pieces(*(x[b, t] if len(x) > 1 else x[:, t] for x in (first, last)), S, step_s, q.dtype)
            for k0 in range(0, K, step_k):
                heads = slice(k0, min(k0 + step_k, K))
                yield (b, slice(heads.start * R, heads.stop * R), t), (b, heads), pieces


def visible_pieces(first: Array, last: Array, S: int, step: int, dtype: Any) -> list[tuple[slice, Array | None]]:
    """The keys that some query of a tile sees, first and last (1 or b, t), in pieces of at most `step`."""
    xp = xp_of(first)
    earliest, latest, full_from, full_to = (int(x) for x in (first.min(), last.max(), first.max(), last.min()))
    pieces = []
    for s0 in range(max(0, earliest), min(S, latest), step):
        keys = slice(s0, min(s0 + step, S, latest))
        mask = None
        if full_from > keys.start or full_to < keys.stop:
            s = xp.arange(keys.start, keys.stop)
            seen = (first[..., None] <= s) & (s < last[..., None])     # (1 or b, t, s)
            mask = xp.where(seen, 0, -math.inf).astype(dtype)
        pieces.append((keys, mask))
    return pieces
