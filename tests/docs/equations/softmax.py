"""docs/ops/softmax.md"""

from math import exp

import numpy as np
from docs.equations.common import delta, normal

from numllama.ops import softmax_backward, softmax_forward

n = 5
X, DP = normal(n), normal(n, seed=1)
P, CACHE = softmax_forward(X)
DX = softmax_backward(DP, CACHE)


def p():
    yield [exp(X[i]) / sum(exp(X[k]) for k in range(n)) for i in range(n)], P


def shifted():
    m = max(X[k] for k in range(n))
    yield [exp(X[i] - m) / sum(exp(X[k] - m) for k in range(n)) for i in range(n)], P


def jacobian():
    z = sum(exp(X[k]) for k in range(n))
    for i in range(n):
        row = softmax_backward(np.array([delta(i, k) for k in range(n)]), CACHE)
        yield [(delta(i, j) * exp(X[i]) * z - exp(X[i]) * exp(X[j])) / z**2 for j in range(n)], row
        yield [P[i] * (delta(i, j) - P[j]) for j in range(n)], row


def dx():
    yield [sum(DP[i] * P[i] * (delta(i, j) - P[j]) for i in range(n)) for j in range(n)], DX
    yield [P[j] * (DP[j] - sum(DP[i] * P[i] for i in range(n))) for j in range(n)], DX


def zero_sum():
    total = sum(P[j] * DP[j] for j in range(n)) - sum(DP[i] * P[i] for i in range(n))
    yield 1 + total, 1 + sum(DX[j] for j in range(n))  # compared beside 1: zero has no relative error
    yield 1.0, 1 + sum(DX[j] for j in range(n))
