"""Flash attention by oneDNN: for each pair of tiles two products forward, five backward, and no pass over the scores.

If no sum of exponentials leaves the range of float32 (they are looked at), no maximum has to be taken first: the exponential is
part of the product. The division by z moves from scores (t, s) to rows (t, D):
    p = exp(q kᵀ · scale)        o += p v         z += Σ over keys of p                   at the end out = o / z, lse = log z
    g = dout / z                 dv += pᵀ g       δ = Σ over D of g ⊙ out
    ds = p ⊙ (g vᵀ − δ)          dq += ds k · scale                    dk += dsᵀ q · scale
The sum over keys, and −δ, are columns of these products: v is followed by a column of ones, and g by −δ. In bfloat16 −δ needs two
columns, what it is rounded to and the rest. Keys that a query does not see are zeros in p, written as bits.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16
from numllama.blocks import slices
from numllama.cpu import onednn
from numllama.cpu.rmsnorm import row_dot
from numllama.cpu.rounding import rounded
from numllama.ops.flash_attention import FlashAttentionCache, visible
from numllama.ops.intervals import fold_groups

QUERIES, KEYS = 128, 128  # the longest sides of a tile
TILE_BYTES = 2**19  # of p, over all sequences and heads of a tile: a quarter of a second-level cache
COLUMNS = {np.dtype(np.float32): 16, BFLOAT16: 32}  # that follow v's: few, but oneDNN's kernels want whole steps of K
BITS = {2: np.uint16, 4: np.uint32}
LARGEST = 46.0  # |lse|: sums of exponentials between 1e-20 and 1e20 leave room for gradients on both sides
FASTER = {BFLOAT16}  # dtypes of keys for which this takes less time than NumPy's tiles; with several threads, any dtype
FEWEST = 2**17  # multiplications of a product; NumPy needs less time for fewer


class KeyTile(NamedTuple):
    """A tile of keys of which some query of a tile sees some: which, and the bits of those seen, (1 or b, t, s); None for all."""

    index: int
    bits: np.ndarray | None


def can_run(q: np.ndarray, k: np.ndarray) -> bool:
    """Whether oneDNN can compute it, and sooner than NumPy."""
    lib = onednn.library()
    if lib is None or q.dtype != np.float32 or k.dtype not in onednn.DTYPES or (k.dtype == BFLOAT16 and not lib.has_bfloat16):
        return False
    if k.dtype not in FASTER and onednn.threads(lib) == 1:
        return False
    return q.size * k.shape[2] > FEWEST


def forward(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, first: np.ndarray, last: np.ndarray, scale: float
) -> tuple[np.ndarray, FlashAttentionCache] | None:
    """The output and cache of `flash_attention_forward`; None if a sum of exponentials is too large or too small."""
    D, S = q.shape[-1], k.shape[2]
    out, lse, q = np.empty_like(q), np.empty(q.shape[:-1], q.dtype), rounded(q, k.dtype)
    for pairs, tiles in groups(q, k, first, last):
        keys = [dense(k[pairs][:, :, s]) for s in slices(0, S, KEYS)]                    # (n, s, D)
        values = [with_ones(dense(v[pairs][:, :, s])) for s in slices(0, S, KEYS)]       # (n, s, D + columns)
        for where, key_tiles in tiles:
            qi = dense(fold_groups(q[where], k[pairs].shape[1]))                         # (n, R·t, D)
            o = np.zeros((*qi.shape[:2], values[0].shape[-1]), np.float32)               # (n, R·t, D + columns)
            for j, bits in key_tiles:
                p = exponentials(qi, keys[j], scale, bits, where)                        # (n, R·t, s)
                onednn.matmul(p, values[j], o, add=True)
            z = o[..., D : D + 1]
            z = np.where(z == 0, 1, z)                                                   # nothing is seen: out = 0
            log_z = np.log(z)                                                            # (n, R·t, 1)
            if not abs(log_z).max() < LARGEST:                                           # or not a number
                return None
            out[where] = (o[..., :D] / z).reshape(out[where].shape)
            lse[where] = log_z.reshape(lse[where].shape)
    out = rounded(out.swapaxes(1, 2), k.dtype).swapaxes(1, 2)                            # rows of heads, as wo reads them
    return out, FlashAttentionCache(q, k, v, out, lse, first, last, scale)


def backward(dout: np.ndarray, cache: FlashAttentionCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``dq``, ``dk`` and ``dv`` of `flash_attention_backward`, in float32, for a cache of :func:`forward`."""
    q, k, v, out, lse, first, last, scale = cache
    S = k.shape[2]
    g = dout * np.exp(-lse)[..., None]                                                   # (B, H, T, D)
    delta = -row_dot(g, rounded(out, g.dtype))                                           # (B, H, T, 1)
    dq, dk, dv = np.zeros(q.shape, np.float32), np.empty(k.shape, np.float32), np.empty(v.shape, np.float32)
    for pairs, tiles in groups(q, k, first, last):
        parts = list(slices(0, S, KEYS))
        keys = [dense(k[pairs][:, :, s]) for s in parts]                                 # (n, s, D)
        values = [with_ones(dense(v[pairs][:, :, s])) for s in parts]                    # (n, s, D + columns)
        dkeys, dvalues = ([np.zeros(key.shape, np.float32) for key in keys] for _ in "kv")
        for where, key_tiles in tiles:
            K = k[pairs].shape[1]
            qi = dense(fold_groups(q[where], K))                                         # (n, R·t, D)
            gi = rounded(dense(fold_groups(g[where], K)), k.dtype)                       # (n, R·t, D)
            shifted = with_shift(gi, dense(fold_groups(delta[where], K)))                # (n, R·t, D + columns)
            dqi = np.zeros(qi.shape, np.float32)
            for j, bits in key_tiles:
                p = exponentials(qi, keys[j], scale, bits, where)                        # (n, R·t, s)
                onednn.matmul(p.swapaxes(1, 2), gi, dvalues[j], add=True)
                ds = onednn.matmul(shifted, values[j].swapaxes(1, 2), np.empty_like(p), times=p)
                onednn.matmul(ds, keys[j], dqi, add=True)
                onednn.matmul(ds.swapaxes(1, 2), qi, dkeys[j], add=True)
            np.multiply(dqi.reshape(dq[where].shape), scale, out=dq[where])
        for s, dkey, dvalue in zip(parts, dkeys, dvalues, strict=True):
            np.multiply(dkey.reshape(dk[pairs][:, :, s].shape), scale, out=dk[pairs][:, :, s])
            dv[pairs][:, :, s] = dvalue.reshape(dv[pairs][:, :, s].shape)
    return dq, dk, dv


def exponentials(q: np.ndarray, keys: np.ndarray, scale: float, bits: np.ndarray | None, where: tuple) -> np.ndarray:
    """exp(q keysᵀ · scale), zero for keys that are not seen; (n, R·t, s)."""
    p = onednn.matmul(q, keys.swapaxes(1, 2), np.empty((*q.shape[:2], keys.shape[1]), q.dtype), exp=scale)
    if bits is not None:
        t, s = bits.shape[-2:]
        B = where[0].stop - where[0].start
        by_head = p.view(bits.dtype).reshape(B, -1, t, s)  # a view, of sequences, and the rows of all their heads
        by_head &= bits[:, None]
    return p


def groups(q: np.ndarray, k: np.ndarray, first: np.ndarray, last: np.ndarray) -> Iterator[tuple[tuple, list]]:
    """Sequences and key heads whose tiles are computed together.

    Yields
    ------
    pairs : tuple of slices
        Sequences and key heads: an index of k and v.
    tiles : list of (tuple of slices, list of KeyTile)
        For each tile of queries, the index of q, and the keys that its queries see.
    """
    B, H, T, _ = q.shape
    K, S = k.shape[1:3]
    R = H // K
    scores = TILE_BYTES // (min(S, KEYS) * k.dtype.itemsize * R)                         # rows of scores for each head of R
    step = max(1, min(T, QUERIES, scores))
    most = max(1, scores // step)                                                        # pairs in one group
    heads, sequences = min(K, most), max(1, most // K)
    for b in slices(0, B, sequences):
        begin, end = (Interval(x[b] if len(x) > 1 else x) for x in (first, last))
        seen = of_each_tile(seen_tiles, begin, end, step, S, k.dtype)
        for h in slices(0, K, heads):
            of_heads = slice(h.start * R, h.stop * R)
            yield (b, h), [((b, of_heads, t), key_tiles) for t, key_tiles in zip(slices(0, T, step), seen, strict=True)]


def seen_tiles(first: np.ndarray, last: np.ndarray, S: int, dtype: np.dtype) -> list[KeyTile]:
    """The tiles of keys that some query sees; first and last (1 or b, t)."""
    earliest, latest, all_from, all_to = (int(x) for x in (first.min(), last.max(), first.max(), last.min()))
    unsigned = BITS[dtype.itemsize]
    found = []
    for j, s in enumerate(slices(0, S, KEYS)):
        if s.start < latest and earliest < s.stop:
            is_cut = all_from > s.start or all_to < s.stop
            bits = np.where(visible(first, last, s)[:, 0], ~unsigned(0), unsigned(0)) if is_cut else None    # (1 or b, t, s)
            found.append(KeyTile(j, bits))
    return found


class Interval:
    """Ends of intervals, (1 or b, t), that are equal if their numbers are."""

    def __init__(self, ends: np.ndarray) -> None:
        self.ends, self.key = ends, (ends.shape, ends.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interval) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(16)  # the same in every layer, and mostly in every step
def of_each_tile(seen: Callable[..., Any], first: Interval, last: Interval, step: int, *how: Any) -> list:
    """The keys that each tile of `step` queries sees: what ``seen(first, last, *how)`` finds for it."""
    return [seen(first.ends[:, t], last.ends[:, t], *how) for t in slices(0, first.ends.shape[1], step)]


def dense(x: np.ndarray) -> np.ndarray:
    """(b, g, rows, width) -> (b·g, rows, width) in one piece of memory, as oneDNN's fast kernels need it."""
    as_bits = x.view(np.uint16) if x.dtype == BFLOAT16 else x  # copied in fewer steps
    return np.ascontiguousarray(as_bits).view(x.dtype).reshape(-1, *x.shape[2:])


def with_ones(v: np.ndarray) -> np.ndarray:
    """v (..., D), then two columns of ones, then zeros."""
    out = _wider(v)
    out[..., v.shape[-1] : v.shape[-1] + 2] = 1
    return out


def with_shift(g: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """g (..., D), then two columns whose sum is `shift` (..., 1), then zeros."""
    out, D = _wider(g), g.shape[-1]
    most = shift.astype(g.dtype)
    out[..., D : D + 1] = most
    out[..., D + 1 : D + 2] = shift - most.astype(np.float32)
    return out


def _wider(x: np.ndarray) -> np.ndarray:
    """x, then columns of zeros."""
    out = np.zeros((*x.shape[:-1], x.shape[-1] + COLUMNS[x.dtype]), x.dtype)
    bits = BITS[x.dtype.itemsize]
    out.view(bits)[..., : x.shape[-1]] = x.view(bits)
    return out
