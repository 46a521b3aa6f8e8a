"""Launchers of flash attention's kernels. Heads are read through their strides, and written as (B, T, H, D) memory.

The kernels take bfloat16, float16 and float32, heads of up to 128, and GPUs since sm_80. Heads whose rows are not a multiple of
16 bytes are padded with zeros first. Everything else goes through :mod:`numllama.cuda.attention_products`. Nothing here waits for
the GPU, so all of it can be recorded in a CUDA graph.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, Array, real_dtype, xp_of
from numllama.checks import check_shape
from numllama.cuda import attention_products, launch
from numllama.cuda.launch import int32, int64
from numllama.ops.flash_attention import FlashAttentionCache
from numllama.ops.intervals import check_heads, key_intervals

INTERVAL_DTYPES = {np.dtype(np.int32), np.dtype(np.int64)}
LARGEST_HEAD = 128
FIRST_CAPABILITY = 80  # needed for asynchronous copies and bfloat16 products
BLOCKS = {64: 256, 128: 128}  # of backward, given enough tiles: two, or one, per multiprocessor of a large GPU
MOST_SPLITS = 16  # blocks that share a head: each needs 4 H T D bytes for sums, so memory grows with T, not with T²


class Tiling(NamedTuple):
    """How a kernel divides its work: the .cuh file has the same numbers, with reasons.

    Attributes
    ----------
    warps, warp_rows : int
        Warps per block, and rows of queries (backward: of keys) per warp.
    step : int
        Rows of the other side per load; two loads are in shared memory.
    """

    warps: int
    warp_rows: int
    step: int

    @property
    def rows(self) -> int:
        return self.warps * self.warp_rows


# (bytes per element, elements from row to row of a tile, KiB of shared memory per block) -> forward, backward
TILINGS = {
    (2, 64, 163): (Tiling(4, 32, 48), Tiling(4, 32, 32)),
    (2, 64, 99): (Tiling(4, 32, 48), Tiling(4, 32, 32)),
    (2, 128, 163): (Tiling(4, 32, 48), Tiling(8, 16, 64)),
    (2, 128, 99): (Tiling(8, 16, 48), Tiling(8, 16, 16)),
    (4, 64, 163): (Tiling(4, 16, 32), Tiling(4, 16, 16)),
    (4, 64, 99): (Tiling(4, 16, 32), Tiling(4, 16, 16)),
    (4, 128, 163): (Tiling(4, 16, 32), Tiling(4, 16, 16)),
    (4, 128, 99): (Tiling(4, 16, 32), Tiling(2, 16, 16)),
}


def flash_attention_forward(
    q: Array, k: Array, v: Array, first: Array | None = None, last: Array | None = None, scale: float | None = None
) -> tuple[Array, FlashAttentionCache]:
    K, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    if not launch.is_uniform(q, k, v):
        return NotImplemented
    causal = first is None and last is None
    if not _fits(q, scale):
        first, last = key_intervals(first, last, q, S)                 # (1 or B, T)
        out, lse = attention_products.forward(q, k, v, *_one_shape(first, last), scale)
        return out, FlashAttentionCache(q, k, v, out, lse, first, last, scale)
    if causal:  # the kernel writes them, which saves launches
        first, last = launch.empty(q, (1, T), int), launch.empty(q, (1, T), int)
    else:
        first, last = key_intervals(first, last, q, S)
    intervals = _one_shape(first, last)
    padded_q, padded_k, padded_v = map(_padded, (q, k, v))
    work = _work(padded_q, intervals)
    tiling, _ = work.tilings
    out, lse = launch.empty(q, (B, T, H, work.D), q.dtype), launch.empty(q, (B, H, T), np.float32)
    args = [
        out, lse, *intervals, *_view(padded_q), *_view(padded_k, padded_v), int32(K), int32(T), int32(S),
        _batch_stride(intervals), int32(causal), np.float32(scale), np.float32(scale * math.log2(math.e)),
    ]  # fmt: skip
    rows = tiling.rows + 4 * tiling.step
    work.launch("flash_attention_forward", (launch.blocks(T, tiling.rows), H, B), 32 * tiling.warps, args, rows * work.row_bytes)
    out = out[..., :D].swapaxes(1, 2)                                  # (B, H, T, D)
    return out, FlashAttentionCache(q, k, v, out, lse, first, last, scale)


def flash_attention_backward(dout: Array, cache: FlashAttentionCache) -> tuple[Array, Array, Array]:
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    if not launch.is_uniform(q, k, v, out, dout):
        return NotImplemented
    intervals = _one_shape(first, last)
    lse = xp_of(lse).ascontiguousarray(lse, dtype=real_dtype(q.dtype))
    if not _fits(q, scale):
        return attention_products.backward(q, k, v, dout, lse, *intervals, scale)
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    q, k, v, out, dout = map(_padded, (q, k, v, out, dout))
    work = _work(q, intervals)
    _, tiling = work.tilings
    dq, dk, dv = _gradients(q, k)
    steps, splits = launch.blocks(T, tiling.step), _splits(B * K, launch.blocks(S, tiling.rows), work.pitch)
    delta = launch.empty(q, (B, H, T), np.float32)
    bounds = launch.empty(q, (len(intervals[0]), steps, 4), np.int32)
    columns = launch.blocks(work.D, 16) * 16
    dq_sums = launch.empty(q, (splits, B, H, steps, tiling.step * columns), np.float32)
    out, dout, batch_stride = _view(out), _view(dout), _batch_stride(intervals)

    args = [delta, bounds, *out, *dout, *intervals, int32(T), int32(S), batch_stride]
    work.launch("flash_attention_delta", (steps, H, B), 128, args)
    numbers = int32(H), int32(T), int32(S), batch_stride, np.float32(scale)
    args = [*_rows(dk, dv), dq_sums, *_view(q), *_view(k, v), *dout, lse, delta, bounds, *intervals, *numbers]
    shared = (2 * tiling.rows + 4 * tiling.step) * work.row_bytes + tiling.rows * tiling.step * dq.itemsize + 16 * tiling.step
    work.launch("flash_attention_backward", (splits, K, B), 32 * tiling.warps, args, shared)
    args = [*_rows(dq), dq_sums, bounds, int32(T), int32(splits), batch_stride, np.float32(scale)]
    work.launch("flash_attention_dq", (launch.blocks(launch.blocks(T, 16) * columns, 256), H, B), 256, args)
    return tuple(gradient[..., :D].swapaxes(1, 2) for gradient in (dq, dk, dv))


def _gradients(q: Array, k: Array) -> list[Array]:
    """Empty dq (B, T, H, D), dk and dv (B, S, K, D): parts of the same rows if T is S.

    Then they are one matrix in the products with wq, wk and wv that follow.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    if T != S:
        return [launch.empty(q, shape, q.dtype) for shape in [(B, T, H, D), (B, S, K, D), (B, S, K, D)]]
    rows = launch.empty(q, (B, T, H + 2 * K, D), q.dtype)
    return [rows[:, :, :H], rows[:, :, H : H + K], rows[:, :, H + K :]]


def _rows(*arrays: Array) -> list:
    """A kernel's arguments for results (B, T, heads, D): their addresses, and the stride of T in elements."""
    return [*map(launch.strided, arrays), int32(arrays[0].strides[1] // arrays[0].itemsize)]


class _Work(NamedTuple):
    """Settings that all kernels of a call are compiled for, and their tilings."""

    D: int
    pitch: int
    row_bytes: int
    tilings: tuple[Tiling, Tiling]
    defines: dict[str, Any]

    def launch(self, name: str, grid: tuple, threads: int, args: list, shared_bytes: int = 0) -> None:
        launch.launch("flash_attention", name, grid, threads, args, shared_bytes, **self.defines)


def _work(q: Array, intervals: tuple[Array, Array]) -> _Work:
    D, size = q.shape[-1], q.dtype.itemsize
    pitch = 64 if D <= 64 else 128
    shared_kib = 163 if launch.max_shared_bytes() >= 163 * 1024 else 99
    defines = {"DTYPE": q.dtype, "D": D, "INTERVAL": intervals[0].dtype, "SHARED_KIB": shared_kib}
    return _Work(D, pitch, pitch * size, TILINGS[size, pitch, shared_kib], defines)


def _splits(heads: int, tiles: int, pitch: int) -> int:
    """Number of blocks that share the key tiles of a key head; each has its own float32 sums of dq, added at the end.

    It depends on shapes only, not on the GPU, and so do the bits.
    """
    return min(tiles, MOST_SPLITS, launch.blocks(BLOCKS[pitch], heads))


def _fits(q: Array, scale: float) -> bool:
    """Whether the kernels run here and take this. The scale must be positive: they take maxima of unscaled scores."""
    return (
        q.dtype in (np.float32, np.float16, BFLOAT16)
        and q.shape[-1] <= LARGEST_HEAD
        and 0 < scale < math.inf
        and launch.backend.compute_capability() >= FIRST_CAPABILITY
    )


def _padded(x: Array) -> Array:
    """Heads padded with zeros to a multiple of 16 bytes; unchanged if they need none."""
    D, multiple = x.shape[-1], 16 // x.dtype.itemsize
    if D % multiple == 0:
        return x
    padded = launch.zeros(x, (*x.shape[:-1], launch.blocks(D, multiple) * multiple), x.dtype)
    padded[..., :D] = x
    return padded


def _one_shape(first: Array, last: Array) -> tuple[Array, Array]:
    """The intervals' ends, contiguous, in one shape and one dtype, int32 or int64; unchanged if they already are."""
    shape, dtype = (max(len(first), len(last)), first.shape[-1]), np.promote_types(first.dtype, last.dtype)
    dtype = dtype if dtype in INTERVAL_DTYPES else np.dtype(np.int64)
    xp = xp_of(first)
    return tuple(xp.ascontiguousarray(xp.broadcast_to(ends, shape), dtype=dtype) for ends in (first, last))


def _batch_stride(intervals: tuple[Array, Array]) -> np.int32:
    n, T = intervals[0].shape
    return int32(T if n > 1 else 0)


def _view(*arrays: Array) -> list:
    """A kernel's arguments for arrays (B, heads, T, D): their addresses, and the strides of three axes in elements.

    Arrays are copied if their rows of D are not contiguous, or do not begin at multiples of 16 bytes. Two arrays pass their
    strides once; if these differ, both are copied as well.
    """
    if not all(map(_is_readable, arrays)) or len({_steps(x) for x in arrays}) > 1:
        arrays = tuple(x.copy() for x in arrays)
    batch, head, time, _ = (stride // arrays[0].itemsize for stride in arrays[0].strides)
    return [*map(launch.strided, arrays), int64(batch), int64(head), int32(time)]


def _is_readable(x: Array) -> bool:
    return x.strides[-1] == x.itemsize and not any(step % 16 for step in _steps(x)[:-1]) and launch.backend.address(x) % 16 == 0


def _steps(x: Array) -> tuple[int, ...]:
    """The strides that matter: those of axes longer than 1."""
    return tuple(stride for stride, n in zip(x.strides, x.shape, strict=True) if n > 1)
