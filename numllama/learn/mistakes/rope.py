"""Mistakes of RoPE's rotation."""

from dataclasses import replace

import numpy as np

from numllama.backend import BFLOAT16
from numllama.learn import equations
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.learn.mistakes.rope_table import yarn
from numllama.learn.plain_llama import merge_heads, split_heads
from numllama.ops.rope import LAYOUTS, pairs

catalogue = Catalogue()
forward, rope = catalogue.forward, OPS["rope"].forward


def halves(x, layout):
    """The first and the second components of all pairs, (..., D/2) each."""
    first, second = pairs(x.shape[-1], layout)
    return x[..., first], x[..., second]


def joined(x1, x2, layout):
    """The vectors with these components."""
    out = np.empty((*x1.shape[:-1], 2 * x1.shape[-1]))
    first, second = pairs(out.shape[-1], layout)
    out[..., first], out[..., second] = x1, x2
    return out


def tables(positions, frequencies, config):
    angles = equations.angles(positions, frequencies)
    return equations.cos(angles, config), equations.sin(angles, config)


def other(layout):
    return LAYOUTS[1 - LAYOUTS.index(layout)]


@forward("rope", "The pairs are those of the other layout: halves and neighbours are exchanged.")
def _(x, cos, sin, layout):
    return rope(x, cos, sin, other(layout))


@forward("rope", "The pairs turn the wrong way: the signs of the sines are exchanged.")
def _(x, cos, sin, layout):
    return rope(x, cos, -sin, layout)


@forward("rope", "RoPE is missing: the heads pass unchanged.")
def _(x):
    return x


@forward("rope", "The minus sign is missing: both components add their products with the sine.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * cos + x2 * sin, x2 * cos + x1 * sin, layout)


@forward("rope", "Both components subtract their products with the sine.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * cos - x2 * sin, x2 * cos - x1 * sin, layout)


@forward("rope", "The components of a pair are not exchanged for the sine: the result is x·cos + x·sin.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * (cos + sin), x2 * (cos + sin), layout)


@forward("rope", "The result is x·cos: the part with the sine is missing.")
def _(x, cos, sin, layout):
    return rope(x, cos, np.zeros_like(sin), layout)


@forward("rope", "Cosine and sine are exchanged.")
def _(x, cos, sin, layout):
    return rope(x, sin, cos, layout)


@forward("rope", "The second component is computed from the first one's new value.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 := x1 * cos - x2 * sin, x2 * cos + x1 * sin, layout)


@forward("rope", "The components are written in the order of the other layout.")
def _(x, cos, sin, layout):
    return joined(*halves(rope(x, cos, sin, layout), layout), other(layout))


@forward("rope", "The components are read in the order of the other layout.")
def _(x, cos, sin, layout):
    return rope(joined(*halves(x, other(layout)), layout), cos, sin, layout)


@forward("rope", "The pairs are right, but the angles stand in the table in the order of the other layout.")
def _(x, cos, sin, layout):
    (c1, c2), (s1, s2) = (halves(joined(table, table, other(layout)), layout) for table in (cos, sin))
    x1, x2 = halves(x, layout)
    return joined(x1 * c1 - x2 * s1, x2 * c2 + x1 * s2, layout)


@forward("rope", "The pairs turn twice.")
def _(x, cos, sin, layout):
    return rope(rope(x, cos, sin, layout), cos, sin, layout)


@forward("rope", "Only the first half of the components turns, by the first half of the angles.")
def _(x, cos, sin, layout):
    n = x.shape[-1] // 4 * 2
    if not n:
        raise DoesNotApply
    return np.concatenate([rope(x[..., :n], cos[..., : n // 2], sin[..., : n // 2], layout), x[..., n:]], -1)


@forward("rope", "Only the first half of the pairs turns.")
def _(x, cos, sin, layout):
    turns = np.arange(cos.shape[-1]) < cos.shape[-1] // 2
    return rope(x, np.where(turns, cos, 1), np.where(turns, sin, 0), layout)


@forward("rope", "All pairs turn by the angle of the first one.")
def _(x, cos, sin, layout):
    return rope(x, *(np.repeat(table[..., :1], table.shape[-1], -1) for table in (cos, sin)), layout)


@forward("rope", "A head is taken for a position: head h turns by the angles of position h.")
def _(x, frequencies, config, layout):
    return rope(x.swapaxes(1, 2), *tables(np.arange(x.shape[1]), frequencies, config), layout).swapaxes(1, 2)


@forward("q_rotated k_rotated", "RoPE turns the whole width before the split into heads, with frequencies of that width.")
def _(x, positions, config, layout):
    whole = merge_heads(x)[:, None]                                                              # (B, 1, T, H·D)
    wide = equations.frequencies(positions, replace(config, head_dim=whole.shape[-1]))
    return split_heads(rope(whole, *tables(positions, wide, config), layout)[:, 0], x.shape[-1])


@forward("rope", "The rotated values are added to the ones before.")
def _(x, cos, sin, layout):
    return x + rope(x, cos, sin, layout)


@forward("rope", "The tables are rounded to float16.")
def _(x, cos, sin, layout):
    return rope(x, *(table.astype(np.float16).astype(float) for table in (cos, sin)), layout)


@forward("rope", "The tables are rounded to bfloat16.")
def _(x, cos, sin, layout):
    return rope(x, *(table.astype(BFLOAT16).astype(float) for table in (cos, sin)), layout)


@forward("q_rotated", "The norm of the queries follows RoPE instead of preceding it.")
def _(q_heads, w_q_norm, eps, cos, sin, layout):
    return OPS["rmsnorm"].forward(rope(q_heads, cos, sin, layout), w_q_norm, eps)


@forward("k_rotated", "The norm of the keys follows RoPE instead of preceding it.")
def _(k_heads, w_k_norm, eps, cos, sin, layout):
    return OPS["rmsnorm"].forward(rope(k_heads, cos, sin, layout), w_k_norm, eps)


@forward("q_rotated", "RoPE turns the queries as they were before their norm.")
def _(q_heads, q_norm, cos, sin, layout):
    return rope(q_heads, cos, sin, layout)


@forward("k_rotated", "RoPE turns the keys as they were before their norm.")
def _(k_heads, k_norm, cos, sin, layout):
    return rope(k_heads, cos, sin, layout)


@forward("rope", "Only the first component of each pair changes.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * cos - x2 * sin, x2, layout)


@forward("rope", "Only the second component of each pair changes.")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1, x2 * cos + x1 * sin, layout)


@forward("rope", "The components of a pair are not exchanged for the sine: rotate_half gives (−x₁, x₂), not (−x₂, x₁).")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * (cos - sin), x2 * (cos + sin), layout)


@forward("rope", "The components of a pair are not exchanged for the sine: rotate_half gives (x₁, −x₂), not (−x₂, x₁).")
def _(x, cos, sin, layout):
    x1, x2 = halves(x, layout)
    return joined(x1 * (cos + sin), x2 * (cos - sin), layout)


@forward("rope", "Heads have different frequencies: the exponents count through the whole width, 2j/(H·D).")
def _(x, positions, config, layout):
    H, D = x.shape[1], x.shape[-1]
    exponents = np.arange(0, H * D, 2).reshape(H, 1, D // 2) / (H * D)
    angles = positions[..., None, :, None] * config.rope_theta**-exponents                       # (H, T, D/2) or (B, H, T, D/2)
    (x1, x2), cos, sin = halves(x, layout), np.cos(angles), np.sin(angles)
    return joined(x1 * cos - x2 * sin, x2 * cos + x1 * sin, layout)


@forward("rope", "Cosine and sine are multiplied by 0.1·ln(factor) + 1, which is for YaRN.")
def _(x, cos, sin, layout, config):
    return rope(x, cos, sin, layout) * yarn(config)
