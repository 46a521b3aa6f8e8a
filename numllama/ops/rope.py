"""Rotary position embedding: each pair of components turns by an angle that grows with the position.   Su et al. 2021, eq. 34

Pair j of a vector at position t turns by a = t · theta^(−2j/D):
    out₁ = x₁·cos a − x₂·sin a
    out₂ = x₂·cos a + x₁·sin a
so that the product of a query at t and a key at s depends on t − s alone. A rotation's transpose is the rotation back,
hence backward is forward with −sin.

Which components make a pair is a matter of layout, and the most repeated confusion of this field:
    half          (x[j], x[j + D/2])     Hugging Face
    interleaved   (x[2j], x[2j + 1])     Meta, llama2.c
The two differ by a permutation of the rows of wq and wk.
"""

from typing import NamedTuple

from numllama.backend import Array, write_to, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.errors import shown

LAYOUTS = ("half", "interleaved")


class RopeCache(NamedTuple):
    """What backward needs: the table, (T, D/2) or (B, 1, T, D/2) each, and the layout."""

    cos: Array
    sin: Array
    layout: str


@accelerated
def rope_forward(
    x: Array, cos: Array, sin: Array, layout: str = "half", *, out: Array | None = None
) -> tuple[Array, RopeCache]:
    """Turn each pair of components by its angle.

    Parameters
    ----------
    x : array, shape (B, H, T, D)
    cos, sin : array, shape (T, D/2) or (B, 1, T, D/2)
        From :func:`rope_table`.
    layout : str
        ``"half"`` (Hugging Face) or ``"interleaved"`` (Meta).
    out : array, shape (B, H, T, D), optional
        Receives the result; it may be x itself.

    Returns
    -------
    out : array, shape (B, H, T, D)
    cache : RopeCache
    """
    check_shape("x", x, (None, None, None, None))
    B, _, T, D = x.shape
    if D % 2:
        raise ValueError(f"x has heads of {D}, but RoPE turns pairs of components and needs an even head size")
    check_shape("cos", cos, (T, D // 2) if cos.ndim == 2 else (B, 1, T, D // 2))
    check_shape("sin", sin, cos.shape)
    if out is not None:
        check_shape("out", out, x.shape)
    first, second = pairs(D, layout)
    x1, x2 = x[..., first], x[..., second]                             # (B, H, T, D/2)
    turned = xp_of(x).empty_like(x)                                    # (B, H, T, D)
    turned[..., first] = x1 * cos - x2 * sin
    turned[..., second] = x2 * cos + x1 * sin
    return write_to(out, turned), RopeCache(cos, sin, layout)


@accelerated
def rope_backward(dout: Array, cache: RopeCache, *, out: Array | None = None) -> Array:
    """Gradient of :func:`rope_forward` with respect to ``x``: the rotation back. `out` receives it, and may be `dout` itself."""
    cos, sin, layout = cache
    check_shape("dout", dout, (None, None, cos.shape[-2], 2 * cos.shape[-1]))
    return rope_forward(dout, cos, -sin, layout, out=out)[0]


@accelerated(of_ops=True)
def ropes_forward(
    xs: tuple[Array, ...], cos: Array, sin: Array, layout: str = "half", *, outs: tuple[Array, ...] | None = None
) -> tuple[tuple[Array, ...], RopeCache]:
    """:func:`rope_forward` of several arrays with one table: queries and keys. `outs` may be `xs` themselves."""
    outs = (None,) * len(xs) if outs is None else outs
    turned = tuple(rope_forward(x, cos, sin, layout, out=out)[0] for x, out in zip(xs, outs, strict=True))
    return turned, RopeCache(cos, sin, layout)


@accelerated(of_ops=True)
def ropes_backward(
    douts: tuple[Array, ...], cache: RopeCache, *, outs: tuple[Array, ...] | None = None
) -> tuple[Array, ...]:
    """Gradients of :func:`ropes_forward` with respect to ``xs``. `outs` receive them, and may be `douts` themselves."""
    outs = (None,) * len(douts) if outs is None else outs
    return tuple(rope_backward(dout, cache, out=out) for dout, out in zip(douts, outs, strict=True))


def pairs(D: int, layout: str) -> tuple[slice, slice]:
    """The places of the first and of the second components of all pairs."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {shown(layout)}, but must be one of {', '.join(LAYOUTS)}")
    if layout == "half":
        return slice(0, D // 2), slice(D // 2, D)
    return slice(0, D, 2), slice(1, D, 2)
