"""Rotary position embedding: each pair of components turns by an angle that grows with the position.   Su et al. 2021, eq. 34

Pair j of a vector at position t turns by a = t · theta^(−2j/D):
    out₁ = x₁·cos a − x₂·sin a
    out₂ = x₂·cos a + x₁·sin a            that is, (x₁, x₂)·cos a + (x₂, x₁)·(−sin a, sin a)
so that the product of a query at t and a key at s depends on t − s alone. A rotation's transpose is the rotation back,
hence backward is forward with −sin.

Which components make a pair is a matter of layout, and the most repeated confusion of this field:
    half          (x[j], x[j + D/2])     Hugging Face
    interleaved   (x[2j], x[2j + 1])     Meta, llama2.c
The two differ by a permutation of the rows of wq and wk.
"""

import math
from collections.abc import Mapping

import numpy as np

from numllama.backend import Array, xp_of
from numllama.checks import check_shape, checked
from numllama.dispatch import accelerated
from numllama.errors import shown

LAYOUTS = ("half", "interleaved")


@checked
def rope_table(
    positions: Array, D: int, theta: float, scaling: Mapping | None = None, dtype: str | np.dtype = "float32"
) -> tuple[Array, Array]:
    """Cosines and sines of the angles, for :func:`rope_forward`.

    Parameters
    ----------
    positions : integer array, shape (T,) or (B, T)
    D : int
        Head size; even.
    theta : float
        The base of the frequencies: 10000 in Llama 2, 500000 in Llama 3.
    scaling : mapping, optional
        What stretches the frequencies, by its ``rope_type``: ``llama3`` (the default) with the keys ``factor``,
        ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``; or ``linear`` with ``factor``.
    dtype : dtype
        Of the tables, which is the dtype of the vectors that they turn. Angles are always computed in float64.

    Returns
    -------
    cos, sin : arrays, shape (T, D/2), or (B, 1, T, D/2) where each sequence has its own positions
    """
    if D < 2 or D % 2:
        raise ValueError(f"D is {D}, but RoPE turns pairs of components and needs an even head size")
    xp = xp_of(positions)
    frequencies = theta ** (-xp.arange(0, D, 2, dtype="float64") / D)  # (D/2,)
    if scaling is not None:
        linear = scaling.get("rope_type") == "linear"                  # position interpolation: Chen et al. 2023
        frequencies = frequencies / scaling["factor"] if linear else _llama3_scaling(frequencies, scaling)
    angles = positions[..., None] * frequencies                        # (T, D/2) or (B, T, D/2)
    if angles.ndim == 3:
        angles = angles[:, None]                                       # (B, 1, T, D/2)
    return xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)


def _llama3_scaling(frequencies: Array, scaling: Mapping) -> Array:
    """Llama 3.1: divide by `factor` the frequencies that make few turns within the original context, blend in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)    # (D/2,)
    kept = ((turns - low) / (high - low)).clip(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


@accelerated
def rope_forward(
    x: Array, cos: Array, sin: Array, layout: str = "half", *, out: Array | None = None
) -> tuple[Array, tuple]:
    """Turn each pair of components by its angle.

    Parameters
    ----------
    x : array, shape (B, H, T, D)
    cos, sin : array, shape (T, D/2) or (B, 1, T, D/2)
        From :func:`rope_table`.
    layout : str
        ``"half"`` (Hugging Face) or ``"interleaved"`` (Meta).
    out : array, shape (B, H, T, D), optional
        Where to write; it may be x itself.

    Returns
    -------
    out : array, shape (B, H, T, D)
    cache : tuple
    """
    check_shape("x", x, (None, None, None, None))
    B, _, T, D = x.shape
    if D % 2:
        raise ValueError(f"x has heads of {D}, but RoPE turns pairs of components and needs an even head size")
    check_shape("cos", cos, (T, D // 2) if cos.ndim == 2 else (B, 1, T, D // 2))
    check_shape("sin", sin, cos.shape)
    xp = xp_of(x)
    out = xp.empty_like(x) if out is None else out                     # (B, H, T, D), in the order that x has in memory
    check_shape("out", out, x.shape)
    first, second = _pairs(D, layout)
    other = xp.empty_like(x)                                           # of each pair the other component
    other[..., first], other[..., second] = x[..., second], x[..., first]
    other *= _join(-sin, sin, layout)
    xp.multiply(x, _join(cos, cos, layout), out=out)
    out += other
    return out, (cos, sin, layout)


@accelerated
def rope_backward(dout: Array, cache: tuple, *, out: Array | None = None) -> Array:
    """Gradient of :func:`rope_forward` with respect to ``x``: the rotation back; written to `out`, which may be `dout` itself."""
    cos, sin, layout = cache
    check_shape("dout", dout, (None, None, cos.shape[-2], 2 * cos.shape[-1]))
    return rope_forward(dout, cos, -sin, layout, out=out)[0]


@accelerated(of_ops=True)
def ropes_forward(
    xs: tuple[Array, ...], cos: Array, sin: Array, layout: str = "half", *, outs: tuple[Array, ...] | None = None
) -> tuple[tuple[Array, ...], tuple]:
    """:func:`rope_forward` of several arrays that one table turns: queries and keys. `outs` may be `xs` themselves."""
    outs = (None,) * len(xs) if outs is None else outs
    return tuple(rope_forward(x, cos, sin, layout, out=out)[0] for x, out in zip(xs, outs, strict=True)), (cos, sin, layout)


@accelerated(of_ops=True)
def ropes_backward(
    douts: tuple[Array, ...], cache: tuple, *, outs: tuple[Array, ...] | None = None
) -> tuple[Array, ...]:
    """Gradients of :func:`ropes_forward` with respect to ``xs``; written to `outs`, which may be `douts` themselves."""
    outs = (None,) * len(douts) if outs is None else outs
    return tuple(rope_backward(dout, cache, out=out) for dout, out in zip(douts, outs, strict=True))


def _join(x1: Array, x2: Array, layout: str) -> Array:
    """Vectors of these first and second components: (..., D/2) twice -> (..., D)."""
    out = xp_of(x1).empty((*x1.shape[:-1], 2 * x1.shape[-1]), x1.dtype)
    first, second = _pairs(out.shape[-1], layout)
    out[..., first], out[..., second] = x1, x2
    return out


def _pairs(D: int, layout: str) -> tuple[slice, slice]:
    """Where the first and the second component of every pair stand."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {shown(layout)}, but must be one of {', '.join(LAYOUTS)}")
    if layout == "half":
        return slice(0, D // 2), slice(D // 2, D)
    return slice(0, D, 2), slice(1, D, 2)
