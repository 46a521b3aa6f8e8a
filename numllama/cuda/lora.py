"""Launchers of LoRA's update: thin products by cuBLAS, gradients in float32."""

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.gemm import gemm, supports
from numllama.ops.lora import LoraCache


def lora_forward(x: Array, a: Array, b: Array, scale: float) -> tuple[Array, LoraCache]:
    if a.ndim != 2 or b.shape[1:] != a.shape[:1] or x.shape[-1:] != a.shape[1:] or not supports(x, a, b):
        return NotImplemented
    h = gemm(x.reshape(-1, x.shape[-1]), a.T)                          # (N, R)
    out = gemm(h, b.T, alpha=scale)                                    # (N, O)
    return out.reshape(*x.shape[:-1], len(b)), LoraCache(x, a, b, h, scale)


def lora_backward(dout: Array, cache: LoraCache, dx: Array | None = None) -> tuple[Array, Array, Array]:
    x, a, b, h, scale = cache
    O, I = len(b), a.shape[1]  # noqa: E741
    if dout.shape != (*x.shape[:-1], O) or not supports(x, a, b, h, dout):
        return NotImplemented
    if dx is not None and (dx.shape != x.shape or not supports(x, dx)):
        return NotImplemented
    real, dout = real_dtype(x.dtype), dout.reshape(-1, O)              # (N, O)
    db = gemm(dout.T, h, launch.empty(b, b.shape, real), alpha=scale)  # (O, R)
    dh = gemm(dout, b, alpha=scale)                                    # (N, R)
    da = gemm(dh.T, x.reshape(-1, I), launch.empty(a, a.shape, real))  # (R, I)
    if dx is None:
        return gemm(dh, a).reshape(x.shape), da, db                    # dx (..., I)
    gemm(dh, a, dx.reshape(-1, I), beta=1.0)
    return dx, da, db
