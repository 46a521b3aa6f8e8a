"""Attention as two cuBLAS products with a softmax kernel between them, for cases that the flash kernels do not take:

heads above 128, float64, scales that are not positive, and GPUs before sm_80 (Volta, Turing).

    scores = q kᵀ          p = softmax(scale · scores) over each query's keys          out = p v
The math is that of `ops/attention.py`. Scores, in float32, are computed for as many queries at a time as fit in SCORE_BYTES; that
depends on shapes only. The R query heads of a key head are folded into the rows of a product: (B·K, R·n, D) with (B·K, S, D).
"""

from collections.abc import Iterator

from numllama.backend import Array, real_dtype, xp_of
from numllama.cuda import launch
from numllama.cuda.gemm import gemm
from numllama.cuda.launch import int32

SCORE_BYTES = 256 * 2**20


def forward(q: Array, k: Array, v: Array, first: Array, last: Array, scale: float) -> tuple[Array, Array]:
    """The output (B, H, T, D), and the log-sum-exp (B, H, T) of its scores; first and last (1 or B, T), contiguous."""
    B, H, T, D = q.shape
    K = k.shape[1]
    keys, values = _by_head(k, K), _by_head(v, K)                      # (B·K, S, D)
    out, lse = launch.empty(q, q.shape, q.dtype), launch.empty(q, (B, H, T), real_dtype(q.dtype))
    for t in _tiles(q, k):
        scores = _scores(_by_head(q[:, :, t], K), keys)                # (B·K, R·n, S)
        p = launch.empty(q, scores.shape, q.dtype)
        _softmax("attention_softmax_forward", [p, lse, scores], t, q, k, first, last, scale)
        out[:, :, t] = gemm(p, values).reshape(B, H, -1, D)
    return out, lse


def backward(
    q: Array, k: Array, v: Array, dout: Array, lse: Array, first: Array, last: Array, scale: float
) -> tuple[Array, Array, Array]:
    """Gradients of q (B, H, T, D), k and v (B, K, S, D)."""
    B, H, _, D = q.shape
    K = k.shape[1]
    keys, values = _by_head(k, K), _by_head(v, K)                      # (B·K, S, D)
    dq = launch.empty(q, q.shape, q.dtype)
    dk, dv = (launch.empty(q, keys.shape, real_dtype(q.dtype)) for _ in range(2))
    for t in _tiles(q, k):
        qi, douti = _by_head(q[:, :, t], K), _by_head(dout[:, :, t], K)                  # (B·K, R·n, D)
        scores, dp = _scores(qi, keys), _scores(douti, values)         # (B·K, R·n, S)
        p, ds = (launch.empty(q, scores.shape, q.dtype) for _ in range(2))
        _softmax("attention_softmax_backward", [p, ds, scores, dp, lse], t, q, k, first, last, scale)
        beta = 1.0 if t.start else 0.0
        gemm(p.swapaxes(1, 2), douti, dv, beta)
        gemm(ds.swapaxes(1, 2), qi, dk, beta)
        dq[:, :, t] = gemm(ds, keys).reshape(B, H, -1, D)
    return dq, *(gradient.astype(q.dtype, copy=False).reshape(k.shape) for gradient in (dk, dv))


def _by_head(x: Array, K: int) -> Array:
    """(B, heads, n, D) -> (B·K, heads/K·n, D), contiguous."""
    B, heads, n, D = x.shape
    return xp_of(x).ascontiguousarray(x.reshape(B * K, heads // K * n, D))


def _scores(a: Array, b: Array) -> Array:
    """a bᵀ, not rounded to the dtype of a."""
    out = launch.empty(a, (*a.shape[:2], b.shape[1]), real_dtype(a.dtype))
    return gemm(a, b.swapaxes(1, 2), out)


def _tiles(q: Array, k: Array) -> Iterator[slice]:
    """Tiles of queries."""
    B, H, T, _ = q.shape
    n = max(1, min(T, SCORE_BYTES // (B * H * k.shape[2] * real_dtype(q.dtype).itemsize)))
    for t in range(0, T, n):
        yield slice(t, min(t + n, T))


def _softmax(name: str, arrays: list, t: slice, q: Array, k: Array, first: Array, last: Array, scale: float) -> None:
    B, H, T, _ = q.shape
    S, n = k.shape[2], t.stop - t.start
    rows, width = B * H * n, launch.width(q.dtype, arrays=arrays)
    threads, rows_of_block = launch.row_block(S, width)
    numbers = int32(rows), int32(H), int32(T), int32(S), int32(t.start), int32(n), int32(T if len(first) > 1 else 0)
    args = [*arrays, first, last, *numbers, real_dtype(q.dtype).type(scale)]
    defines = {"DTYPE": q.dtype, "WIDTH": width, "INTERVAL": first.dtype}
    launch.launch("attention_products", name, launch.blocks(rows, rows_of_block), (threads, rows_of_block), args, **defines)
