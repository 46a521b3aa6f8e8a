"""docs/ops/cross_entropy.md"""

from math import exp, log

import numpy as np
from docs.equations.common import delta, derivative, normal

from numllama.ops import IGNORE, cross_entropy_backward, cross_entropy_forward, softmax_forward

N, V = 4, 6
X, TARGETS = normal(N, V), np.array([2, IGNORE, 0, 5])
LOSS, CACHE = cross_entropy_forward(X, TARGETS)
LSE, COUNTED = CACHE.lse, [0, 2, 3]
M = len(COUNTED)
DL = 0.7
DX = cross_entropy_backward(DL, CACHE)


def lse():
    for n in range(N):
        m = max(X[n, v] for v in range(V))
        yield log(sum(exp(X[n, v]) for v in range(V))), LSE[n]
        yield m + log(sum(exp(X[n, v] - m) for v in range(V))), LSE[n]


def loss():
    p = softmax_forward(X)[0]
    yield -1 / M * sum(log(p[n, TARGETS[n]]) for n in COUNTED), LOSS
    yield 1 / M * sum(LSE[n] - X[n, TARGETS[n]] for n in COUNTED), LOSS


def dlse():
    p = softmax_forward(X)[0]
    for v in range(V):
        numeric = derivative(lambda x: cross_entropy_forward(x, TARGETS)[1][2], X, (slice(None), v))
        yield [exp(X[n, v]) / sum(exp(X[n, k]) for k in range(V)) for n in range(N)], numeric, 1e-9
        yield p[:, v], numeric, 1e-9


def dlogits():
    literal = np.zeros((N, V))
    for n in COUNTED:
        for v in range(V):
            literal[n, v] = DL * 1 / M * (exp(X[n, v] - LSE[n]) - delta(v, TARGETS[n]))
    yield literal, DX
