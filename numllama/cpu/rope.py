"""RoPE as two products, (x₁, x₂)·cos a + (x₂, x₁)·(−sin a, sin a), in place where `out` is x, with one table for all arrays."""

import numpy as np

from numllama.backend import TWO_BYTES
from numllama.checks import check_shape
from numllama.ops import rope
from numllama.ops.rope import RopeCache, pairs


def rope_forward(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, layout: str = "half", *, out: np.ndarray | None = None
) -> tuple[np.ndarray, RopeCache]:
    if not fits(x, cos, sin):
        return rope.rope_forward.reference(x, cos, sin, layout, out=out)
    return turn(x, *whole_table(cos, sin, layout), layout, out), RopeCache(cos, sin, layout)


def ropes_forward(
    xs: tuple[np.ndarray, ...],
    cos: np.ndarray,
    sin: np.ndarray,
    layout: str = "half",
    *,
    outs: tuple[np.ndarray, ...] | None = None,
) -> tuple[tuple[np.ndarray, ...], RopeCache]:
    if not all(fits(x, cos, sin) for x in xs):
        return rope.ropes_forward.reference(xs, cos, sin, layout, outs=outs)
    table, given = whole_table(cos, sin, layout), outs or (None,) * len(xs)
    turned = tuple(turn(x, *table, layout, out) for x, out in zip(xs, given, strict=True))
    return turned, RopeCache(cos, sin, layout)


def ropes_backward(
    douts: tuple[np.ndarray, ...], cache: RopeCache, *, outs: tuple[np.ndarray, ...] | None = None
) -> tuple[np.ndarray, ...]:
    cos, sin, layout = cache
    if not all(fits(dout, cos, sin) for dout in douts):
        return rope.ropes_backward.reference(douts, cache, outs=outs)
    return ropes_forward(douts, cos, -sin, layout, outs=outs)[0]           # the rotation back


def fits(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> bool:
    """Whether the table is for x (B, H, T, D), in a dtype that NumPy computes in; the op itself says what is wrong."""
    T, D = x.shape[-2:]
    is_for_all = cos.ndim == 2 or cos.shape[:-2] == (len(x), 1)
    of_pairs = D % 2 == 0 and cos.shape[-2:] == (T, D // 2) and sin.shape == cos.shape
    return x.dtype not in TWO_BYTES and x.ndim == 4 and of_pairs and is_for_all


def whole_table(cos: np.ndarray, sin: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """(cos, cos) and (−sin, sin), each (T, D) or (B, 1, T, D)."""
    return _join(cos, cos, layout), _join(-sin, sin, layout)


def turn(x: np.ndarray, cosines: np.ndarray, sines: np.ndarray, layout: str, out: np.ndarray | None) -> np.ndarray:
    """x, each pair rotated; cosines and sines (T, D) or (B, 1, T, D)."""
    out = np.empty_like(x) if out is None else out                         # (B, H, T, D), in the order that x has in memory
    check_shape("out", out, x.shape)
    first, second = pairs(x.shape[-1], layout)
    other = np.empty_like(x)                                               # of each pair the other component
    other[..., first], other[..., second] = x[..., second], x[..., first]
    other *= sines
    np.multiply(x, cosines, out=out)
    out += other
    return out


def _join(x1: np.ndarray, x2: np.ndarray, layout: str) -> np.ndarray:
    """Vectors of these first and second components: (..., D/2) twice -> (..., D)."""
    out = np.empty((*x1.shape[:-1], 2 * x1.shape[-1]), x1.dtype)
    first, second = pairs(out.shape[-1], layout)
    out[..., first], out[..., second] = x1, x2
    return out
