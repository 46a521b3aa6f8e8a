"""Several linear maps of one input:  outs[m] = x · weights[m]ᵀ + biases[m]

Queries, keys and values are such maps, and so are gate and up. Each has the gradients of a linear map; those of x add up:
    dx = Σₘ douts[m] · weights[m]
"""

from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.dispatch import accelerated
from numllama.ops.linear import LinearCache, linear_backward, linear_backward_input, linear_forward


@accelerated(of_ops=True)
def linears_forward(
    x: Array, weights: tuple[Array, ...], biases: tuple[Array, ...] | None = None, dtype: np.dtype | None = None
) -> tuple[tuple[Array, ...], tuple[LinearCache, ...]]:
    """Several maps of one input. On a GPU they are one product, if the weights are adjacent in memory.

    Parameters
    ----------
    x : array, shape (..., I)
    weights : tuple of arrays, shapes (Oₘ, I)
    biases : tuple of arrays, shapes (Oₘ,), optional
    dtype : dtype, optional
        What the results are rounded to; by default they have x's dtype.

    Returns
    -------
    outs : tuple of arrays, shapes (..., Oₘ)
    cache : tuple of LinearCache
        One for each map.
    """
    biases = (None,) * len(weights) if biases is None else biases
    results = [linear_forward(x, weight, bias, dtype) for weight, bias in zip(weights, biases, strict=True)]
    return tuple(out for out, _ in results), tuple(cache for _, cache in results)


@accelerated(of_ops=True)
def linears_backward(
    douts: tuple[Array, ...],
    cache: tuple[LinearCache, ...],
    into: tuple[Array, ...] | None = None,
    dx: Array | None = None,
) -> tuple[Any, ...]:
    """Gradients of :func:`linears_forward`: ``dx, dweights``, and ``dbiases`` if there were biases.

    Parameters
    ----------
    douts : tuple of arrays, shapes (..., Oₘ)
    cache : tuple of LinearCache
    into : tuple of arrays, shapes (Oₘ, I), optional
        Buffers that the weights' gradients are added to, and that are then returned as ``dweights``.
    dx : array, shape (..., I), optional
        A buffer that x's gradient is added to; it is then returned.
    """
    into = (None,) * len(douts) if into is None else into
    gradients = []
    for dout, of_map, buffer in zip(douts, cache, into, strict=True):
        dx, *rest = linear_backward(dout, of_map, into=buffer, dx=dx)  # dweight, and dbias
        gradients.append(rest)
    return dx, *zip(*gradients, strict=True)


@accelerated(of_ops=True)
def linears_backward_input(douts: tuple[Array, ...], cache: tuple[LinearCache, ...], dx: Array | None = None) -> Array:
    """``dx`` of :func:`linears_backward` only, for frozen maps."""
    for dout, of_map in zip(douts, cache, strict=True):
        dx = linear_backward_input(dout, of_map, dx=dx)
    return dx
