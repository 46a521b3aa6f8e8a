"""docs/ops/geglu.md"""

from math import pi, sqrt, tanh

from docs.equations.common import derivative, normal

from numllama.ops import geglu_backward, geglu_forward

F = 6
G, U, DOUT = 1.5 * normal(F), normal(F, seed=1), normal(F, seed=2)
S, C = sqrt(2 / pi), 0.044715
OUT, CACHE = geglu_forward(G, U)
DG, DU = geglu_backward(DOUT, CACHE)
ONES = U / U


def Phi(g):
    return 1 / 2 * (1 + tanh(u(g)))


def u(g):
    return S * (g + C * g**3)


def gelu(g):
    return g * Phi(g)


def slope(g):
    return Phi(g) + 1 / 2 * g * (1 - tanh(u(g)) ** 2) * S * (1 + 3 * C * g**2)


def out():
    yield [gelu(G[i]) * U[i] for i in range(F)], OUT


def dgelu():
    yield [slope(g) for g in G], geglu_backward(ONES, (G, ONES))[0]
    for i, g in enumerate(G):
        numeric = derivative(lambda g: geglu_forward(g, ONES)[0], G, (i,))[i]
        yield slope(g), numeric, 1e-7


def grads():
    yield [DOUT[i] * U[i] * slope(G[i]) for i in range(F)], DG
    yield [DOUT[i] * gelu(G[i]) for i in range(F)], DU
