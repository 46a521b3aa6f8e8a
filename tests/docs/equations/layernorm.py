"""docs/ops/layernorm.md"""

from math import sqrt

import numpy as np
from docs.equations.common import delta, derivative, normal

from numllama.ops import layernorm_backward, layernorm_forward

N, C, EPS = 3, 5, 0.1
X, W, B, DOUT = normal(N, C), normal(C), normal(C, seed=1), normal(N, C, seed=1)
OUT, CACHE = layernorm_forward(X, W, B, EPS)
MU, R = CACHE.mean[:, 0], CACHE.rstd[:, 0]
NORMED = [[(X[t, i] - MU[t]) * R[t] for i in range(C)] for t in range(N)]
DX, DW, DB = layernorm_backward(DOUT, CACHE)


def statistics():
    mu = [1 / C * sum(X[t, i] for i in range(C)) for t in range(N)]
    yield mu, MU
    yield [1 / sqrt(1 / C * sum((X[t, i] - mu[t]) ** 2 for i in range(C)) + EPS) for t in range(N)], R


def out():
    yield [[W[i] * ((X[t, i] - MU[t]) * R[t]) + B[i] for i in range(C)] for t in range(N)], OUT


def drdx():
    for j in range(C):
        numeric = derivative(lambda x: layernorm_forward(x, W, B, EPS)[1].rstd[:, 0], X, (slice(None), j))
        v = [1 / C * sum((X[t, i] - MU[t]) ** 2 for i in range(C)) + EPS for t in range(N)]
        yield [-1 / 2 * v[t] ** (-3 / 2) * 2 / C * (X[t, j] - MU[t]) for t in range(N)], numeric, 1e-9
        yield [-R[t] ** 3 * (X[t, j] - MU[t]) / C for t in range(N)], numeric, 1e-9
        yield [-R[t] ** 2 * NORMED[t][j] / C for t in range(N)], numeric, 1e-9


def jacobian():
    for t in range(N):
        for i in range(C):
            unit = np.zeros((N, C))
            unit[t, i] = 1
            row = layernorm_backward(unit / W, CACHE)[0][t]  # a gain of one
            drdx = [-R[t] ** 2 * NORMED[t][j] / C for j in range(C)]
            yield [(delta(i, j) - 1 / C) * R[t] + (X[t, i] - MU[t]) * drdx[j] for j in range(C)], row
            yield [R[t] * (delta(i, j) - 1 / C - NORMED[t][i] * NORMED[t][j] / C) for j in range(C)], row


def dx():
    for t in range(N):
        dn, n = [DOUT[t, i] * W[i] for i in range(C)], NORMED[t]
        yield [sum(dn[i] * R[t] * (delta(i, j) - 1 / C - n[i] * n[j] / C) for i in range(C)) for j in range(C)], DX[t]
        mean, along = 1 / C * sum(dn[i] for i in range(C)), 1 / C * sum(dn[i] * n[i] for i in range(C))
        yield [R[t] * (dn[j] - mean - n[j] * along) for j in range(C)], DX[t]


def dparameters():
    yield [sum(DOUT[t, i] * NORMED[t][i] for t in range(N)) for i in range(C)], DW
    yield [sum(DOUT[t, i] for t in range(N)) for i in range(C)], DB
