"""Softcap:  out = cap · tanh(x / cap)                                                   Rivière et al. 2024, section 2

Small values stay as they are, and no value gets beyond ±cap. With t = tanh(x / cap) and tanh' = 1 − tanh²:
    dx = dout · (1 − t²)
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class SoftcapCache(NamedTuple):
    """What backward needs: the input, (..., n), and the cap."""

    x: Array
    cap: float


@accelerated(by_rows=True)
def softcap_forward(x: Array, cap: float) -> tuple[Array, SoftcapCache]:
    """Keep each value within ±cap, smoothly.

    Parameters
    ----------
    x : array, shape (..., n)
        Attention scores, or logits.
    cap : float
        Positive.

    Returns
    -------
    out : array, shape (..., n)
    cache : SoftcapCache
    """
    return cap * xp_of(x).tanh(x / cap), SoftcapCache(x, cap)


@accelerated(by_rows=True)
def softcap_backward(dout: Array, cache: SoftcapCache) -> Array:
    """Gradient of :func:`softcap_forward` with respect to ``x`` (..., n)."""
    x, cap = cache
    check_shape("dout", dout, x.shape)
    t = xp_of(x).tanh(x / cap)                                         # (..., n)
    return dout * (1 - t * t)
