"""Mistakes in the backward of SwiGLU.  The right one, with σ = sigmoid(gate):

    dgate = dout · up · (σ + gate·σ·(1 − σ))        dup = dout · gate·σ
"""

import numpy as np

from numllama import ops
from numllama.learn.mistakes.mistake import Catalogue
from numllama.ops.swiglu import sigmoid, swiglu_backward

catalogue = Catalogue()
backward = catalogue.backward


def silu(g):
    return g * sigmoid(g)


def slope(g):
    """silu'(g)."""
    return sigmoid(g) * (1 + g * (1 - sigmoid(g)))


@backward("swiglu", "The second term of silu' is missing: σ instead of σ + gate·σ·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate)}


@backward("swiglu", "The first term of silu' is missing: gate·σ·(1 − σ) instead of σ + gate·σ·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * gate * sigmoid(gate) * (1 - sigmoid(gate))}


@backward("swiglu", "silu' is the derivative of the sigmoid: σ·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 - sigmoid(gate))}


@backward("swiglu", "The second term of silu' lacks σ: σ + gate·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * (sigmoid(gate) + gate * (1 - sigmoid(gate)))}


@backward("swiglu", "The second term of silu' lacks the gate: σ + σ·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (2 - sigmoid(gate))}


@backward("swiglu", "The second term of silu' lacks 1 − σ: σ + gate·σ.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 + gate)}


@backward("swiglu", "silu' lacks the outer σ: 1 + gate·(1 − σ).")
def _(dout, gate, up):
    return {"gate": dout * up * (1 + gate * (1 - sigmoid(gate)))}


@backward("swiglu", "The second term of silu' is subtracted.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 - gate * (1 - sigmoid(gate)))}


@backward("swiglu", "silu' has 1 − silu instead of 1 − σ.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 + gate * (1 - silu(gate)))}


@backward("swiglu", "silu' has 1 + σ instead of 1 − σ.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 + gate * (1 + sigmoid(gate)))}


@backward("swiglu", "silu' has σ instead of 1 − σ: σ·(1 + gate·σ).")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 + silu(gate))}


@backward("swiglu", "In silu' = silu + σ·(1 − silu), the first term is missing.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 - silu(gate))}


@backward("swiglu", "In silu' = silu + σ·(1 − silu), the second term is subtracted.")
def _(dout, gate, up):
    return {"gate": dout * up * (silu(gate) - sigmoid(gate) * (1 - silu(gate)))}


@backward("swiglu", "silu' is silu·(1 − silu), as if silu were a sigmoid.")
def _(dout, gate, up):
    return {"gate": dout * up * silu(gate) * (1 - silu(gate))}


@backward("swiglu", "silu' is σ·(1 − σ)·(1 + gate): the first term has 1 − σ too.")
def _(dout, gate, up):
    return {"gate": dout * up * sigmoid(gate) * (1 - sigmoid(gate)) * (1 + gate)}


@backward("swiglu", "silu' is taken at silu(gate) instead of the gate.")
def _(dout, gate, up):
    return {"gate": dout * up * slope(silu(gate))}


@backward("swiglu", "silu' is taken at up instead of the gate.")
def _(dout, gate, up):
    return {"gate": dout * up * slope(up)}


@backward("swiglu", "dgate has silu instead of its derivative.")
def _(dout, gate, up):
    return {"gate": dout * up * silu(gate)}


@backward("swiglu", "dgate lacks silu': dout·up.")
def _(dout, gate, up):
    return {"gate": dout * up}


@backward("swiglu", "dgate lacks up: dout·silu'(gate).")
def _(dout, gate, up):
    return {"gate": dout * slope(gate)}


@backward("swiglu", "dgate has silu(up) instead of up.")
def _(dout, gate, up):
    return {"gate": dout * silu(up) * slope(gate)}


@backward("swiglu", "dgate has the gate instead of up.")
def _(dout, gate, up):
    return {"gate": dout * gate * slope(gate)}


@backward("swiglu", "dgate has the derivative of ReLU.")
def _(dout, gate, up):
    return {"gate": dout * up * (gate > 0)}


@backward("swiglu", "dgate has the derivative of GELU.")
def _(dout, gate, up):
    return {"gate": ops.gelu_backward(dout * up, ops.gelu_forward(gate)[1])}


@backward("swiglu", "dgate has the derivative of quick GELU, gate·σ(1.702·gate).")
def _(dout, gate, up):
    return {"gate": dout * up * slope(1.702 * gate)}


@backward("swiglu", "dgate and dup are exchanged.")
def _(dout, gate, up):
    return swiglu_backward(dout, ops.swiglu_forward(gate, up)[1])[::-1]


@backward("swiglu", "The backward takes gate for up and up for gate: out = gate·silu(up).")
def _(dout, gate, up):
    return swiglu_backward(dout, ops.swiglu_forward(up, gate)[1])[::-1]


@backward("swiglu", "dup has the gate instead of silu(gate).")
def _(dout, gate, up):
    return {"up": dout * gate}


@backward("swiglu", "dup has σ(gate) instead of silu(gate).")
def _(dout, gate, up):
    return {"up": dout * sigmoid(gate)}


@backward("swiglu", "dup has silu'(gate) instead of silu(gate).")
def _(dout, gate, up):
    return {"up": dout * slope(gate)}


@backward("swiglu", "dup has silu(up) instead of silu(gate).")
def _(dout, gate, up):
    return {"up": dout * silu(up)}


@backward("swiglu", "dup is dout: silu(gate) is missing.")
def _(dout, gate, up):
    return {"up": dout}


@backward("swiglu", "dup has max(gate, 0) instead of silu(gate).")
def _(dout, gate, up):
    return {"up": dout * np.maximum(gate, 0)}


@backward("swiglu", "The gate gets no gradient.")
def _(dout, gate, up):
    return {"gate": None}


@backward("swiglu", "up gets no gradient.")
def _(dout, gate, up):
    return {"up": None}
