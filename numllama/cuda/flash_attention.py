"""Launchers of flash attention's kernels. Heads are read where they lie, and written as (B, T, H, D) seen as (B, H, T, D)."""

import math
from typing import NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, Array, xp_of
from numllama.checks import check_shape
from numllama.cuda import launch
from numllama.cuda.launch import int32, int64
from numllama.ops.attention import check_heads, key_intervals

INTERVAL_DTYPES = {np.dtype(np.int32), np.dtype(np.int64)}


class Tiling(NamedTuple):
    """How a kernel cuts its work: the .cu file has the same numbers, and the reasons.

    Attributes
    ----------
    warps, warp_rows : int
        Of a block, and rows of queries (dk, dv: of keys) that each warp owns.
    step : int
        Rows of the other side that are loaded at a time, twice.
    """

    warps: int
    warp_rows: int
    step: int

    @property
    def rows(self) -> int:
        return self.warps * self.warp_rows


# (bytes of an element, D) -> forward, dq, and dk with dv
TILINGS = {
    (2, 64): (Tiling(4, 32, 48), Tiling(4, 32, 64), Tiling(4, 32, 32)),
    (2, 128): (Tiling(4, 32, 48), Tiling(4, 32, 32), Tiling(8, 16, 32)),
    (4, 64): (Tiling(4, 16, 32), Tiling(4, 16, 16), Tiling(4, 16, 16)),
    (4, 128): (Tiling(4, 16, 32), Tiling(4, 16, 16), Tiling(4, 16, 16)),
}


def flash_attention_forward(
    q: Array, k: Array, v: Array, first: Array | None = None, last: Array | None = None, scale: float | None = None
) -> tuple[Array, tuple]:
    K, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    causal = first is None and last is None
    if causal:  # written by the kernel itself, which saves the launches that would make them
        first, last = launch.empty(q, (1, T), int), launch.empty(q, (1, T), int)
    else:
        first, last = key_intervals(first, last, q, S)                 # (1 or B, T)
    if not _takes(scale, first, last, q, k, v):
        return NotImplemented
    tiling, _, _ = TILINGS[q.dtype.itemsize, D]
    out, lse = launch.empty(q, (B, T, H, D), q.dtype), launch.empty(q, (B, H, T), np.float32)
    intervals = _one_shape(first, last)
    args = [
        out, lse, *intervals, *_view(q), *_view(k, v), int32(K), int32(T), int32(S), _batch_stride(intervals), int32(causal),
        np.float32(scale), np.float32(scale * math.log2(math.e)),
    ]  # fmt: skip
    _launch("flash_attention_forward", T, H, B, tiling, args, tiling.rows + 4 * tiling.step, q, intervals)
    out = out.swapaxes(1, 2)                                           # (B, H, T, D)
    return out, (q, k, v, out, lse, first, last, scale)


def flash_attention_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    if not (_takes(scale, first, last, q, k, v, out, dout) and lse.dtype == np.float32 and lse.flags.c_contiguous):
        return NotImplemented
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    _, of_queries, of_keys = TILINGS[q.dtype.itemsize, D]
    dq, dk, dv = (launch.empty(q, shape, q.dtype) for shape in [(B, T, H, D), (B, S, K, D), (B, S, K, D)])
    intervals = _one_shape(first, last)
    delta = launch.empty(q, (B, H, T), np.float32)
    bounds = launch.empty(q, (len(intervals[0]), launch.blocks(T, of_queries.warp_rows), 4), np.int32)
    q, k_and_v, dout = _view(q), _view(k, v), _view(dout)
    numbers = int32(T), int32(S), _batch_stride(intervals), np.float32(scale)

    args = [dq, delta, bounds, *q, *k_and_v, *_view(out), *dout, lse, *intervals, int32(K), *numbers]
    _launch("flash_attention_dq", T, H, B, of_queries, args, 2 * of_queries.rows + 4 * of_queries.step, dq, intervals)
    args = [dk, dv, *q, *k_and_v, *dout, lse, delta, bounds, *intervals, int32(H), *numbers]
    rows, statistics = 2 * of_keys.rows + 4 * of_keys.step, 4 * of_keys.step
    _launch("flash_attention_dkv", S, K, B, of_keys, args, rows, dk, intervals, statistics)
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _launch(
    name: str, n: int, heads: int, B: int, tiling: Tiling, args: list, rows: int, like: Array, intervals: tuple, floats: int = 0
) -> None:
    """Launch a kernel over n times, in tiles, of all heads, with so many rows and floats in shared memory."""
    D = like.shape[-1]
    grid, threads = (launch.blocks(n, tiling.rows), heads, B), 32 * tiling.warps
    defines = {"DTYPE": like.dtype, "D": D, "INTERVAL": intervals[0].dtype}
    launch.launch("flash_attention", name, grid, threads, args, rows * D * like.dtype.itemsize + 4 * floats, **defines)


def _takes(scale: float, first: Array, last: Array, *heads: Array) -> bool:
    """Whether there are kernels for these. They look for the largest score before they scale it."""
    q = heads[0]
    return (
        q.size > 0
        and q.dtype in (np.float32, np.float16, BFLOAT16)
        and all(x.dtype == q.dtype for x in heads)
        and (q.dtype.itemsize, q.shape[-1]) in TILINGS
        and {first.dtype, last.dtype} <= INTERVAL_DTYPES
        and 0 < scale < math.inf
    )


def _one_shape(first: Array, last: Array) -> tuple[Array, Array]:
    """Both intervals' ends contiguous, of one shape and one dtype; themselves if they are that already."""
    shape, dtype = (max(len(first), len(last)), first.shape[-1]), np.promote_types(first.dtype, last.dtype)
    xp = xp_of(first)
    return tuple(xp.ascontiguousarray(xp.broadcast_to(ends, shape), dtype=dtype) for ends in (first, last))


def _batch_stride(intervals: tuple[Array, Array]) -> np.int32:
    n, T = intervals[0].shape
    return int32(T if n > 1 else 0)


def _view(*arrays: Array) -> list:
    """What a kernel is told about (B, heads, T, D): where it begins, and how many elements apart neighbours are on three axes.

    Arrays whose rows of D do not lie together, or do not begin at multiples of 16 bytes, are copied. Two arrays that share their
    strides need them only once; if they do not, they are copied as well.
    """
    if not all(map(_is_readable, arrays)) or len({x.strides for x in arrays}) > 1:
        arrays = [x.copy() for x in arrays]
    batch, head, time, _ = (stride // arrays[0].itemsize for stride in arrays[0].strides)
    return [*map(launch.strided, arrays), int64(batch), int64(head), int32(time)]


def _is_readable(x: Array) -> bool:
    steps = [stride for stride, n in zip(x.strides, x.shape, strict=True) if n > 1]
    return x.strides[-1] == x.itemsize and not any(step % 16 for step in steps[:-1]) and launch.backend.address(x) % 16 == 0
