"""docs/ops/attention.md"""

from math import exp, sqrt

import numpy as np
from docs.equations.common import normal

from numllama.ops import attention_backward, attention_forward

H, K, T, S, D = 4, 2, 3, 5, 6
R = H // K
q, k, v = normal(H, T, D), normal(K, S, D), normal(K, S, D, seed=1)
DOUT = normal(H, T, D, seed=2)
OUT, CACHE = attention_forward(q[None], k[None], v[None])
P = CACHE.p[0]
dq, dk, dv = (g[0] for g in attention_backward(DOUT[None], CACHE))
c = 1 / sqrt(D)
VISIBLE = [[s <= S - T + t for s in range(S)] for t in range(T)]


def score(h, t, s):
    return c * sum(q[h, t, d] * k[h // R, s, d] for d in range(D))


def dp(h, t, s):
    return sum(DOUT[h, t, d] * v[h // R, s, d] for d in range(D))


def ds(h, t, s):
    return P[h, t, s] * (dp(h, t, s) - sum(dp(h, t, other) * P[h, t, other] for other in range(S)))


def scores():
    for h in range(H):  # up to a constant for each row, which is all that softmax keeps of them
        for t in range(T):
            yield [score(h, t, s) - score(h, t, 0) for s in range(1, S) if VISIBLE[t][s]], [
                np.log(P[h, t, s] / P[h, t, 0]) for s in range(1, S) if VISIBLE[t][s]
            ]


def p():
    for h in range(H):
        for t in range(T):
            total = sum(exp(score(h, t, s)) for s in range(S) if VISIBLE[t][s])
            yield [exp(score(h, t, s)) / total if VISIBLE[t][s] else 0.0 for s in range(S)], P[h, t]


def out():
    yield [
        [[sum(P[h, t, s] * v[h // R, s, d] for s in range(S)) for d in range(D)] for t in range(T)] for h in range(H)
    ], OUT[0]


def dv_dp():
    one = attention_forward(q[None, :1], k[None, :1], v[None, :1])[1]  # one query head, as the equation has it
    dv1 = attention_backward(DOUT[None, :1], one)[2][0, 0]
    yield [[sum(P[0, t, s] * DOUT[0, t, d] for t in range(T)) for d in range(D)] for s in range(S)], dv1
    grad = np.array([[dp(0, t, s) for s in range(S)] for t in range(T)])
    yield grad, DOUT[0] @ v[0].T


def ds_():
    for h in range(H):  # dq is ds k · scale: with unit keys it would be ds itself
        literal = np.array([[ds(h, t, s) for s in range(S)] for t in range(T)])
        yield c * literal @ k[h // R], dq[h]


def dq_dk():
    yield [[[c * sum(ds(h, t, s) * k[h // R, s, d] for s in range(S)) for d in range(D)] for t in range(T)] for h in range(H)], dq
    one = attention_forward(q[None, :1], k[None, :1], v[None, :1])[1]
    dk1 = attention_backward(DOUT[None, :1], one)[1][0, 0]
    yield [[c * sum(ds(0, t, s) * q[0, t, d] for t in range(T)) for d in range(D)] for s in range(S)], dk1


def groups():
    yield [
        [
            [c * sum(ds(g * R + r, t, s) * q[g * R + r, t, d] for r in range(R) for t in range(T)) for d in range(D)]
            for s in range(S)
        ]
        for g in range(K)
    ], dk
    yield [
        [
            [sum(P[g * R + r, t, s] * DOUT[g * R + r, t, d] for r in range(R) for t in range(T)) for d in range(D)]
            for s in range(S)
        ]
        for g in range(K)
    ], dv
