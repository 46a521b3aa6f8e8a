"""docs/ops/swiglu.md"""

from math import exp, tanh

import numpy as np
from docs.equations.common import derivative, normal

from numllama.ops import swiglu_backward, swiglu_forward

F = 6
G, U, DOUT = 2 * normal(F), normal(F, seed=1), normal(F, seed=2)
ONES = np.ones(F)
OUT, CACHE = swiglu_forward(G, U)
DG, DU = swiglu_backward(DOUT, CACHE)


def sigma(g):
    return 1 / (1 + exp(-g))


def silu(g):
    return g * sigma(g)


def out():
    yield [silu(G[i]) * U[i] for i in range(F)], OUT


def tanh_():
    h = G / 2
    yield [h[i] + h[i] * tanh(h[i]) for i in range(F)], swiglu_forward(G, ONES)[0]
    yield [1 / 2 * (1 + tanh(h[i])) for i in range(F)], swiglu_forward(G, ONES)[0] / G


def dsigma():
    for i in range(F):
        numeric = derivative(lambda g: swiglu_forward(g, ONES)[0] / g, G, (i,))[i]
        yield exp(-G[i]) / (1 + exp(-G[i])) ** 2, numeric, 1e-8
        yield sigma(G[i]) * (1 - sigma(G[i])), numeric, 1e-8


def dsilu():
    code = swiglu_backward(ONES, (G, ONES))[0]
    yield [sigma(g) + g * sigma(g) * (1 - sigma(g)) for g in G], code
    yield [sigma(g) + silu(g) * (1 - sigma(g)) for g in G], code


def grads():
    yield [DOUT[i] * U[i] * (sigma(G[i]) + silu(G[i]) * (1 - sigma(G[i]))) for i in range(F)], DG
    yield [DOUT[i] * silu(G[i]) for i in range(F)], DU
