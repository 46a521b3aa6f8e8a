"""Launchers of several linear maps of one input, as one product if their weights are adjacent in memory."""

import numpy as np

from numllama.backend import Array
from numllama.cuda import launch
from numllama.cuda.linear import linear_backward, linear_backward_input, linear_forward
from numllama.ops.linear import LinearCache


def linears_forward(
    x: Array, weights: tuple[Array, ...], biases: tuple[Array, ...] | None = None, dtype: np.dtype | None = None
) -> tuple[tuple[Array, ...], tuple[LinearCache, ...]]:
    weight, bias = _joined(weights, 0), None if biases is None else _joined(biases, 0)
    if weight is None or (bias is None) != (biases is None):
        return NotImplemented
    result = linear_forward(x, weight, bias, dtype)
    if result is NotImplemented:
        return NotImplemented
    outs = launch.parts(result[0], [len(each) for each in weights], -1)
    return outs, tuple(LinearCache(x, each, None if biases is None else biases[i]) for i, each in enumerate(weights))


def linears_backward(
    douts: tuple[Array, ...],
    cache: tuple[LinearCache, ...],
    into: tuple[Array, ...] | None = None,
    dx: Array | None = None,
) -> tuple:
    maps, buffer = _joined_maps(douts, cache), None if into is None else _joined(into, 0)
    if maps is None or (buffer is None) != (into is None):
        return NotImplemented
    result = linear_backward(*maps, buffer, dx)
    if result is NotImplemented:
        return NotImplemented
    dx, *gradients = result
    dweights, *dbiases = (launch.parts(gradient, [len(each.weight) for each in cache], 0) for gradient in gradients)
    return dx, dweights if into is None else into, *dbiases


def linears_backward_input(douts: tuple[Array, ...], cache: tuple[LinearCache, ...], dx: Array | None = None) -> Array:
    maps = _joined_maps(douts, cache)
    return NotImplemented if maps is None else linear_backward_input(*maps, dx)


def _joined(arrays: tuple, axis: int) -> Array | None:
    """Several arrays on the device as one view, if they are adjacent in memory; else None."""
    if len(arrays) < 2 or not all(map(launch.backend.owns, arrays)) or len({array.ndim for array in arrays}) > 1:
        return None
    return launch.adjacent(arrays, axis)


def _joined_maps(douts: tuple[Array, ...], cache: tuple[LinearCache, ...]) -> tuple[Array, LinearCache] | None:
    """The gradients and caches of several maps as those of one; None unless all arrays are adjacent."""
    xs, weights, biases = zip(*cache, strict=True)
    if len(douts) != len(cache) or any(x is not xs[0] for x in xs):
        return None
    has_bias = biases[0] is not None
    dout, weight, bias = _joined(douts, -1), _joined(weights, 0), _joined(biases, 0) if has_bias else None
    if dout is None or weight is None or has_bias != (bias is not None):
        return None
    return dout, LinearCache(xs[0], weight, bias)
