"""Mistakes in the backward of RoPE.  The right one turns each pair back: the forward with −sin."""

from dataclasses import replace

import numpy as np

from numllama import ops
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue
from numllama.ops.rope import pairs

catalogue = Catalogue()
backward, turned = catalogue.backward, OPS["rope"].forward


def with_table(dout, positions, config):
    """Turned back by the angles of other positions or of another configuration."""
    cos, sin = ops.rope_table(positions, config.head_dim, config.rope_theta, config.rope_scaling, "float64")
    return {"x": turned(dout, cos, -sin, config.rope_layout)}


def by_halves(dout, layout, combined):
    """The gradient from its pairs' first and second components: `combined` returns both."""
    first, second = pairs(dout.shape[-1], layout)
    dx = np.empty_like(dout)
    dx[..., first], dx[..., second] = combined(dout[..., first], dout[..., second])
    return {"x": dx}


@backward("rope", "RoPE turns the gradient forward instead of back.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(dout, cos, sin, layout)}


@backward("rope", "RoPE is left out on the way back: the gradient is not turned.")
def _(dout, x, cos, sin, layout):
    return {"x": dout}


@backward("rope", "RoPE turns the gradient back twice.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(turned(dout, cos, -sin, layout), cos, -sin, layout)}


@backward("rope", "RoPE turns the gradient's pairs of the other layout: neighbours or halves.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(dout, cos, -sin, "interleaved" if layout == "half" else "half")}


@backward("rope", "RoPE's gradient has only the part with the cosine.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(dout, cos, 0 * sin, layout)}


@backward("rope", "RoPE's gradient has only the part with the sine.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(dout, 0 * cos, -sin, layout)}


@backward("rope", "In RoPE's gradient, both sines have a plus.")
def _(dout, x, cos, sin, layout):
    return by_halves(dout, layout, lambda d1, d2: (d1 * cos + d2 * sin, d2 * cos + d1 * sin))


@backward("rope", "In RoPE's gradient, both sines have a minus.")
def _(dout, x, cos, sin, layout):
    return by_halves(dout, layout, lambda d1, d2: (d1 * cos - d2 * sin, d2 * cos - d1 * sin))


@backward("rope", "RoPE's gradient is computed in place: the second half is turned with the new first half.")
def _(dout, x, cos, sin, layout):
    return by_halves(dout, layout, lambda d1, d2: (d1 * cos + d2 * sin, d2 * cos - (d1 * cos + d2 * sin) * sin))


@backward("rope", "In RoPE's gradient, cosines and sines are exchanged.")
def _(dout, x, cos, sin, layout):
    return {"x": turned(dout, sin, -cos, layout)}


@backward("rope", "In RoPE's gradient, the halves of each head are exchanged.")
def _(dout, x, cos, sin, layout):
    return {"x": np.roll(turned(dout, cos, -sin, layout), x.shape[-1] // 2, -1)}


@backward("rope", "Only the first component of each pair gets its gradient turned back.")
def _(dout, x, cos, sin, layout):
    return by_halves(dout, layout, lambda d1, d2: (d1 * cos + d2 * sin, d2))


@backward("rope", "RoPE turns the gradient back as if positions went on over all documents of a sequence.")
def _(dout, x, config):
    return with_table(dout, np.arange(x.shape[2]), config)


@backward("rope", "RoPE turns the gradient back by the angles of the next position.")
def _(dout, positions, config):
    return with_table(dout, positions + 1, config)


@backward("rope", "RoPE turns the gradient back by the angles of the position before.")
def _(dout, positions, config):
    return with_table(dout, positions - 1, config)


@backward("rope", "RoPE turns the gradient back by frequencies without the scaling of Llama 3.1.")
def _(dout, positions, config):
    return with_table(dout, positions, replace(config, rope_scaling=None))


@backward("rope", "RoPE turns the gradient back with theta 10000 instead of the configuration's.")
def _(dout, positions, config):
    return with_table(dout, positions, replace(config, rope_theta=10000.0))


@backward("rope", "RoPE turns the gradient back by the positions of the heads: axes of tokens and heads are exchanged.")
def _(dout, x, config):
    return {"x": with_table(dout.swapaxes(1, 2), np.arange(x.shape[1]), config)["x"].swapaxes(1, 2)}


@backward("q_rotated", "The gradient stops at RoPE: queries get none.")
def _(dout, x, cos, sin, layout):
    return {"x": None}


@backward("k_rotated", "The gradient stops at RoPE: keys get none.")
def _(dout, x, cos, sin, layout):
    return {"x": None}
