"""Attention, densely:  out = softmax(q kᵀ · scale) v        Vaswani et al. 2017, eq. 1; in groups: Ainslie et al. 2023

    s = q kᵀ · scale        p = softmax(s) over the keys that a query may see        out = p v
Backward, read upwards, with ⊙ elementwise:
    dv = pᵀ dout            dp = dout vᵀ
    softmax:  ∂p[i]/∂s[j] = p[i]·(δᵢⱼ − p[j])    so    ds = p ⊙ (dp − Σ over keys of dp⊙p)
    dq = ds k · scale       dk = dsᵀ q · scale
Scores may be capped before the softmax (Gemma 2): see `softcap`.

Which keys a query sees is an interval, first[t] <= s < last[t]: see `intervals`.

Grouped queries: the R = H/K query heads of one key head are folded into the time axis, (B, H, T, D) -> (B, K, R·T, D).
Then `dsᵀ q` sums over the group by itself: no key is repeated, and nothing has to be un-repeated.
"""

import math
from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.intervals import check_heads, fold_groups, visible_keys
from numllama.ops.softcap import SoftcapCache, softcap_backward, softcap_forward
from numllama.ops.softmax import SoftmaxCache, softmax_backward, softmax_forward


class AttentionCache(NamedTuple):
    """What backward needs."""

    q: Array                                                           # (B, H, T, D)
    k: Array                                                           # (B, K, S, D)
    v: Array                                                           # (B, K, S, D)
    p: Array                                                           # (B, H, T, S)
    scale: float
    capped: SoftcapCache | None = None


@accelerated
def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    first: Array | None = None,
    last: Array | None = None,
    mask: Array | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Array, AttentionCache]:
    """Mix values by how well their keys match each query.

    Parameters
    ----------
    q : array, shape (B, H, T, D)
    k, v : array, shape (B, K, S, D)
        H is a multiple of K; query head h uses key head ``h // (H/K)``.
    first, last : integer array, shape (T,) or (B, T), optional
        Query t sees the keys ``first <= s < last``; default causal.
    mask : boolean array that broadcasts to (B, H, T, S), optional
        True where a query may attend, in addition to the interval.
    scale : float, optional
        Factor of the scores; default ``1/sqrt(D)``.
    softcap : float, optional
        The cap of the scores, as in :func:`numllama.ops.softcap_forward`; default none.

    Returns
    -------
    out : array, shape (B, H, T, D)
        Zero for a query that sees no key.
    cache : AttentionCache
    """
    K, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    xp = xp_of(q)
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    visible = visible_keys(first, last, q, S)[:, None]                 # (1 or B, 1, T, S)
    if mask is not None:
        if mask.dtype != bool:
            raise TypeError(f"mask is {mask.dtype}, but must be boolean: True where a query may attend")
        visible = xp.broadcast_to(visible & mask, (B, H, T, S))

    scores = fold_groups(q, K) @ k.swapaxes(-1, -2) * scale            # (B, K, R·T, S)
    scores, capped = (scores, None) if softcap is None else softcap_forward(scores, softcap)
    scores = xp.where(visible, scores.reshape(B, H, T, S), -math.inf)  # no finite number
    p, _ = softmax_forward(scores)                                     # (B, H, T, S)
    out = fold_groups(p, K) @ v                                        # (B, K, R·T, D)
    return out.reshape(B, H, T, D), AttentionCache(q, k, v, p, scale, capped)


@accelerated
def attention_backward(dout: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Gradients of :func:`attention_forward`: ``dq`` (B, H, T, D), ``dk`` and ``dv`` (B, K, S, D)."""
    q, k, v, p, scale, capped = cache
    check_shape("dout", dout, q.shape)
    K = k.shape[1]
    dout, p = fold_groups(dout, K), fold_groups(p, K)                  # (B, K, R·T, ...)
    dv = p.swapaxes(-1, -2) @ dout                                     # (B, K, S, D)
    dp = dout @ v.swapaxes(-1, -2)                                     # (B, K, R·T, S)
    ds = softmax_backward(dp, SoftmaxCache(p))                         # (B, K, R·T, S)
    ds = (ds if capped is None else softcap_backward(ds, capped)) * scale
    dq = (ds @ k).reshape(q.shape)                                     # (B, H, T, D)
    dk = ds.swapaxes(-1, -2) @ fold_groups(q, K)                       # (B, K, S, D)
    return dq, dk, dv
