"""docs/ops/rmsnorm.md"""

import math

import numpy as np
from docs.equations.common import delta, derivative, normal

from numllama.ops import rmsnorm_backward, rmsnorm_forward

N, C, EPS = 3, 5, 0.1  # an eps that shows
X, W, DOUT = normal(N, C), normal(C), normal(N, C, seed=1)
OUT, CACHE = rmsnorm_forward(X, W, EPS)
R = CACHE.rstd[:, 0]
DX, DW = rmsnorm_backward(DOUT, CACHE)
DN = [[DOUT[t, i] * W[i] for i in range(C)] for t in range(N)]


def rstd():
    yield [1 / math.sqrt(1 / C * sum(X[t, i] ** 2 for i in range(C)) + EPS) for t in range(N)], R


def out():
    yield [[W[i] * X[t, i] * R[t] for i in range(C)] for t in range(N)], OUT


def drdx():
    for j in range(C):
        numeric = derivative(lambda x: rmsnorm_forward(x, W, EPS)[1].rstd[:, 0], X, (slice(None), j))
        s = [1 / C * sum(X[t, i] ** 2 for i in range(C)) + EPS for t in range(N)]
        yield [-1 / 2 * s[t] ** (-3 / 2) * 2 * X[t, j] / C for t in range(N)], numeric, 1e-9
        yield [-R[t] ** 3 * X[t, j] / C for t in range(N)], numeric, 1e-9


def jacobian():
    for t in range(N):
        for i in range(C):
            unit = np.zeros((N, C))
            unit[t, i] = 1  # the gradient of one output: a row of the Jacobian
            row = rmsnorm_backward(unit, CACHE)[0][t]
            drdx = [-R[t] ** 3 * X[t, j] / C for j in range(C)]
            yield [W[i] * (delta(i, j) * R[t] + X[t, i] * drdx[j]) for j in range(C)], row
            yield [W[i] * (delta(i, j) * R[t] - R[t] ** 3 * X[t, i] * X[t, j] / C) for j in range(C)], row


def dx():
    for t in range(N):
        def jacobian(i, j, t=t):
            return W[i] * (delta(i, j) * R[t] - R[t] ** 3 * X[t, i] * X[t, j] / C)

        yield [sum(DOUT[t, i] * jacobian(i, j) for i in range(C)) for j in range(C)], DX[t]
        yield [
            sum(DN[t][i] * (delta(i, j) * R[t] - R[t] ** 3 * X[t, i] * X[t, j] / C) for i in range(C)) for j in range(C)
        ], DX[t]
        yield [R[t] * DN[t][j] - X[t, j] * R[t] ** 3 / C * sum(DN[t][i] * X[t, i] for i in range(C)) for j in range(C)], DX[t]


def dx_code():
    for t in range(N):
        n = [X[t, i] * R[t] for i in range(C)]
        yield [R[t] * (DN[t][j] - n[j] * 1 / C * sum(DN[t][i] * n[i] for i in range(C))) for j in range(C)], DX[t]


def dweight():
    doutdw = [derivative(lambda w: rmsnorm_forward(X, w, EPS)[0], W, (i,))[:, i] for i in range(C)]
    yield [sum(DOUT[t, i] * doutdw[i][t] for t in range(N)) for i in range(C)], DW, 1e-9
    yield [sum(DOUT[t, i] * X[t, i] * R[t] for t in range(N)) for i in range(C)], DW


def orthogonal():
    for t in range(N):
        product = sum(DX[t, j] * X[t, j] for j in range(C))
        dot = sum(DN[t][i] * X[t, i] for i in range(C))
        yield (R[t] - R[t] ** 3 / C * sum(X[t, j] ** 2 for j in range(C))) * dot, product
        yield EPS * R[t] ** 3 * dot, product
