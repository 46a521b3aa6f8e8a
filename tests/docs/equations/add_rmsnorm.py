"""docs/ops/add_rmsnorm.md"""

from math import sqrt

from docs.equations.common import delta, normal

from numllama.ops import add_rmsnorm_backward, add_rmsnorm_forward

N, C, EPS = 3, 5, 0.1
X, Y, W = normal(N, C), normal(N, C, seed=1), normal(C)
DS, DOUT = normal(N, C, seed=2), normal(N, C, seed=3)
(S, OUT), CACHE = add_rmsnorm_forward(X, Y, W, EPS)
R = CACHE.norm.rstd[:, 0]
DX, DY, DW = add_rmsnorm_backward((DS, DOUT), CACHE)


def out():
    s = [[X[t, i] + Y[t, i] for i in range(C)] for t in range(N)]
    r = [1 / sqrt(1 / C * sum(s[t][k] ** 2 for k in range(C)) + EPS) for t in range(N)]
    yield s, S
    yield r, R
    yield [[W[i] * s[t][i] * r[t] for i in range(C)] for t in range(N)], OUT


def dtotal():
    for t in range(N):
        dn = [DOUT[t, i] * W[i] for i in range(C)]
        jacobian = [[W[i] * (delta(i, j) * R[t] - R[t] ** 3 * S[t, i] * S[t, j] / C) for j in range(C)] for i in range(C)]
        yield [DS[t, j] + sum(DOUT[t, i] * jacobian[i][j] for i in range(C)) for j in range(C)], DX[t]
        dot = sum(dn[i] * S[t, i] for i in range(C))
        yield [DS[t, j] + R[t] * dn[j] - S[t, j] * R[t] ** 3 / C * dot for j in range(C)], DX[t]


def dx():
    yield DX, DY


def dweight():
    yield [sum(DOUT[t, i] * S[t, i] * R[t] for t in range(N)) for i in range(C)], DW
