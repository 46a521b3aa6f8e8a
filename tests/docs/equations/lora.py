"""docs/ops/lora.md"""

from docs.equations.common import delta, derivative, normal

from numllama.ops import linear_forward, lora_backward, lora_forward

N, I, O, R, S = 3, 4, 5, 2, 0.5  # noqa: E741
X, A, B, W, DOUT = normal(N, I), normal(R, I), normal(O, R), normal(O, I), normal(N, O)
OUT, CACHE = lora_forward(X, A, B, S)
DX, DA, DB = lora_backward(DOUT, CACHE)
H = CACHE.h
DH = [[S * sum(DOUT[n, o] * B[o, r] for o in range(O)) for r in range(R)] for n in range(N)]


def h():
    yield [[sum(X[n, i] * A[r, i] for i in range(I)) for r in range(R)] for n in range(N)], H


def out():
    yield [[S * sum(H[n, r] * B[o, r] for r in range(R)) for o in range(O)] for n in range(N)], OUT


def merged():
    whole = [[W[o, i] + S * sum(B[o, r] * A[r, i] for r in range(R)) for i in range(I)] for o in range(O)]
    yield [[sum(X[n, i] * whole[o][i] for i in range(I)) for o in range(O)] for n in range(N)], linear_forward(X, W)[0] + OUT


def db():
    for p in range(O):
        for r in range(R):
            doutdb = derivative(lambda b: lora_forward(X, A, b, S)[0], B, (p, r))
            yield [[delta(o, p) * S * H[n, r] for o in range(O)] for n in range(N)], doutdb, 1e-9
    yield [[S * sum(DOUT[n, o] * H[n, r] for n in range(N)) for r in range(R)] for o in range(O)], DB


def dh():
    """What reaches h, seen where it goes on: in the gradient of x."""
    yield [[sum(DH[n][r] * A[r, i] for r in range(R)) for i in range(I)] for n in range(N)], DX


def da():
    yield [[sum(DH[n][r] * X[n, i] for n in range(N)) for i in range(I)] for r in range(R)], DA


def dx():
    yield [[sum(DH[n][r] * A[r, i] for r in range(R)) for i in range(I)] for n in range(N)], DX
    for n in range(N):
        for i in range(I):
            doutdx = derivative(lambda x: lora_forward(x, A, B, S)[0], X, (n, i))
            yield sum(DOUT[n, o] * doutdx[n, o] for o in range(O)), DX[n, i], 1e-9
