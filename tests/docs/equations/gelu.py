"""docs/ops/gelu.md"""

from math import erf, exp, pi, sqrt, tanh

from docs.equations.common import derivative, normal

from numllama.ops import gelu_backward, gelu_forward

F = 6
X, DOUT = 1.5 * normal(F), normal(F, seed=1)
S, C = sqrt(2 / pi), 0.044715
DX = gelu_backward(DOUT, gelu_forward(X)[1])


def u(x):
    return S * (x + C * x**3)


def exact():
    yield [x * (1 / 2 * (1 + erf(x / sqrt(2)))) for x in X], gelu_forward(X, "none")[0]


def out():
    yield [1 / 2 * x * (1 + tanh(u(x))) for x in X], gelu_forward(X)[0]


def dtanh():
    for i, x in enumerate(X):
        numeric = derivative(lambda x: 2 * gelu_forward(x)[0] / x - 1, X, (i,))[i]
        yield (1 - tanh(u(x)) ** 2) * S * (1 + 3 * C * x**2), numeric, 1e-7


def dx():
    yield [
        DOUT[i] * (1 / 2 * (1 + tanh(u(x))) + 1 / 2 * x * (1 - tanh(u(x)) ** 2) * S * (1 + 3 * C * x**2))
        for i, x in enumerate(X)
    ], DX


def dx_exact():
    def Phi(x):
        return 1 / 2 * (1 + erf(x / sqrt(2)))

    def phi(x):
        return exp(-(x**2) / 2) / sqrt(2 * pi)

    yield [DOUT[i] * (Phi(x) + x * phi(x)) for i, x in enumerate(X)], gelu_backward(DOUT, gelu_forward(X, "none")[1])
