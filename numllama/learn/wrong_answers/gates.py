"""Wrong answers to the elementwise ops: SwiGLU, GELU, GeGLU and the soft cap."""

import math

import numpy as np

from numllama.backend import erf
from numllama.learn.wrong_answers.table import Table
from numllama.ops.gelu import CUBIC, SLOPE
from numllama.ops.swiglu import sigmoid


def silu(g):
    return g * sigmoid(g)


def silu_slope(g):
    return sigmoid(g) * (1 + g * (1 - sigmoid(g)))


def inner(x):
    return SLOPE * (x + CUBIC * x**3)


def gelu(x):
    return x * (1 + np.tanh(inner(x))) / 2


def gelu_slope(x):
    t = np.tanh(inner(x))
    return (1 + t) / 2 + x * (1 - t * t) / 2 * SLOPE * (1 + 3 * CUBIC * x * x)


def exact_gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def exact_slope(x):
    return (1 + erf(x / math.sqrt(2))) / 2 + x * density(x)


def density(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


# ------------------------------------------------------------------------------------------------ SwiGLU


def swiglu_values(dout, gate, up):
    (B, T, F), s = gate.shape, sigmoid(gate)
    N, d = B * T, dout * up
    return locals()


SWIGLU = Table("swiglu", swiglu_values, {
    "out": [
        ("out uses sigmoid(gate) in place of silu(gate): the gate itself is a factor too.", lambda s, up: s * up),
        ("out is gate * up: the sigmoid is missing.", lambda gate, up: gate * up),
        ("out is silu(gate): up is missing.", lambda gate: silu(gate)),
        ("out is silu(up) * gate: gate and up are exchanged.", lambda gate, up: silu(up) * gate),
        ("out adds up instead of multiplying by it.", lambda gate, up: silu(gate) + up),
        ("out uses ReLU in place of silu: silu(gate) = gate * sigmoid(gate).", lambda gate, up: np.maximum(gate, 0) * up),
        ("out uses gelu in place of silu: that is GeGLU.", lambda gate, up: gelu(gate) * up),
        ("out uses tanh in place of silu: silu(gate) = gate * sigmoid(gate).", lambda gate, up: np.tanh(gate) * up),
        ("out uses tanh(gate) in place of tanh(gate / 2) in the sigmoid.",
         lambda gate, up: gate * up * (1 + np.tanh(gate)) / 2),
        ("out is silu(gate * up): silu is that of the gate alone.", lambda gate, up: silu(gate * up)),
        ("out uses sigmoid(-gate) in place of sigmoid(gate).", lambda gate, up, s: gate * (1 - s) * up),
        ("out is silu(gate) * silu(up): up has no activation.", lambda gate, up: silu(gate) * silu(up)),
    ],
    "dgate": [
        ("dgate uses sigma in place of silu': silu is a product, and its derivative has a second term, silu * (1 - sigma).",
         lambda d, s: d * s),
        ("dgate lacks the first term of silu': silu' = sigma + silu * (1 - sigma).", lambda d, gate, s: d * gate * s * (1 - s)),
        ("dgate uses the derivative of the sigmoid, sigma * (1 - sigma), in place of silu'.", lambda d, s: d * s * (1 - s)),
        ("dgate lacks sigma in the second term of silu': it is gate * sigma * (1 - sigma).",
         lambda d, gate, s: d * (s + gate * (1 - s))),
        ("dgate lacks the gate in the second term of silu': it is gate * sigma * (1 - sigma).",
         lambda d, s: d * (s + s * (1 - s))),
        ("dgate lacks 1 - sigma in the second term of silu': sigma' = sigma * (1 - sigma).",
         lambda d, gate, s: d * (s + gate * s)),
        ("dgate lacks sigma as the outer factor: silu' = sigma * (1 + gate * (1 - sigma)).",
         lambda d, gate, s: d * (1 + gate * (1 - s))),
        ("dgate subtracts the second term of silu': silu' = sigma + silu * (1 - sigma).",
         lambda d, gate, s: d * (s - gate * s * (1 - s))),
        ("dgate multiplies the two terms of silu': silu' = sigma + silu * (1 - sigma).",
         lambda d, gate, s: d * s * gate * s * (1 - s)),
        ("dgate uses 1 - silu in place of 1 - sigma: silu' = sigma + silu * (1 - sigma).",
         lambda d, gate, s: d * (s + gate * s * (1 - gate * s))),
        ("dgate uses 1 + sigma in place of 1 - sigma: sigma' = sigma * (1 - sigma).",
         lambda d, gate, s: d * (s + gate * s * (1 + s))),
        ("dgate uses sigma in place of 1 - sigma in the second term: sigma' = sigma * (1 - sigma).",
         lambda d, gate, s: d * (s + gate * s * s)),
        ("dgate uses 1 - sigma² in place of sigma * (1 - sigma): that is the derivative of tanh.",
         lambda d, gate, s: d * (s + gate * (1 - s * s))),
        ("dgate uses silu * (1 - silu) in place of silu': silu is not a sigmoid.",
         lambda d, gate, s: d * gate * s * (1 - gate * s)),
        ("dgate has silu + (1 - sigma): the first term of silu' is sigma, and silu multiplies 1 - sigma.",
         lambda d, gate, s: d * (gate * s + 1 - s)),
        ("dgate uses silu * sigma in place of the first term: silu' = silu + sigma * (1 - silu).",
         lambda d, gate, s: d * s * (1 - gate * s)),
        ("dgate uses silu(gate) in place of silu'(gate).", lambda d, gate: d * silu(gate)),
        ("dgate uses sigmoid(-gate) in place of sigmoid(gate).", lambda d, gate, s: d * (1 - s) * (1 + gate * s)),
        ("dgate takes silu' at silu(gate) instead of the gate.", lambda d, gate: d * silu_slope(silu(gate))),
        ("dgate takes silu' at up instead of the gate.", lambda d, up: d * silu_slope(up)),
        ("dgate lacks silu': it is dout * up.", lambda d: d),
        ("dgate lacks up, the other factor of out.", lambda dout, gate: dout * silu_slope(gate)),
        ("dgate lacks up, and uses sigma in place of silu'.", lambda dout, s: dout * s),
        ("dgate lacks up, and uses the sigmoid's derivative in place of silu'.", lambda dout, s: dout * s * (1 - s)),
        ("dgate uses silu(up) in place of up.", lambda dout, gate, up: dout * silu(up) * silu_slope(gate)),
        ("dgate uses the gate in place of up.", lambda dout, gate: dout * gate * silu_slope(gate)),
        ("dgate uses the derivative of ReLU.", lambda d, gate: d * (gate > 0)),
        ("dgate has the derivative of gelu: the activation is silu.", lambda d, gate: d * gelu_slope(gate)),
        ("dgate uses tanh(gate) in place of tanh(gate / 2) in the sigmoid.",
         lambda d, gate: d * ((1 + np.tanh(gate)) / 2 + gate * (1 + np.tanh(gate)) / 2 * (1 - np.tanh(gate)) / 2)),
        ("dgate has silu' squared: it is a factor once.", lambda d, gate: d * silu_slope(gate) ** 2),
    ],
    "dup": [
        ("dup uses the gate in place of silu(gate).", lambda dout, gate: dout * gate),
        ("dup uses sigmoid(gate) in place of silu(gate).", lambda dout, s: dout * s),
        ("dup uses silu'(gate) in place of silu(gate): up is multiplied by silu itself.",
         lambda dout, gate: dout * silu_slope(gate)),
        ("dup uses silu(up) in place of silu(gate).", lambda dout, up: dout * silu(up)),
        ("dup is dout: it lacks silu(gate).", lambda dout: dout),
        ("dup is dout * out: it still has the factor up.", lambda dout, out: dout * out),
        ("dup is dout * up: the factor is silu(gate).", lambda d: d),
        ("dup uses max(gate, 0) in place of silu(gate).", lambda dout, gate: dout * np.maximum(gate, 0)),
        ("dup uses gelu(gate) in place of silu(gate).", lambda dout, gate: dout * gelu(gate)),
        ("dup is silu(gate), without dout.", lambda gate: silu(gate)),
        ("dup goes through silu' of up: up has no activation.", lambda dout, gate, up: dout * silu(gate) * silu_slope(up)),
        ("dup uses gate * (1 - sigmoid(gate)) in place of silu(gate).", lambda dout, gate, s: dout * gate * (1 - s)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ GELU


def gelu_values(dout, x):
    (B, T, F), t = x.shape, np.tanh(inner(x))
    N, slope, phi = B * T, SLOPE * (1 + 3 * CUBIC * x * x), (1 + t) / 2
    return locals()


def gelu_of(x, u):
    return x * (1 + np.tanh(u)) / 2


def slope_of(x, u, du):
    t = np.tanh(u)
    return (1 + t) / 2 + x * (1 - t * t) / 2 * du


GELU = Table("gelu", gelu_values, {
    "out": [
        ("out is the exact form, with erf: this exercise has the tanh form.", lambda x: exact_gelu(x)),
        ("out is x * sigmoid(1.702 x), another approximation: this exercise has the tanh form.",
         lambda x: x * sigmoid(1.702 * x)),
        ("out is silu, x * sigmoid(x).", lambda x: silu(x)),
        ("out is ReLU.", lambda x: np.maximum(x, 0)),
        ("out lacks the factor 1/2: out = x * (1 + tanh u) / 2.", lambda out: 2 * out),
        ("out lacks the 1 in 1 + tanh u: out = x * (1 + tanh u) / 2.", lambda x, t: x * t / 2),
        ("out lacks x: it is Φ(x).", lambda phi: phi),
        ("out lacks the cubic term of u.", lambda x: gelu_of(x, SLOPE * x)),
        ("out lacks SLOPE in u.", lambda x: gelu_of(x, x + CUBIC * x**3)),
        ("out lacks the root in u: SLOPE is √(2/π).", lambda x: gelu_of(x, 2 / math.pi * (x + CUBIC * x**3))),
        ("out does not multiply the cubic term by SLOPE.", lambda x: gelu_of(x, SLOPE * x + CUBIC * x**3)),
        ("out uses x² in place of x³ in u.", lambda x: gelu_of(x, SLOPE * (x + CUBIC * x**2))),
        ("out uses tanh(x) in place of tanh(u).", lambda x: gelu_of(x, x)),
        ("out uses √(2π) in place of √(2/π).", lambda x: gelu_of(x, math.sqrt(2 * math.pi) * (x + CUBIC * x**3))),
        ("out uses 1 - tanh u in place of 1 + tanh u.", lambda x, t: x * (1 - t) / 2),
    ],
    "dx": [
        ("dx has Φ(x) only: u depends on x too, which gives the second term.", lambda dout, phi: dout * phi),
        ("dx has the second term only: x is also a factor, which gives (1 + tanh u) / 2.",
         lambda dout, x, t, slope: dout * x * (1 - t * t) / 2 * slope),
        ("dx is the derivative of the exact form, with erf: forward has the tanh form.", lambda dout, x: dout * exact_slope(x)),
        ("dx adds x times the normal density to the tanh form's Φ: the second term is that of tanh.",
         lambda dout, x, phi: dout * (phi + x * density(x))),
        ("dx uses 1 - tanh u in place of 1 - tanh² u.",
         lambda dout, x, t, slope: dout * ((1 + t) / 2 + x * (1 - t) / 2 * slope)),
        ("dx uses 1 + tanh² u in place of 1 - tanh² u.",
         lambda dout, x, t, slope: dout * ((1 + t) / 2 + x * (1 + t * t) / 2 * slope)),
        ("dx lacks u': the chain rule gives tanh'(u) * u'.",
         lambda dout, x, t: dout * ((1 + t) / 2 + x * (1 - t * t) / 2)),
        ("dx lacks the 3 in u': (x³)' = 3x².", lambda dout, x: dout * slope_of(x, inner(x), SLOPE * (1 + CUBIC * x * x))),
        ("dx uses 2 in place of 3 in u': (x³)' = 3x².",
         lambda dout, x: dout * slope_of(x, inner(x), SLOPE * (1 + 2 * CUBIC * x * x))),
        ("dx lacks the cubic term in u'.", lambda dout, x: dout * slope_of(x, inner(x), SLOPE)),
        ("dx lacks SLOPE in u'.", lambda dout, x: dout * slope_of(x, inner(x), 1 + 3 * CUBIC * x * x)),
        ("dx uses x³ in place of x² in u'.", lambda dout, x: dout * slope_of(x, inner(x), SLOPE * (1 + 3 * CUBIC * x**3))),
        ("dx uses x in place of x² in u'.", lambda dout, x: dout * slope_of(x, inner(x), SLOPE * (1 + 3 * CUBIC * x))),
        ("dx does not multiply the cubic term of u' by SLOPE.",
         lambda dout, x: dout * slope_of(x, inner(x), SLOPE + 3 * CUBIC * x * x)),
        ("dx uses u in place of its derivative u'.", lambda dout, x: dout * slope_of(x, inner(x), inner(x))),
        ("dx lacks x in the second term: it is x * (1 - tanh² u) / 2 * u'.",
         lambda dout, t, slope: dout * ((1 + t) / 2 + (1 - t * t) / 2 * slope)),
        ("dx lacks the 1/2 in its second term.", lambda dout, x, t, slope: dout * ((1 + t) / 2 + x * (1 - t * t) * slope)),
        ("dx lacks the 1/2 in its first term.", lambda dout, x, t, slope: dout * (1 + t + x * (1 - t * t) / 2 * slope)),
        ("dx is twice what it should be: both terms have the 1/2 of (1 + tanh u) / 2.", lambda dx: 2 * dx),
        ("dx lacks the 1 in 1 + tanh u.", lambda dout, x, t, slope: dout * (t / 2 + x * (1 - t * t) / 2 * slope)),
        ("dx subtracts its second term, which must be added.",
         lambda dout, x, t, slope: dout * ((1 + t) / 2 - x * (1 - t * t) / 2 * slope)),
        ("dx uses tanh(x) in place of tanh(u).", lambda dout, x: dout * slope_of(x, x, SLOPE * (1 + 3 * CUBIC * x * x))),
        ("dx lacks the cubic term of u inside tanh.",
         lambda dout, x: dout * slope_of(x, SLOPE * x, SLOPE * (1 + 3 * CUBIC * x * x))),
        ("dx lacks the cubic term in u and in u'.", lambda dout, x: dout * slope_of(x, SLOPE * x, SLOPE)),
        ("dx is the derivative of x * sigmoid(1.702 x), another approximation.",
         lambda dout, x: dout * (sigmoid(1.702 * x) + 1.702 * x * sigmoid(1.702 * x) * (1 - sigmoid(1.702 * x)))),
        ("dx is the derivative of silu.", lambda dout, x: dout * silu_slope(x)),
        ("dx is the derivative of ReLU.", lambda dout, x: dout * (x > 0)),
        ("dx is dout * gelu(x): multiply by the derivative.", lambda dout, out: dout * out),
        ("dx uses the derivative of tanh in place of that of gelu.", lambda dout, t: dout * (1 - t * t)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ GeGLU


def geglu_values(dout, gate, up):
    (B, T, F), t = gate.shape, np.tanh(inner(gate))
    N, d, du = B * T, dout * up, SLOPE * (1 + 3 * CUBIC * gate * gate)
    return locals()


GEGLU = Table("geglu", geglu_values, {
    "out": [
        ("out has the exact GELU, with erf: geglu has the tanh form.", lambda gate, up: exact_gelu(gate) * up),
        ("out is gelu(gate): up is missing.", lambda gate: gelu(gate)),
        ("out is gelu(up) * gate: gate and up are exchanged.", lambda gate, up: gelu(up) * gate),
        ("out uses silu in place of gelu: that is SwiGLU.", lambda gate, up: silu(gate) * up),
        ("out uses Φ(gate) in place of gelu(gate).", lambda t, up: (1 + t) / 2 * up),
        ("out is gate * up: gelu is missing.", lambda gate, up: gate * up),
        ("out adds up instead of multiplying by it.", lambda gate, up: gelu(gate) + up),
        ("out is gelu(gate * up): gelu is that of the gate alone.", lambda gate, up: gelu(gate * up)),
        ("out applies gelu twice.", lambda gate, up: gelu(gelu(gate)) * up),
        ("out is gelu(gate) * gelu(up): up has no activation.", lambda gate, up: gelu(gate) * gelu(up)),
    ],
    "dgate": [
        ("dgate lacks up: the gradient of gelu(gate) is dout * up.", lambda dout, gate: dout * gelu_slope(gate)),
        ("dgate lacks gelu': it is dout * up.", lambda d: d),
        ("dgate uses gelu in place of its derivative.", lambda d, gate: d * gelu(gate)),
        ("dgate takes gelu' at up instead of the gate.", lambda d, up: d * gelu_slope(up)),
        ("dgate takes gelu' at gelu(gate): gelu_backward takes the input of gelu.", lambda d, gate: d * gelu_slope(gelu(gate))),
        ("dgate uses gelu(up) in place of up.", lambda dout, gate, up: dout * gelu(up) * gelu_slope(gate)),
        ("dgate uses the gate in place of up.", lambda dout, gate: dout * gate * gelu_slope(gate)),
        ("dgate multiplies by up twice: out has it once.", lambda d, up, gate: d * up * gelu_slope(gate)),
        ("dgate has gelu(gate) as a factor: it belongs to dup.", lambda dout, gate: dout * gelu(gate) * gelu_slope(gate)),
        ("dgate has the derivative of the exact GELU: pass \"tanh\" to gelu_backward.", lambda d, gate: d * exact_slope(gate)),
        ("dgate has the derivative of silu: the activation is gelu.", lambda d, gate: d * silu_slope(gate)),
        ("dgate uses Φ(gate) in place of gelu': gelu is a product, and its derivative has a second term.",
         lambda d, t: d * (1 + t) / 2),
        ("dgate lacks the first term of gelu', (1 + tanh u) / 2.", lambda d, gate, t, du: d * gate * (1 - t * t) / 2 * du),
        ("dgate lacks u' in gelu': the chain rule gives tanh'(u) * u'.",
         lambda d, gate, t: d * ((1 + t) / 2 + gate * (1 - t * t) / 2)),
        ("dgate lacks the 3 in u': (g³)' = 3g².", lambda d, gate: d * slope_of(gate, inner(gate), SLOPE * (1 + CUBIC * gate**2))),
        ("dgate uses 1 - tanh u in place of 1 - tanh² u.", lambda d, gate, t, du: d * ((1 + t) / 2 + gate * (1 - t) / 2 * du)),
        ("dgate uses the derivative of ReLU.", lambda d, gate: d * (gate > 0)),
        ("dgate takes gelu' at gate * up: gelu is that of the gate alone.", lambda d, gate, up: d * gelu_slope(gate * up)),
    ],
    "dup": [
        ("dup uses the gate in place of gelu(gate).", lambda dout, gate: dout * gate),
        ("dup uses Φ(gate) in place of gelu(gate).", lambda dout, t: dout * (1 + t) / 2),
        ("dup uses gelu'(gate) in place of gelu(gate): up is multiplied by gelu itself.",
         lambda dout, gate: dout * gelu_slope(gate)),
        ("dup uses gelu(up) in place of gelu(gate).", lambda dout, up: dout * gelu(up)),
        ("dup is dout: it lacks gelu(gate).", lambda dout: dout),
        ("dup is dout * out: it still has the factor up.", lambda dout, out: dout * out),
        ("dup is dout * up: the factor is gelu(gate).", lambda d: d),
        ("dup has the exact GELU: geglu has the tanh form.", lambda dout, gate: dout * exact_gelu(gate)),
        ("dup uses silu(gate) in place of gelu(gate).", lambda dout, gate: dout * silu(gate)),
        ("dup uses max(gate, 0) in place of gelu(gate).", lambda dout, gate: dout * np.maximum(gate, 0)),
        ("dup is gelu(gate), without dout.", lambda gate: gelu(gate)),
        ("dup goes through gelu' of up: up has no activation.", lambda dout, gate, up: dout * gelu(gate) * gelu_slope(up)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ soft cap


def softcap_values(dout, x, cap):
    (B, T, n), t = x.shape, np.tanh(x / cap)
    N = B * T
    return locals()


SOFTCAP = Table("softcap", softcap_values, {
    "out": [
        ("out lacks the outer cap: tanh alone stays within 1.", lambda t: t),
        ("out does not divide x by cap: then it has the slope cap at 0, and not 1.", lambda x, cap: cap * np.tanh(x)),
        ("out multiplies x by cap instead of dividing.", lambda x, cap: cap * np.tanh(cap * x)),
        ("out divides by cap instead of multiplying.", lambda t, cap: t / cap),
        ("out is clipped at ±cap: a soft cap is smooth.", lambda x, cap: np.clip(x, -cap, cap)),
        ("out is tanh(x): cap is missing inside and outside.", lambda x: np.tanh(x)),
        ("out uses x as a factor instead of cap.", lambda x, t: x * t),
        ("out uses the sigmoid in place of tanh.", lambda x, cap: cap * sigmoid(x / cap)),
        ("out is the smaller of x and cap: use cap * tanh(x / cap), which caps negative values too.",
         lambda x, cap: np.minimum(x, cap)),
        ("out has the wrong sign: it is cap * tanh(x / cap).", lambda out: -out),
        ("out is x / (1 + |x| / cap): a soft cap is made by tanh.", lambda x, cap: x / (1 + abs(x) / cap)),
    ],
    "dx": [
        ("dx uses 1 - t in place of 1 - t²: tanh' = 1 - tanh².", lambda dout, t: dout * (1 - t)),
        ("dx uses 1 + t² in place of 1 - t²: tanh' = 1 - tanh².", lambda dout, t: dout * (1 + t * t)),
        ("dx uses (1 - t)² in place of 1 - t²: only t is squared.", lambda dout, t: dout * (1 - t) ** 2),
        ("dx has t * (1 - t), the derivative of a sigmoid: tanh' = 1 - tanh².", lambda dout, t: dout * t * (1 - t)),
        ("dx uses out in place of t: t = out / cap.", lambda dout, out: dout * (1 - out * out)),
        ("dx uses tanh(x) in place of tanh(x / cap).", lambda dout, x: dout * (1 - np.tanh(x) ** 2)),
        ("dx divides tanh(x) by cap: x is divided first, t = tanh(x / cap).",
         lambda dout, x, cap: dout * (1 - (np.tanh(x) / cap) ** 2)),
        ("dx uses tanh(x * cap) in place of tanh(x / cap).", lambda dout, x, cap: dout * (1 - np.tanh(x * cap) ** 2)),
        ("dx has the outer cap, but lacks the inner 1 / cap: they cancel.", lambda dout, t, cap: dout * cap * (1 - t * t)),
        ("dx has the inner 1 / cap, but lacks the outer cap: they cancel.", lambda dout, t, cap: dout * (1 - t * t) / cap),
        ("dx has the cap twice: the outer cap and the inner 1 / cap cancel.", lambda dout, t, cap: dout * cap**2 * (1 - t * t)),
        ("dx is cap - out²: multiply 1 - t² by dout, with t = out / cap.", lambda dout, out, cap: dout * (cap - out * out)),
        ("dx is dout * t: multiply by the derivative of tanh.", lambda dout, t: dout * t),
        ("dx is dout * out: multiply by the derivative of tanh.", lambda dout, out: dout * out),
        ("dx passes dout where |x| < cap and is 0 elsewhere, like that of a clip.", lambda dout, x, cap: dout * (abs(x) < cap)),
        ("dx is dout: the cap is left out on the way back.", lambda dout: dout),
        ("dx uses x / cap in place of t: tanh is missing.", lambda dout, x, cap: dout * (1 - (x / cap) ** 2)),
        ("dx uses 1 / cosh in place of 1 / cosh².", lambda dout, x, cap: dout / np.cosh(x / cap)),
        ("dx uses 1 / √(1 - t²), as for arcsin: tanh' = 1 - tanh².", lambda dout, t: dout / np.sqrt(1 - t * t)),
        ("dx divides by 1 - t² instead of multiplying by it.", lambda dout, t: dout / (1 - t * t)),
        ("dx is multiplied by 1 - t² twice.", lambda dout, t: dout * (1 - t * t) ** 2),
        ("dx takes tanh' at dout / cap instead of x / cap.",
         lambda dout, cap: dout * (1 - np.tanh(dout / cap) ** 2)),
        ("dx is multiplied by x: the derivative is 1 - t² alone.", lambda dout, x, t: dout * x * (1 - t * t)),
    ],
})  # fmt: skip
TABLES = [SWIGLU, GELU, GEGLU, SOFTCAP]
