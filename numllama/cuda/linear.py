"""Launchers of the linear map: cuBLAS. Several maps whose weights lie next to each other are one product."""

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.gemm import KINDS, gemm, supports

ALIGNED = 16  # bytes, at multiples of which each row of a result begins: the fast products and 16-byte accesses ask for it


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, tuple]:
    if weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or not supports(x, weight):
        return NotImplemented
    O, I = weight.shape  # noqa: E741
    if bias is not None and bias.shape != (O,):
        return NotImplemented
    per_row = launch.blocks(O * x.dtype.itemsize, ALIGNED) * ALIGNED // x.dtype.itemsize
    out = launch.empty(x, (x.size // I, per_row), x.dtype)[:, :O]      # (N, O), with a gap behind each row if need be
    if bias is not None:
        out[...] = bias
    gemm(x.reshape(-1, I), weight.T, out, beta=0.0 if bias is None else 1.0)
    return out.reshape(*x.shape[:-1], O), (x, weight, bias)


def linear_backward(dout: Array, cache: tuple, into: Array | None = None, dx: Array | None = None) -> tuple[Array, ...]:
    x, weight, bias = cache
    O, I = weight.shape  # noqa: E741
    if dout.shape != (*x.shape[:-1], O) or not (supports(x, weight) and _has_rows(dout, x)):
        return NotImplemented
    real = real_dtype(x.dtype)
    if into is not None and (into.shape != (O, I) or into.dtype not in (x.dtype, real) or not into.flags.c_contiguous):
        return NotImplemented
    dx = linear_backward_input(dout, cache, dx)
    if dx is NotImplemented:
        return dx
    dout = dout.reshape(-1, O)                                         # (N, O)
    dweight = gemm(dout.T, x.reshape(-1, I), into, beta=0.0 if into is None else 1.0)
    if bias is None:
        return dx, dweight
    ones = launch.empty(dout, (1, len(dout)), dout.dtype)
    ones[...] = 1
    dbias = gemm(ones, dout, launch.empty(dout, (1, O), real)).reshape(O)
    return dx, dweight, dbias


def linear_backward_input(dout: Array, cache: tuple, dx: Array | None = None) -> Array:
    x, weight, _ = cache
    O, I = weight.shape  # noqa: E741
    if dout.shape != (*x.shape[:-1], O) or not (supports(x, weight) and _has_rows(dout, x)):
        return NotImplemented
    dout = dout.reshape(-1, O)                                         # (N, O)
    if dx is None:
        return gemm(dout, weight).reshape(x.shape)                     # (..., I)
    if dx.shape != x.shape or not supports(x, dx):
        return NotImplemented
    gemm(dout, weight, dx.reshape(-1, I), beta=1.0)
    return dx


def _has_rows(dout: Array, x: Array) -> bool:
    """Whether a gradient of x's type is a matrix to cuBLAS: there may be a gap between its rows."""
    return dout.dtype == x.dtype and dout.dtype in KINDS and launch.row_stride(dout) is not None


# ------------------------------------------------------------------------------------------------ several maps


def linears_forward(
    x: Array, weights: tuple[Array, ...], biases: tuple[Array, ...] | None = None
) -> tuple[tuple[Array, ...], tuple]:
    weight, bias = _joined(weights, 0), None if biases is None else _joined(biases, 0)
    if weight is None or (bias is None) != (biases is None):
        return NotImplemented
    result = linear_forward(x, weight, bias)
    if result is NotImplemented:
        return NotImplemented
    outs = launch.parts(result[0], [len(each) for each in weights], -1)
    return outs, tuple((x, each, None if biases is None else biases[i]) for i, each in enumerate(weights))


def linears_backward(
    douts: tuple[Array, ...], cache: tuple, into: tuple[Array, ...] | None = None, dx: Array | None = None
) -> tuple:
    maps, buffer = _joined_maps(douts, cache), None if into is None else _joined(into, 0)
    if maps is None or (buffer is None) != (into is None):
        return NotImplemented
    result = linear_backward(*maps, buffer, dx)
    if result is NotImplemented:
        return NotImplemented
    dx, *gradients = result
    dweights, *dbiases = (launch.parts(gradient, [len(weight) for _, weight, _ in cache], 0) for gradient in gradients)
    return dx, dweights if into is None else into, *dbiases


def linears_backward_input(douts: tuple[Array, ...], cache: tuple, dx: Array | None = None) -> Array:
    maps = _joined_maps(douts, cache)
    return NotImplemented if maps is None else linear_backward_input(*maps, dx)


def _joined(arrays: tuple, axis: int) -> Array | None:
    """Arrays of the device as one, if there are several and they lie next to each other."""
    if len(arrays) < 2 or not all(map(launch.backend.owns, arrays)) or len({array.ndim for array in arrays}) > 1:
        return None
    return launch.adjacent(arrays, axis)


def _joined_maps(douts: tuple[Array, ...], cache: tuple) -> tuple[Array, tuple] | None:
    """The gradients and the caches of several maps as those of one; None unless all is side by side."""
    xs, weights, biases = zip(*cache, strict=True)
    if len(douts) != len(cache) or any(x is not xs[0] for x in xs):
        return None
    has_bias = biases[0] is not None
    dout, weight, bias = _joined(douts, -1), _joined(weights, 0), _joined(biases, 0) if has_bias else None
    if dout is None or weight is None or has_bias != (bias is not None):
        return None
    return dout, (xs[0], weight, bias)
