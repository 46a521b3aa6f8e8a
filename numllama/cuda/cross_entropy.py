"""Launchers of cross-entropy's kernels."""

from math import prod
from typing import Any

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.checks import check_ids
from numllama.cuda import launch
from numllama.cuda.launch import int32, int64
from numllama.ops.cross_entropy import CrossEntropyCache

SUMS_OF_A_THREAD = 16  # sums of blocks per thread of the last block


def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = -100, count: Any = None
) -> tuple[Array, CrossEntropyCache]:
    real, on_device = real_dtype(logits.dtype), launch.backend.owns(count)
    if (
        logits.ndim < 2
        or targets.shape != logits.shape[:-1]
        or targets.dtype.kind not in "iu"
        or not _supports(logits)
        or not (on_device or count is None or float(count) > 0)
        or (on_device and getattr(count, "dtype", None) != real)
    ):
        return NotImplemented
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    check_ids("targets", targets, V, ignore_index)
    dense = launch.ids(targets)
    lse, kept = launch.empty(logits, targets.shape, real), launch.empty(logits, targets.shape, dense.dtype)
    loss, count_out = launch.empty(logits, (), real), launch.empty(logits, (), real)
    stride, (width, block, grid) = _stride(logits), _rows(logits)
    grid = min(grid, most_blocks(prod(block)))
    args = [
        loss, count_out, launch.empty(logits, (2, grid), real), launch.backend.counters(), lse, kept, launch.strided(logits),
        dense, int32(N), int32(V), int64(stride), dense.dtype.type(ignore_index),
        count if on_device else None, real.type(0 if on_device or count is None else count),
    ]  # fmt: skip
    defines = {"DTYPE": logits.dtype, "WIDTH": width, "TARGET": dense.dtype}
    launch.launch("cross_entropy", "cross_entropy_forward", grid, block, args, **defines)
    return loss, CrossEntropyCache(logits, kept, lse, count_out)


def cross_entropy_backward(dout: Array | float, cache: CrossEntropyCache, *, out: Array | None = None) -> Array:
    logits, kept, lse, count = cache
    real = real_dtype(logits.dtype)
    given: Any = dout
    on_device = launch.backend.owns(given)
    if (
        logits.ndim < 2
        or not _supports(logits)
        or kept.dtype not in (np.int32, np.int64)
        or lse.dtype != real
        or not (kept.flags.c_contiguous and lse.flags.c_contiguous)
        or (on_device and (given.dtype != real or given.size != 1))
        or (out is not None and (out.shape, out.dtype, out.strides) != (logits.shape, logits.dtype, logits.strides))
    ):
        return NotImplemented
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    stride = _stride(logits)
    dlogits = launch.empty(logits, (*logits.shape[:-1], stride), logits.dtype)[..., :V] if out is None else out
    width, block, grid = _rows(logits, dlogits)
    number = real.type(0 if on_device else float(given))
    rows, numbers = map(launch.strided, (dlogits, logits)), (int32(N), int32(V), int64(stride))
    args = [*rows, kept, lse, count, given if on_device else None, number, *numbers]
    defines = {"DTYPE": logits.dtype, "WIDTH": width, "TARGET": kept.dtype}
    launch.launch("cross_entropy", "cross_entropy_backward", grid, block, args, **defines)
    return dlogits


def _supports(logits: Array) -> bool:
    """Whether the kernels can read these rows; there may be gaps between them."""
    return logits.dtype in launch.FLOATS and launch.row_stride(logits) is not None


def _stride(logits: Array) -> int:
    """Elements from row to row, of logits that the kernels support."""
    stride = launch.row_stride(logits)
    assert stride is not None
    return stride


def most_blocks(threads: int) -> int:
    """The largest grid of blocks with this many threads; with more rows, each block handles several."""
    return SUMS_OF_A_THREAD * threads


def _rows(*arrays: Array) -> tuple[int, tuple[int, int], int]:
    """Width, block and grid for rows of logits."""
    logits = arrays[0]
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    width = launch.width(logits.dtype, arrays=arrays)
    block = launch.row_block(V, width)
    return width, block, launch.blocks(N, block[1])
