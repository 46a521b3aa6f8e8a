"""docs/ops/linear.md"""

from docs.equations.common import delta, derivative, normal

from numllama.ops import linear_backward, linear_forward

N, I, O = 3, 2, 4  # noqa: E741
X, W, B, DOUT = normal(N, I), normal(O, I), normal(O), normal(N, O)
OUT, CACHE = linear_forward(X, W, B)
DX, DW, DB = linear_backward(DOUT, CACHE)


def out():
    yield [[sum(X[n, i] * W[o, i] for i in range(I)) + B[o] for o in range(O)] for n in range(N)], OUT


def doutdx():
    for n in range(N):
        for j in range(I):
            numeric = derivative(lambda x: linear_forward(x, W, B)[0], X, (n, j))
            yield [[delta(m, n) * W[o, j] for o in range(O)] for m in range(N)], numeric, 1e-9


def dx():
    terms = range(N), range(O)
    yield [
        [sum(DOUT[m, o] * delta(m, n) * W[o, j] for m in terms[0] for o in terms[1]) for j in range(I)] for n in range(N)
    ], DX
    yield [[sum(DOUT[n, o] * W[o, j] for o in range(O)) for j in range(I)] for n in range(N)], DX


def dweight():
    yield [
        [sum(DOUT[n, o] * delta(o, p) * X[n, j] for n in range(N) for o in range(O)) for j in range(I)] for p in range(O)
    ], DW
    yield [[sum(DOUT[n, p] * X[n, j] for n in range(N)) for j in range(I)] for p in range(O)], DW
    for p in range(O):
        for j in range(I):
            doutdw = derivative(lambda w: linear_forward(X, w, B)[0], W, (p, j))
            yield sum(DOUT[n, o] * doutdw[n, o] for n in range(N) for o in range(O)), DW[p, j], 1e-9


def dbias():
    yield [sum(DOUT[n, p] for n in range(N)) for p in range(O)], DB
