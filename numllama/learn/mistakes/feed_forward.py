"""Mistakes of SwiGLU."""

import numpy as np

from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue
from numllama.ops import gelu_forward
from numllama.ops.swiglu import sigmoid

catalogue = Catalogue()
forward, swiglu = catalogue.forward, OPS["swiglu"].forward


def silu(x):
    return x * sigmoid(x)


@forward("swiglu", "Gate and up are exchanged: SiLU is applied to up.")
def _(gate, up):
    return swiglu(up, gate)


@forward("swiglu", "SiLU is applied to both gate and up.")
def _(gate, up):
    return silu(gate) * silu(up)


@forward("swiglu", "SiLU is applied to the product of gate and up.")
def _(gate, up):
    return silu(gate * up)


@forward("swiglu", "SiLU is missing: the result is gate · up.")
def _(gate, up):
    return gate * up


@forward("swiglu", "Up is missing: the result is SiLU(gate).")
def _(gate):
    return silu(gate)


@forward("swiglu", "Gate is missing: the result is SiLU(up).")
def _(up):
    return silu(up)


@forward("swiglu", "Gate is missing: the result is up.")
def _(up):
    return up


@forward("swiglu", "SiLU(gate) and up are added instead of multiplied.")
def _(gate, up):
    return silu(gate) + up


@forward("swiglu", "SiLU is applied to the sum of gate and up.")
def _(gate, up):
    return silu(gate + up)


@forward("swiglu", "The product is SiLU(gate) · gate; up is not used.")
def _(gate):
    return swiglu(gate, gate)


@forward("swiglu", "The gate's function is a sigmoid instead of SiLU: this is GLU.")
def _(gate, up):
    return sigmoid(gate) * up


@forward("swiglu", "The sigmoid is applied to SiLU(gate): sigmoid(gate · sigmoid(gate)) · up.")
def _(gate, up):
    return sigmoid(silu(gate)) * up


@forward("swiglu", "The sign inside the sigmoid is wrong: gate · sigmoid(-gate) · up.")
def _(gate, up):
    return gate * sigmoid(-gate) * up


@forward("swiglu", "SiLU is applied twice.")
def _(gate, up):
    return silu(silu(gate)) * up


@forward("swiglu", "The gate's function is the tanh form of GELU instead of SiLU.")
def _(gate, up):
    return gelu_forward(gate)[0] * up


@forward("swiglu", "The gate's function is the exact GELU instead of SiLU.")
def _(gate, up):
    return gelu_forward(gate, "none")[0] * up


@forward("swiglu", "The gate's function is gate · sigmoid(1.702 gate), the quick GELU, instead of SiLU.")
def _(gate, up):
    return gate * sigmoid(1.702 * gate) * up


@forward("swiglu", "The gate's function is ReLU instead of SiLU.")
def _(gate, up):
    return np.maximum(gate, 0) * up


@forward("swiglu", "The gate's function is the square of ReLU instead of SiLU.")
def _(gate, up):
    return np.maximum(gate, 0) ** 2 * up


@forward("swiglu", "The gate's function is tanh instead of SiLU.")
def _(gate, up):
    return np.tanh(gate) * up


@forward("swiglu", "The gate's function is softplus instead of SiLU.")
def _(gate, up):
    return np.logaddexp(0, gate) * up


@forward("swiglu", "The gate's function is ELU instead of SiLU.")
def _(gate, up):
    return np.where(gate > 0, gate, np.expm1(np.minimum(gate, 0))) * up


@forward("swiglu", "The gate's function is a ReLU with a slope of 0.01 below zero, instead of SiLU.")
def _(gate, up):
    return np.where(gate > 0, gate, 0.01 * gate) * up


@forward("swiglu", "The gate's function is hard swish, gate · relu6(gate + 3) / 6, instead of SiLU.")
def _(gate, up):
    return gate * np.clip(gate + 3, 0, 6) / 6 * up


@forward("swiglu", "The gate's function is a softmax over the hidden units instead of SiLU.")
def _(gate, up):
    return OPS["softmax"].forward(gate, True) * up


@forward("swiglu", "The gate's function is Mish, gate · tanh(softplus(gate)), instead of SiLU.")
def _(gate, up):
    return gate * np.tanh(np.logaddexp(0, gate)) * up


@forward("swiglu", "The gate's function is softsign, gate / (1 + |gate|), instead of SiLU.")
def _(gate, up):
    return gate / (1 + np.abs(gate)) * up


@forward("swiglu", "The product is SiLU(gate) · (up + 1), as in gpt-oss.")
def _(gate, up):
    return silu(gate) * (up + 1)


@forward("swiglu", "The product is (SiLU(gate) + 1) · up.")
def _(gate, up):
    return (silu(gate) + 1) * up


@forward("swiglu", "The product is SiLU(gate) · sigmoid(up).")
def _(gate, up):
    return silu(gate) * sigmoid(up)


@forward("swiglu", "The product is SiLU(gate) · SiLU(gate); up is not used.")
def _(gate):
    return silu(gate) ** 2
