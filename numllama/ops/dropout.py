"""Dropout:  out = x · m / (1 − p),   m = 0 with probability p, else 1                  Srivastava et al. 2014, inverted

    dx = dout · m / (1 − p)
The mask is not drawn and kept, but computed: element i is dropped if a hash of (key, i) falls below p. Nothing is cached,
and the mask is the same on NumPy and CuPy, inside a kernel, in a recompute, and for any number of workers.
The hash is :func:`numllama.hashing.mix`, once for each half of the key.
"""

from collections.abc import Sequence
from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.hashing import fold_key, mix


class DropoutCache(NamedTuple):
    """What the mask is computed from."""

    p: float
    key: Sequence[int]
    shape: tuple[int, ...]


@accelerated
def dropout_forward(x: Array, p: float, key: Sequence[int]) -> tuple[Array, DropoutCache]:
    """Set elements to zero at random and scale up the rest, which preserves the mean.

    Parameters
    ----------
    x : array of any shape
    p : float
        Probability of a zero, in [0, 1).
    key : sequence of int
        Names the mask, for example (seed, step, site); or two uint32 as :func:`numllama.hashing.fold_key` makes them.

    Returns
    -------
    out : array like x
    cache : DropoutCache
    """
    return x * dropout_mask(x, p, key), DropoutCache(p, key, x.shape)


@accelerated
def dropout_backward(dout: Array, cache: DropoutCache) -> Array:
    """Gradient of :func:`dropout_forward` with respect to ``x``: the same mask again."""
    p, key, shape = cache
    check_shape("dout", dout, shape)
    return dout * dropout_mask(dout, p, key)


def dropout_mask(x: Array, p: float, key: Sequence[int]) -> Array:
    """0 where an element is dropped, else 1/(1 - p); shape and dtype of x."""
    low, high = fold_key(key)
    index = xp_of(x).arange(x.size, dtype="uint32")
    kept = mix(mix(index ^ low) ^ high) >= int(p * 2**32)
    return (kept * x.dtype.type(1 / (1 - p))).reshape(x.shape)
