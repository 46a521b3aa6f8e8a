"""Several maps of one input, which is converted once for all of them."""

from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES, Array
from numllama.cpu.linear import linear_backward, linear_forward
from numllama.cpu.products import as_operand
from numllama.ops import linears
from numllama.ops.linear import LinearCache


def linears_forward(
    x: np.ndarray, weights: tuple[np.ndarray, ...], biases: tuple | None = None, dtype: np.dtype | None = None
) -> tuple[tuple[np.ndarray, ...], tuple[LinearCache, ...]]:
    if x.dtype in TWO_BYTES or len(biases or weights) != len(weights):
        return linears.linears_forward.reference(x, weights, biases, dtype)
    dtype = dtype or x.dtype
    x = as_operand(x, weights[0])
    results = [linear_forward(x, weight, biases[m] if biases else None, dtype) for m, weight in enumerate(weights)]
    return tuple(out for out, _ in results), tuple(cache for _, cache in results)


def linears_backward(
    douts: tuple[np.ndarray, ...],
    cache: tuple[LinearCache, ...],
    into: tuple[Array, ...] | None = None,
    dx: Array | None = None,
) -> tuple[Any, ...]:
    if douts[0].dtype in TWO_BYTES or not len(douts) == len(cache) == len(into or cache):
        return linears.linears_backward.reference(douts, cache, into, dx)
    gradients = []
    for m, (dout, of_map) in enumerate(zip(douts, cache, strict=True)):
        dx, *rest = linear_backward(dout, of_map, into[m] if into else None, dx)
        gradients.append(rest)
    return dx, *zip(*gradients, strict=True)
