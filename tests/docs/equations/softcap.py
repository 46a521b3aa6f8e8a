"""docs/ops/softcap.md"""

from math import tanh

from docs.equations.common import derivative, normal

from numllama.ops import softcap_backward, softcap_forward

N, CAP = 6, 1.5
X, DOUT = 2 * normal(N), normal(N, seed=1)
OUT, CACHE = softcap_forward(X, CAP)


def out():
    yield [CAP * tanh(x / CAP) for x in X], OUT


def dx():
    yield [DOUT[i] * (1 - tanh(X[i] / CAP) ** 2) for i in range(N)], softcap_backward(DOUT, CACHE)
    for i in range(N):
        yield 1 - tanh(X[i] / CAP) ** 2, derivative(lambda x: softcap_forward(x, CAP)[0], X, (i,))[i], 1e-7
