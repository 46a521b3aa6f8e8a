"""Launches kernels/flash_attention.cu: forward; dq; dk and dv.

Queries, keys, values and cotangents are read where they lie, through their strides. Results lie in memory as (B, T, H, D), so that
merging heads is a view; as everywhere they are seen as (B, H, T, D).
"""

import math
from typing import NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, Array, xp_of
from numllama.checks import check_shape
from numllama.cuda import launch as door
from numllama.cuda.launch import empty, launch, strided
from numllama.ops.attention import check_heads, key_intervals

INTERVAL_DTYPES = (np.dtype(np.int32), np.dtype(np.int64))


class Tiling(NamedTuple):
    """How a kernel cuts its work: the table of the same name in the .cu file.

    Attributes
    ----------
    warps, warp_rows : int
        Of a block, and rows of queries (dk, dv: of keys) that each warp owns.
    step : int
        Rows of the other side that are in shared memory at a time, twice.
    """

    warps: int
    warp_rows: int
    step: int

    @property
    def rows(self) -> int:
        return self.warps * self.warp_rows

    @property
    def threads(self) -> int:
        return self.warps * 32


# (bytes of an element, D): forward, dq, and dk with dv
TILINGS = {
    (2, 64): (Tiling(4, 32, 48), Tiling(4, 32, 64), Tiling(4, 32, 32)),
    (2, 128): (Tiling(4, 32, 48), Tiling(4, 32, 32), Tiling(8, 16, 32)),
    (4, 64): (Tiling(4, 16, 32), Tiling(4, 16, 16), Tiling(4, 16, 16)),
    (4, 128): (Tiling(4, 16, 32), Tiling(4, 16, 16), Tiling(4, 16, 16)),
}


def flash_attention_forward(
    q: Array, k: Array, v: Array, first: Array | None = None, last: Array | None = None, scale: float | None = None
) -> tuple[Array, tuple]:
    """As :func:`numllama.ops.flash_attention_forward`; NotImplemented for what the kernels do not take. lse is float32."""
    K, S = check_heads(q, k, v)
    B, H, T, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else float(scale)
    if not _takes(q, k, v, scale):
        return NotImplemented
    causal = first is None and last is None
    if causal:
        first, last = empty(q, (1, T), np.int32), empty(q, (1, T), np.int32)  # written by the kernel: no launches of their own
    else:
        first, last = key_intervals(first, last, q, S)
        if not {first.dtype, last.dtype} <= set(INTERVAL_DTYPES):
            return NotImplemented
        first, last = _alike(first, last)
    q, (k, v) = _readable(q), _alike_in_memory(k, v)
    tiling, _, _ = TILINGS[q.dtype.itemsize, D]
    out, lse = empty(q, (B, T, H, D), q.dtype), empty(q, (B, H, T), np.float32)
    args = [out, lse, first, last, *_view(q), *_view(k, v), *map(np.int32, (K, T, S, _batch_stride(first), causal))]
    shared_bytes = (tiling.rows + 4 * tiling.step) * D * q.dtype.itemsize
    _launch("flash_attention_forward", (-(-T // tiling.rows), H, B), tiling, [*args, _scale2(scale)], shared_bytes, q, first)
    out = out.swapaxes(1, 2)                                           # (B, H, T, D)
    return out, (q, k, v, out, lse, first, last, scale)


def flash_attention_backward(dout: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """As :func:`numllama.ops.flash_attention_backward`; NotImplemented for what the kernels do not take."""
    q, k, v, out, lse, first, last, scale = cache
    check_shape("dout", dout, q.shape)
    if not (_takes(q, k, v, scale, out, dout) and {first.dtype, last.dtype} <= set(INTERVAL_DTYPES)):
        return NotImplemented
    B, H, T, D = q.shape
    K, S = k.shape[1:3]
    first, last = _alike(first, last)
    lse = xp_of(lse).ascontiguousarray(lse, dtype=np.float32)
    q, out, dout, (k, v) = *map(_readable, (q, out, dout)), _alike_in_memory(k, v)
    of_queries, of_keys = TILINGS[q.dtype.itemsize, D][1:]
    dq = empty(q, (B, T, H, D), q.dtype)
    dk, dv = empty(q, (B, S, K, D), q.dtype), empty(q, (B, S, K, D), q.dtype)
    delta = empty(q, (B, H, T), np.float32)
    bounds = empty(q, (len(first), -(-T // of_queries.warp_rows), 4), np.int32)
    views = *_view(q), *_view(k, v)
    numbers = *map(np.int32, (T, S, _batch_stride(first))), _scale2(scale)

    args = [dq, delta, bounds, *views, *_view(out), *_view(dout), lse, first, last, np.int32(K), *numbers]
    shared_bytes = (2 * of_queries.rows + 4 * of_queries.step) * D * q.dtype.itemsize
    _launch("flash_attention_dq", (-(-T // of_queries.rows), H, B), of_queries, args, shared_bytes, q, first)

    args = [dk, dv, *views, *_view(dout), lse, delta, bounds, first, last, np.int32(H), *numbers]
    shared_bytes = (2 * of_keys.rows + 4 * of_keys.step) * D * q.dtype.itemsize + 4 * of_keys.step * 4
    _launch("flash_attention_dkv", (-(-S // of_keys.rows), K, B), of_keys, args, shared_bytes, q, first)
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _launch(name: str, grid: tuple, tiling: Tiling, args: list, shared_bytes: int, q: Array, first: Array) -> None:
    defines = {"DTYPE": q.dtype, "D": q.shape[-1], "INTERVAL": first.dtype}
    launch("flash_attention", name, grid, tiling.threads, args, shared_bytes, **defines)


def _takes(q: Array, k: Array, v: Array, scale: float, *more: Array) -> bool:
    """Whether there is a kernel: a largest score, times scale, must be the largest."""
    known = q.dtype in (np.float32, np.float16, BFLOAT16) and (q.dtype.itemsize, q.shape[-1]) in TILINGS
    return known and all(a.dtype == q.dtype for a in (k, v, *more)) and 0 < scale < math.inf


def _alike(first: Array, last: Array) -> tuple[Array, Array]:
    """Both contiguous, of one shape and one dtype."""
    xp = xp_of(first)
    dtype, shape = np.promote_types(first.dtype, last.dtype), (max(len(first), len(last)), first.shape[-1])
    return tuple(xp.ascontiguousarray(xp.broadcast_to(bound, shape), dtype=dtype) for bound in (first, last))


def _scale2(scale: float) -> np.float32:
    """exp(scale x) is exp2(scale2 x), and a GPU has exp2."""
    return np.float32(scale * math.log2(math.e))


def _batch_stride(first: Array) -> int:
    return first.shape[-1] if len(first) > 1 else 0


def _readable(x: Array) -> Array:
    """The array itself if each row of D lies together and begins at a multiple of 16 bytes, as copies want it, else a copy."""
    steps = [stride for stride, n in zip(x.strides, x.shape, strict=True) if n > 1]
    fits = x.strides[-1] == x.dtype.itemsize and all(step % 16 == 0 for step in steps[:-1]) and door.backend.address(x) % 16 == 0
    return x if fits else xp_of(x).ascontiguousarray(x)


def _alike_in_memory(k: Array, v: Array) -> tuple[Array, Array]:
    """Both readable, with the same strides: then one address leads to both."""
    k, v = _readable(k), _readable(v)
    return (k, v) if k.strides == v.strides else tuple(map(xp_of(k).ascontiguousarray, (k, v)))


def _view(*alike: Array) -> list:
    """What a kernel is told about (B, heads, T, D): where each begins, and how many elements apart neighbours are."""
    batch, head, time = (stride // alike[0].dtype.itemsize for stride in alike[0].strides[:3])
    return [*map(strided, alike), np.int64(batch), np.int64(head), np.int32(time)]
