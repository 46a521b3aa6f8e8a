"""Softmax:  p = exp(x − max x) / Σ exp(x − max x), over the last axis

    ∂p[i]/∂x[j] = p[i]·(δᵢⱼ − p[j])        so    dx = p ⊙ (dout − Σ dout⊙p)
The maximum cancels; it keeps exp from overflowing. A row of nothing but −∞ has no distribution: p = 0, and dx = 0.
"""

import math

from numllama.backend import Array, row_dot, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


@accelerated
def softmax_forward(x: Array) -> tuple[Array, tuple]:
    """Turn each row into probabilities.

    Parameters
    ----------
    x : array, shape (..., n)
        −∞ where the probability is to be 0.

    Returns
    -------
    p : array, shape (..., n)
    cache : tuple
        ``(p,)``
    """
    xp = xp_of(x)
    top = x.max(-1, keepdims=True)                                     # (..., 1)
    p = x - xp.where(top == -math.inf, 0, top)                         # (..., n)
    xp.exp(p, out=p)
    total = p.sum(-1, keepdims=True)                                   # (..., 1)
    p /= xp.where(total == 0, 1, total)
    return p, (p,)


@accelerated
def softmax_backward(dout: Array, cache: tuple) -> Array:
    """Gradient of :func:`softmax_forward` with respect to ``x`` (..., n)."""
    (p,) = cache
    check_shape("dout", dout, p.shape)
    return p * (dout - row_dot(dout, p))
