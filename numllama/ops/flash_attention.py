"""Flash attention: attention in tiles; no (T, S) array is ever made.     Dao et al. 2022, alg. 1, 4; Milakov & Gimelshein 2018

Forward takes the keys of a tile of queries tile by tile and keeps three things for each query: the largest score a so far
(m), the sum of exp(a − m) so far (z), and the sum of exp(a − m)·v so far (o). When m rises to m', both sums are rescaled:
    z ← z·exp(m − m') + Σ exp(a − m')        o ← o·exp(m − m') + exp(a − m') v        at the end out = o / z
m keeps exp from overflowing, and cancels. Only lse = m + log z is kept for backward, which recomputes each tile of p:
    p  = exp(a − lse)                        dv += pᵀ dout             dp = dout vᵀ
    ds = p ⊙ (dp − δ)                        dq += ds k · scale        dk += dsᵀ q · scale
where δ = Σ over keys of dp⊙p = Σ over D of dout⊙out, since Σₛ p[s]·(dout·v[s]) = dout·out: known before the first tile.

Intervals and grouped queries are those of `attention`. A tile of keys that no query of the tile sees is skipped.
"""

import math
from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.blocks import tiles
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.intervals import check_heads, fold_groups, key_intervals


class FlashAttentionCache(NamedTuple):
    """What backward needs."""

    q: Array                                                           # (B, H, T, D)
    k: Array                                                           # (B, K, S, D)
    v: Array                                                           # (B, K, S, D)
    out: Array                                                         # (B, H, T, D)
    lse: Array                                                         # (B, H, T)
    first: Array                                                       # (1 or B, T)
    last: Array                                                        # (1 or B, T)
    scale: float


@accelerated
def flash_attention_forward(
    q: Array, k: Array, v: Array, first: Array | None = None, last: Array | None = None, scale: float | None = None
) -> tuple[Array, FlashAttentionCache]:
    """:func:`numllama.ops.attention_forward`, with its parameters but `mask`, in memory that grows with T and not with T·S."""
    K, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    xp = xp_of(q)
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    starts, ends = key_intervals(first, last, q, S)                    # (1 or B, T)
    out, lse = xp.empty_like(q), xp.empty((B, H, T), q.dtype)
    for t in tiles(T):
        qt = fold_groups(q[:, :, t], K)                                # (B, K, R·t, D)
        m = xp.full((*qt.shape[:-1], 1), -math.inf, q.dtype)           # (B, K, R·t, 1)
        z, o = xp.zeros_like(m), xp.zeros_like(qt)
        for s in tiles(S):
            seen = visible(starts[:, t], ends[:, t], s)                # (1 or B, 1, t, s)
            if not seen.any():
                continue
            scores = masked(qt @ k[:, :, s].swapaxes(-1, -2) * scale, seen)
            top = xp.maximum(m, scores.max(-1, keepdims=True))
            p, shrink = xp.exp(scores - finite(top)), xp.exp(m - finite(top))
            z = z * shrink + p.sum(-1, keepdims=True)
            o = o * shrink + p @ v[:, :, s]
            m = top
        z = xp.where(z == 0, 1, z)                                     # no key: out = 0
        out[:, :, t] = (o / z).reshape(out[:, :, t].shape)
        lse[:, :, t] = (finite(m) + xp.log(z)).reshape(lse[:, :, t].shape)
    return out, FlashAttentionCache(q, k, v, out, lse, starts, ends, scale)


@accelerated
def flash_attention_backward(dout: Array, cache: FlashAttentionCache) -> tuple[Array, Array, Array]:
    """Gradients of :func:`flash_attention_forward`: ``dq`` (B, H, T, D), ``dk`` and ``dv`` (B, K, S, D)."""
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    xp, K = xp_of(q), k.shape[1]
    delta = (dout * out).sum(-1, keepdims=True)                        # (B, H, T, 1)
    dq, dk, dv = (xp.zeros(x.shape, dout.dtype) for x in (q, k, v))
    for t in tiles(q.shape[2]):
        rows = (fold_groups(x[:, :, t], K) for x in (q, dout, delta, lse[..., None]))
        qt, doutt, deltat, lset = rows                                 # (B, K, R·t, ...)
        for s in tiles(k.shape[2]):
            seen = visible(first[:, t], last[:, t], s)                 # (1 or B, 1, t, s)
            if not seen.any():
                continue
            ks, vs = k[:, :, s], v[:, :, s]                            # (B, K, s, D)
            scores = masked(qt @ ks.swapaxes(-1, -2) * scale, seen)    # (B, K, R·t, s)
            p = xp.exp(scores - lset)
            dv[:, :, s] += p.swapaxes(-1, -2) @ doutt
            dp = doutt @ vs.swapaxes(-1, -2)                           # (B, K, R·t, s)
            ds = p * (dp - deltat)                                     # (B, K, R·t, s)
            dq[:, :, t] += (ds @ ks * scale).reshape(dq[:, :, t].shape)
            dk[:, :, s] += ds.swapaxes(-1, -2) @ qt * scale
    return dq, dk, dv


def visible(first: Array, last: Array, s: slice) -> Array:
    """Whether a query with interval first, last (1 or B, t) sees a key of the tile s: boolean, (1 or B, 1, t, s)."""
    keys = xp_of(first).arange(s.start, s.stop)
    return ((first[..., None] <= keys) & (keys < last[..., None]))[:, None]


def masked(scores: Array, seen: Array) -> Array:
    """Folded scores (B, K, R·t, s), −∞ where a query does not see the key: a finite "minus infinity" would leak."""
    (B, K, rows, s), t = scores.shape, seen.shape[-2]
    by_head = scores.reshape(B, K, rows // t, t, s)
    return xp_of(scores).where(seen[:, None], by_head, -math.inf).reshape(scores.shape)


def finite(m: Array) -> Array:
    """The maximum of scores, 0 where there were none."""
    return xp_of(m).where(m == -math.inf, 0, m)
