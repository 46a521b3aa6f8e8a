"""Launchers of RMSNorm's kernels."""

from math import prod

from numllama.backend import Array, real_dtype, xp_of
from numllama.cuda import launch

BLOCKS, THREADS = 512, 256  # that add up dweight for themselves: enough to fill a GPU, few enough to add at the end
MAX_SHARED_BYTES = 96 * 1024  # for one row; every GPU since 2020 has them


def rmsnorm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
    if _are_heads(x):
        result = rmsnorm_forward(x.swapaxes(1, 2), weight, eps)
        if result is NotImplemented:
            return NotImplemented
        out, (_, _, rstd) = result
        return out.swapaxes(1, 2), (x, weight, rstd.swapaxes(1, 2))
    if not takes_rows(weight, x):
        return NotImplemented
    out, rstd = launch.empty(x, x.shape, x.dtype), launch.empty(x, (*x.shape[:-1], 1), weight.dtype)
    forward("rmsnorm", (out, rstd, x, weight), x, eps)
    return out, (x, weight, rstd)


def rmsnorm_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    x, weight, rstd = cache
    if _are_heads(x, rstd) and dout.shape == x.shape:
        dout = xp_of(dout).ascontiguousarray(dout.swapaxes(1, 2))       # a copy only if it lies otherwise than x
        result = rmsnorm_backward(dout, (x.swapaxes(1, 2), weight, rstd.swapaxes(1, 2)))
        return NotImplemented if result is NotImplemented else (result[0].swapaxes(1, 2), result[1])
    if dout.shape != x.shape or not takes_rows(weight, x, dout):
        return NotImplemented
    return backward("rmsnorm", (dout, x), weight, rstd)


def _are_heads(*arrays: Array) -> bool:
    """Whether these are (B, H, T, D) in the memory of (B, T, H, D), as a projection leaves them: rows all the same."""
    return all(a.ndim == 4 and not a.flags.c_contiguous and a.swapaxes(1, 2).flags.c_contiguous for a in arrays)


def takes_rows(weight: Array, *rows: Array) -> bool:
    """Whether the kernels take rows of this type and length; gains of activations in two bytes are kept in float32."""
    x = rows[0]
    return (
        launch.is_plain(*rows)
        and x.ndim > 1
        and weight.shape == x.shape[-1:]
        and weight.dtype == real_dtype(x.dtype)
        and weight.flags.c_contiguous
        and _backward_bytes(x, weight) <= MAX_SHARED_BYTES
    )


def _backward_bytes(x: Array, weight: Array) -> int:
    """What backward keeps of one row in shared memory: x and dout, and its sums for dweight."""
    return x.shape[-1] * (2 * x.dtype.itemsize + weight.dtype.itemsize)


def forward(op: str, arrays: tuple, x: Array, eps: float) -> None:
    """Launch OP_forward(arrays, N, C, eps)."""
    C, N = x.shape[-1], prod(x.shape[:-1])
    width = launch.width(x.dtype, C, arrays=arrays)
    threads, rows = launch.row_block(C, width)
    real = real_dtype(x.dtype)
    args = [*arrays, launch.int32(N), launch.int32(C), real.type(eps)]
    shared = rows * C * real.itemsize
    launch.launch(op, f"{op}_forward", launch.blocks(N, rows), (threads, rows), args, shared, DTYPE=x.dtype, WIDTH=width)


def backward(op: str, arrays: tuple, weight: Array, rstd: Array) -> tuple[Array, Array]:
    """Launch OP_backward(dx, dweights, arrays, weight, rstd, N, C), and the sum of dweights; arrays end with x."""
    x = arrays[-1]
    C, N = x.shape[-1], prod(x.shape[:-1])
    dx = launch.empty(x, x.shape, x.dtype)
    width = launch.width(x.dtype, C, arrays=(dx, *arrays, weight))
    threads, _ = launch.row_block(C, width)
    row_bytes = _backward_bytes(x, weight)
    rows = max(1, min(THREADS // threads, launch.SHARED_BYTES // row_bytes))
    grid = min(launch.blocks(N, rows), BLOCKS)
    dweights, dweight = launch.empty(x, (grid, C), weight.dtype), launch.empty(x, (C,), weight.dtype)
    defines = {"DTYPE": x.dtype, "WIDTH": width}
    args = [dx, dweights, *arrays, weight, rstd, launch.int32(N), launch.int32(C)]
    launch.launch(op, f"{op}_backward", grid, (threads, rows), args, rows * row_bytes, **defines)
    args = [dweight, dweights, launch.int32(grid), launch.int32(C)]
    launch.launch(op, f"{op}_dweight", launch.blocks(C, 32), (32, 8), args, **defines)
    return dx, dweight
