"""docs/start.md"""

from docs.equations.common import delta, derivative, normal

from numllama.ops import rmsnorm_backward, rmsnorm_forward

C, T = 4, 3
X, W, DOUT = normal(C), normal(C), normal(C, seed=1)


def chain():
    doutdx = [derivative(lambda x: rmsnorm_forward(x, W, 0.1)[0], X, (j,)) for j in range(C)]  # [j][i]
    actual = rmsnorm_backward(DOUT, rmsnorm_forward(X, W, 0.1)[1])[0]
    yield [sum(DOUT[i] * doutdx[j][i] for i in range(C)) for j in range(C)], actual, 1e-9


def square():
    for j in range(C):
        yield [delta(i, j) * 2 * X[i] for i in range(C)], derivative(lambda x: x * x, X, (j,)), 1e-9


def shared():
    x, dout = normal(T, C), normal(T, C, seed=1)
    doutdw = [derivative(lambda w: x * w, W, (i,)) for i in range(C)]
    yield [sum(dout[t, i] * x[t, i] for t in range(T)) for i in range(C)], [(dout * doutdw[i]).sum() for i in range(C)], 1e-9


def differences():
    h, u = 1e-5, normal(C, seed=2)
    plus, minus = (rmsnorm_forward(X + sign * h * u, W, 0.1)[0] for sign in (1, -1))
    dx = rmsnorm_backward(DOUT, rmsnorm_forward(X, W, 0.1)[1])[0]
    yield sum(DOUT[i] * (plus[i] - minus[i]) / (2 * h) for i in range(C)), sum(dx[j] * u[j] for j in range(C)), 1e-8
