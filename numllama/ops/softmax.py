"""Softmax:  p = exp(x − max x) / Σ exp(x − max x), over the last axis

    ∂p[i]/∂x[j] = p[i]·(δᵢⱼ − p[j])        so    dx = p ⊙ (dout − Σ dout⊙p)
The maximum cancels; it keeps exp from overflowing. A row of nothing but −∞ has no distribution: p = 0, and dx = 0.
"""

import math
from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class SoftmaxCache(NamedTuple):
    """What backward needs: the probabilities, (..., n)."""

    p: Array


@accelerated
def softmax_forward(x: Array) -> tuple[Array, SoftmaxCache]:
    """Turn each row into probabilities.

    Parameters
    ----------
    x : array, shape (..., n)
        −∞ where the probability is to be 0.

    Returns
    -------
    p : array, shape (..., n)
    cache : SoftmaxCache
    """
    xp = xp_of(x)
    top = x.max(-1, keepdims=True)                                     # (..., 1)
    e = xp.exp(x - xp.where(top == -math.inf, 0, top))                 # (..., n)
    total = e.sum(-1, keepdims=True)                                   # (..., 1)
    p = e / xp.where(total == 0, 1, total)                             # (..., n)
    return p, SoftmaxCache(p)


@accelerated
def softmax_backward(dout: Array, cache: SoftmaxCache) -> Array:
    """Gradient of :func:`softmax_forward` with respect to ``x`` (..., n)."""
    (p,) = cache
    check_shape("dout", dout, p.shape)
    return p * (dout - (dout * p).sum(-1, keepdims=True))
