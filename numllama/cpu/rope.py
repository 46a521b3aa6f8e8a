"""RoPE as two products: (x₁, x₂)·cos a + (x₂, x₁)·(−sin a, sin a), written in place where `out` is x."""

import numpy as np

from numllama.checks import check_shape
from numllama.ops import rope
from numllama.ops.rope import RopeCache, pairs


def rope_forward(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, layout: str = "half", *, out: np.ndarray | None = None
) -> tuple[np.ndarray, RopeCache]:
    T, D = x.shape[-2:]
    if x.ndim != 4 or D % 2 or cos.shape[-2:] != (T, D // 2) or sin.shape != cos.shape:
        return rope.rope_forward.reference(x, cos, sin, layout, out=out)
    check_shape("cos", cos, (T, D // 2) if cos.ndim == 2 else (len(x), 1, T, D // 2))
    out = np.empty_like(x) if out is None else out                     # (B, H, T, D), in the order that x has in memory
    check_shape("out", out, x.shape)
    first, second = pairs(D, layout)
    other = np.empty_like(x)                                           # of each pair the other component
    other[..., first], other[..., second] = x[..., second], x[..., first]
    other *= _join(-sin, sin, layout)
    np.multiply(x, _join(cos, cos, layout), out=out)
    out += other
    return out, RopeCache(cos, sin, layout)


def _join(x1: np.ndarray, x2: np.ndarray, layout: str) -> np.ndarray:
    """Vectors of these first and second components: (..., D/2) twice -> (..., D)."""
    out = np.empty((*x1.shape[:-1], 2 * x1.shape[-1]), x1.dtype)
    first, second = pairs(out.shape[-1], layout)
    out[..., first], out[..., second] = x1, x2
    return out
