"""Launchers of cross-entropy's kernels."""

from math import prod

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.checks import check_ids
from numllama.cuda import launch
from numllama.cuda.launch import int32


def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = -100, count: float | None = None
) -> tuple[Array, tuple]:
    if (
        logits.ndim < 2
        or targets.shape != logits.shape[:-1]
        or targets.dtype.kind not in "iu"
        or not launch.is_plain(logits)
        or not (count is None or float(count) > 0)
    ):
        return NotImplemented
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    check_ids("targets", targets, V, ignore_index)
    real = real_dtype(logits.dtype)
    losses, lse = launch.empty(logits, (N,), real), launch.empty(logits, targets.shape, real)
    dense = launch.ids(targets)
    kept = launch.empty(logits, targets.shape, dense.dtype)
    loss, count_out = launch.empty(logits, (), real), launch.empty(logits, (), real)
    width, block, grid = _rows(logits)
    defines = {"DTYPE": logits.dtype, "WIDTH": width, "TARGET": dense.dtype}
    args = [losses, lse, kept, logits, dense, int32(N), int32(V), dense.dtype.type(ignore_index)]
    launch.launch("cross_entropy", "cross_entropy_rows", grid, block, args, **defines)
    args = [loss, count_out, losses, kept, int32(N), real.type(0 if count is None else count)]
    launch.launch("cross_entropy", "cross_entropy_sum", 1, 1024, args, **defines)
    return loss, (logits, kept, lse, count_out)


def cross_entropy_backward(dout: Array | float, cache: tuple, *, out: Array | None = None) -> Array:
    logits, kept, lse, count = cache
    real = real_dtype(logits.dtype)
    on_device = launch.backend.owns(dout)
    if (
        logits.ndim < 2
        or not launch.is_plain(logits)
        or kept.dtype not in (np.int32, np.int64)
        or lse.dtype != real
        or not (kept.flags.c_contiguous and lse.flags.c_contiguous)
        or (on_device and (dout.dtype != real or dout.size != 1))
        or (out is not None and (out.shape != logits.shape or not launch.is_plain(logits, out)))
    ):
        return NotImplemented
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    dlogits = launch.empty(logits, logits.shape, logits.dtype) if out is None else out
    width, block, grid = _rows(logits, dlogits)
    number = real.type(0 if on_device else float(dout))
    args = [dlogits, logits, kept, lse, count, dout if on_device else None, number, int32(N), int32(V)]
    defines = {"DTYPE": logits.dtype, "WIDTH": width, "TARGET": kept.dtype}
    launch.launch("cross_entropy", "cross_entropy_backward", grid, block, args, **defines)
    return dlogits


def _rows(*arrays: Array) -> tuple[int, tuple[int, int], int]:
    """Width, block and grid for rows of logits."""
    logits = arrays[0]
    V, N = logits.shape[-1], prod(logits.shape[:-1])
    width = launch.width(logits.dtype, arrays=arrays)
    block = launch.row_block(V, width)
    return width, block, launch.blocks(N, block[1])
