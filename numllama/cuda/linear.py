"""Launchers of the linear map, by cuBLAS."""

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.gemm import KINDS, gemm, supports
from numllama.ops.linear import LinearCache

ALIGNED = 16  # bytes to which rows of a result are aligned, as fast products and 16-byte accesses require


def linear_forward(
    x: Array, weight: Array, bias: Array | None = None, dtype: np.dtype | None = None
) -> tuple[Array, LinearCache]:
    if dtype not in (None, x.dtype) or weight.ndim != 2 or x.shape[-1:] != weight.shape[1:] or not supports(x, weight):
        return NotImplemented
    O, I = weight.shape  # noqa: E741
    if bias is not None and bias.shape != (O,):
        return NotImplemented
    per_row = launch.blocks(O * x.dtype.itemsize, ALIGNED) * ALIGNED // x.dtype.itemsize
    out = launch.empty(x, (x.size // I, per_row), x.dtype)[:, :O]      # (N, O), with a gap after each row if needed
    if bias is not None:
        out[...] = bias
    gemm(x.reshape(-1, I), weight.T, out, beta=0.0 if bias is None else 1.0)
    return out.reshape(*x.shape[:-1], O), LinearCache(x, weight, bias)


def linear_backward(
    dout: Array, cache: LinearCache, into: Array | None = None, dx: Array | None = None
) -> tuple[Array, ...]:
    x, weight, bias = cache
    O, I = weight.shape  # noqa: E741
    if dout.shape != (*x.shape[:-1], O) or not (supports(x, weight) and _has_rows(dout, x)):
        return NotImplemented
    real = real_dtype(x.dtype)
    if into is not None and (into.shape != (O, I) or into.dtype not in (x.dtype, real) or not into.flags.c_contiguous):
        return NotImplemented
    dx = linear_backward_input(dout, cache, dx)
    if dx is NotImplemented:
        return NotImplemented
    dout = dout.reshape(-1, O)                                         # (N, O)
    dweight = gemm(dout.T, x.reshape(-1, I), into, beta=0.0 if into is None else 1.0)
    if bias is None:
        return dx, dweight
    ones = launch.empty(dout, (1, len(dout)), dout.dtype)
    ones[...] = 1
    dbias = gemm(ones, dout, launch.empty(dout, (1, O), real)).reshape(O)
    return dx, dweight, dbias


def linear_backward_input(dout: Array, cache: LinearCache, dx: Array | None = None) -> Array:
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
    """Whether a gradient has x's type and rows that cuBLAS can read; there may be gaps between them."""
    return dout.dtype == x.dtype and dout.dtype in KINDS and launch.row_stride(dout) is not None
