"""The keys that each query sees, and the query heads that share a key head: what both forms of attention are given.

Query t sees the keys first[t] <= s < last[t]. By default first = 0 and last = S − T + t + 1: causal, with the queries at the
end of the keys, as a cache needs. Left padding, sliding windows and packed documents are intervals too.
"""

import numpy as np

from numllama.backend import Array, xp_of
from numllama.checks import check_shape


def visible_keys(first: Array | None, last: Array | None, q: Array, S: int) -> Array:
    """Which keys each query may see: boolean, shape (1 or B, T, S)."""
    starts, ends = key_intervals(first, last, q, S)                    # (1 or B, T)
    s = xp_of(q).arange(S)
    return (starts[..., None] <= s) & (s < ends[..., None])


def key_intervals(first: Array | None, last: Array | None, q: Array, S: int) -> tuple[Array, Array]:
    """The interval of keys that each query sees: two integer arrays of shape (1 or B, T)."""
    xp = xp_of(q)
    B, _, T, _ = q.shape
    starts = xp.zeros(T, dtype=int) if first is None else xp.asarray(first)
    ends = xp.arange(S - T + 1, S + 1) if last is None else xp.asarray(last)
    for name, bound in (("first", starts), ("last", ends)):
        check_shape(name, bound, (T,) if bound.ndim == 1 else (B, T))
    return starts.reshape(-1, T), ends.reshape(-1, T)


def fold_groups(x: Array, K: int) -> Array:
    """Fold the R query heads of each key head into the time axis: (B, H, T, D) -> (B, K, R·T, D)."""
    B, H, T, D = x.shape
    return x.reshape(B, K, H // K * T, D)


def check_heads(q: Array, k: Array, v: Array) -> tuple[int, int]:
    """Raise ValueError unless the shapes of q, k and v belong together; else K and S."""
    check_shape("q", q, (None, None, None, None))
    B, H, T, D = q.shape
    check_shape("k", k, (B, None, None, D))
    check_shape("v", v, k.shape)
    K, S = k.shape[1:3]
    if K == 0 or H % K:
        raise ValueError(f"q has {H} heads and k has {K}, but the first must be a multiple of the second")
    if 0 in (T, S):
        raise ValueError(f"q has {T} places and k has {S}, but neither may be empty")
    return K, S


def segment_starts(segments: np.ndarray) -> np.ndarray:
    """Where each token's document starts: the last place up to t at which `segments` changed; (B, T) -> (B, T)."""
    changed = np.ones(segments.shape, dtype=bool)
    changed[:, 1:] = segments[:, 1:] != segments[:, :-1]
    starts = np.where(changed, np.arange(segments.shape[1]), 0)
    return np.maximum.accumulate(starts, axis=1)
