"""Launchers of RMSNorm's kernels."""

from collections.abc import Sequence
from math import prod

from numllama.backend import Array, real_dtype, xp_of
from numllama.cuda import launch
from numllama.ops.rmsnorm import RMSNormCache

BLOCKS, THREADS = 512, 256  # of backward; each sums dweight on its own: enough to fill a GPU, few enough to add at the end
GROUP = 16  # blocks whose sums one block adds up (kernels/last_block.cuh); BLOCKS / GROUP must fit launch.COUNTERS
MAX_SHARED_BYTES = 96 * 1024  # for one row; every GPU since 2020 has them


def rmsnorm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, RMSNormCache]:
    is_heads, strides = _heads_or_rows(x)
    if strides is None or not _supports(weight, x):
        return NotImplemented
    rows = x.swapaxes(1, 2) if is_heads else x
    out, rstd = launch.empty(x, rows.shape, x.dtype), launch.empty(x, (*rows.shape[:-1], 1), weight.dtype)
    forward("rmsnorm", (out, rstd, rows, weight), rows, eps, strides)
    if is_heads:
        out, rstd = out.swapaxes(1, 2), rstd.swapaxes(1, 2)
    return out, RMSNormCache(x, weight, rstd)


def rmsnorm_backward(dout: Array, cache: RMSNormCache) -> tuple[Array, Array]:
    x, weight, rstd = cache
    if dout.shape == x.shape and _heads_or_rows(x)[0] and _heads_or_rows(dout, x)[1] is None:  # dout has another layout
        dout = xp_of(dout).ascontiguousarray(dout.swapaxes(1, 2)).swapaxes(1, 2)
    is_heads, strides = _heads_or_rows(dout, x)
    if dout.shape != x.shape or strides is None or not _supports(weight, x, dout):
        return NotImplemented
    if is_heads:
        dout, x, rstd = (a.swapaxes(1, 2) for a in (dout, x, rstd))
    if not rstd.flags.c_contiguous:
        return NotImplemented
    dx = launch.empty(x, x.shape, x.dtype)
    dweight = backward("rmsnorm", (dx,), (dout, x), weight, rstd, strides=strides)
    return (dx.swapaxes(1, 2) if is_heads else dx), dweight


def _heads_or_rows(*arrays: Array) -> tuple[bool, list | None]:
    """Whether these are heads (B, H, T, D) in (B, T, H, D) memory, as projections and attention leave them, not plain rows.

    Also returns a kernel's arguments for row starts: the number of adjacent heads and each array's stride; None if neither holds.
    """
    if all(a.ndim > 1 and a.flags.c_contiguous for a in arrays):
        return False, [launch.int32(1), *(launch.int64(a.shape[-1]) for a in arrays)]
    if any(a.ndim != 4 or not a.size or (a.shape[1] > 1 and a.strides[1] != a.shape[3] * a.itemsize) for a in arrays):
        return False, None
    strides = [stride for a in arrays if (stride := launch.row_stride(a[:, 0])) is not None]
    return True, [launch.int32(arrays[0].shape[1]), *map(launch.int64, strides)] if len(strides) == len(arrays) else None


def supports_rows(weight: Array, *rows: Array) -> bool:
    """Whether the kernels take contiguous rows of this type and length."""
    return launch.is_plain(*rows) and rows[0].ndim > 1 and _supports(weight, *rows)


def _supports(weight: Array, *rows: Array) -> bool:
    """Whether the kernels take this type and length; activations in two bytes need gains in float32."""
    x = rows[0]
    return (
        x.dtype in launch.FLOATS
        and all(row.dtype == x.dtype and row.size for row in rows)
        and weight.shape == x.shape[-1:]
        and weight.dtype == real_dtype(x.dtype)
        and weight.flags.c_contiguous
        and _backward_bytes(x, weight) <= MAX_SHARED_BYTES
    )


def _backward_bytes(x: Array, weight: Array) -> int:
    """Bytes of shared memory per row in backward: x and dout, and sums for dweight."""
    return x.shape[-1] * (2 * x.dtype.itemsize + weight.dtype.itemsize)


def supports_gradient(weight: Array, into: Array | None) -> bool:
    """Whether the kernels can add the weight's gradient to `into`."""
    return into is None or (launch.backend.owns(into) and into.shape == weight.shape and launch.is_plain(weight, into))


def forward(op: str, arrays: tuple, x: Array, eps: float, strides: Sequence = (), values: Sequence = ()) -> None:
    """Launch OP_forward(arrays, N, C, eps, strides, values)."""
    C, N = x.shape[-1], prod(x.shape[:-1])
    width = launch.width(x.dtype, C, *strides[1:], arrays=arrays)
    threads, rows = launch.row_block(C, width)
    real = real_dtype(x.dtype)
    args = [*_strided(arrays), launch.int32(N), launch.int32(C), real.type(eps), *strides, *values]
    shared = rows * C * real.itemsize
    launch.launch(op, f"{op}_forward", launch.blocks(N, rows), (threads, rows), args, shared, DTYPE=x.dtype, WIDTH=width)


def backward(
    op: str,
    outs: tuple,
    arrays: tuple,
    weight: Array,
    rstd: Array,
    into: Array | None = None,
    strides: Sequence = (),
    values: Sequence = (),
) -> Array:
    """Launch OP_backward(outs, dweight, sums, arrived, arrays, weight, rstd, N, C, adds, strides, values); arrays end with x."""
    x = arrays[-1]
    C, N = x.shape[-1], prod(x.shape[:-1])
    width = launch.width(x.dtype, C, *strides[1:], arrays=(*outs, *arrays, weight))
    threads, _ = launch.row_block(C, width)
    row_bytes = _backward_bytes(x, weight)
    rows = max(1, min(THREADS // threads, launch.SHARED_BYTES // row_bytes))
    grid = min(launch.blocks(N, rows), BLOCKS)
    dweights = launch.empty(x, (grid + launch.blocks(grid, GROUP), C), weight.dtype)
    dweight = launch.empty(x, (C,), weight.dtype) if into is None else into
    numbers = launch.int32(N), launch.int32(C), launch.int32(into is not None)
    sums = dweight, dweights, launch.backend.counters()
    args = [*outs, *sums, *_strided(arrays), weight, rstd, *numbers, *strides, *values]
    launch.launch(op, f"{op}_backward", grid, (threads, rows), args, rows * row_bytes, DTYPE=x.dtype, WIDTH=width)
    return dweight


def _strided(arrays: tuple) -> list:
    """Mark arrays as strided: the kernel knows their strides."""
    return [None if array is None else launch.strided(array) for array in arrays]
