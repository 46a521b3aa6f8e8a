"""Launchers of LayerNorm's kernels."""

from math import prod

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.rmsnorm import BLOCKS, GROUP, MAX_SHARED_BYTES, THREADS
from numllama.ops.layernorm import LayerNormCache


def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, LayerNormCache]:
    if not _supports((weight, bias), x):
        return NotImplemented
    real, statistics = real_dtype(x.dtype), (*x.shape[:-1], 1)
    out, mean, rstd = launch.empty(x, x.shape, x.dtype), launch.empty(x, statistics, real), launch.empty(x, statistics, real)
    C, N = x.shape[-1], prod(x.shape[:-1])
    width = launch.width(x.dtype, C, arrays=(out, x, weight, bias))
    threads, rows = launch.row_block(C, width)
    args = [out, mean, rstd, x, weight, bias, launch.int32(N), launch.int32(C), real.type(eps)]
    shared = rows * C * real.itemsize
    defines = {"DTYPE": x.dtype, "WIDTH": width}
    launch.launch("layernorm", "layernorm_forward", launch.blocks(N, rows), (threads, rows), args, shared, **defines)
    return out, LayerNormCache(x, weight, mean, rstd)


def layernorm_backward(dout: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    x, weight, mean, rstd = cache
    if dout.shape != x.shape or not _supports((weight,), x, dout):
        return NotImplemented
    C, N = x.shape[-1], prod(x.shape[:-1])
    dx = launch.empty(x, x.shape, x.dtype)
    width = launch.width(x.dtype, C, arrays=(dx, dout, x, weight))
    threads, _ = launch.row_block(C, width)
    row_bytes = 2 * C * weight.dtype.itemsize
    rows = max(1, min(THREADS // threads, launch.SHARED_BYTES // row_bytes))
    grid = min(launch.blocks(N, rows), BLOCKS)
    sums = launch.empty(x, (grid + launch.blocks(grid, GROUP), 2 * C), weight.dtype)
    both = launch.empty(x, (2, C), weight.dtype)
    defines = {"DTYPE": x.dtype, "WIDTH": width}
    args = [dx, both, sums, launch.backend.counters(), dout, x, weight, mean, rstd, launch.int32(N), launch.int32(C)]
    launch.launch("layernorm", "layernorm_backward", grid, (threads, rows), args, rows * row_bytes, **defines)
    return dx, both[0], both[1]


def _supports(vectors: tuple[Array, ...], *rows: Array) -> bool:
    """Whether the kernels take rows of this type and length; gains and biases must have the statistics' type."""
    x = rows[0]
    real = real_dtype(x.dtype)
    return (
        launch.is_plain(*rows)
        and x.ndim > 1
        and all(v.shape == x.shape[-1:] and v.dtype == real and v.flags.c_contiguous for v in vectors)
        and 2 * x.shape[-1] * real.itemsize <= MAX_SHARED_BYTES
    )
