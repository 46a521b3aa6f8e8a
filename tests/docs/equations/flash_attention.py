"""docs/ops/flash_attention.md"""

from math import exp, log, sqrt

import numpy as np
from docs.equations.common import normal

from numllama.ops import attention_backward, attention_forward, flash_attention_backward, flash_attention_forward

T, S, D = 3, 5, 4
q, k, v, DOUT = 3 * normal(T, D), normal(S, D), normal(S, D, seed=1), normal(T, D, seed=2)
c = 1 / sqrt(D)
ALL = dict(first=np.zeros(T, dtype=int), last=np.full(T, S))  # every query sees every key
OUT, CACHE = flash_attention_forward(q[None, None], k[None, None], v[None, None], **ALL)
OUT, LSE = OUT[0, 0], CACHE.lse[0, 0]
dq, dk, dv = (g[0, 0] for g in flash_attention_backward(DOUT[None, None], CACHE))
P = attention_forward(q[None, None], k[None, None], v[None, None], **ALL)[1].p[0, 0]
SCORES = [[c * sum(q[t, d] * k[j, d] for d in range(D)) for j in range(S)] for t in range(T)]


def out():
    for t in range(T):
        for m in (0.0, max(SCORES[t])):  # whatever is taken off
            z = sum(exp(SCORES[t][j] - m) for j in range(S))
            yield [sum(exp(SCORES[t][j] - m) * v[j, d] for j in range(S)) / z for d in range(D)], OUT[t]


def online():
    for t in range(T):
        m, z, o = -np.inf, 0.0, [0.0] * D
        for piece in ([0, 1], [2], [3, 4]):
            new = max(m, *(SCORES[t][j] for j in piece))
            o = [o[d] * exp(m - new) + sum(exp(SCORES[t][j] - new) * v[j, d] for j in piece) for d in range(D)]
            z = z * exp(m - new) + sum(exp(SCORES[t][j] - new) for j in piece)
            m = new
        yield [o[d] / z for d in range(D)], OUT[t]
        yield m + log(z), LSE[t]


def lse():
    for t in range(T):
        m = max(SCORES[t])
        yield m + log(sum(exp(s - m) for s in SCORES[t])), LSE[t]
        yield log(sum(exp(s) for s in SCORES[t])), LSE[t]


def bound():
    for t in range(T):
        for j in range(S):
            limit = c * sqrt(sum(q[t, d] ** 2 for d in range(D))) * sqrt(sum(k[j, d] ** 2 for d in range(D)))
            yield limit, max(limit, abs(SCORES[t][j]))  # the score is not the larger one


def p():
    yield [[exp(SCORES[t][j]) / sum(exp(SCORES[t][i]) for i in range(S)) for j in range(S)] for t in range(T)], P
    yield [[exp(SCORES[t][j] - LSE[t]) for j in range(S)] for t in range(T)], P


def delta_of(t):
    return sum(DOUT[t, d] * OUT[t, d] for d in range(D))


def dp(t, j):
    return sum(DOUT[t, d] * v[j, d] for d in range(D))


def delta():
    for t in range(T):
        yield sum(P[t, j] * dp(t, j) for j in range(S)), delta_of(t)
        yield sum(DOUT[t, d] * sum(P[t, j] * v[j, d] for j in range(S)) for d in range(D)), delta_of(t)


def grads():
    ds = [[P[t, j] * (dp(t, j) - delta_of(t)) for j in range(S)] for t in range(T)]
    yield [[c * sum(ds[t][j] * k[j, d] for j in range(S)) for d in range(D)] for t in range(T)], dq
    yield [[c * sum(ds[t][j] * q[t, d] for t in range(T)) for d in range(D)] for j in range(S)], dk
    yield [[sum(P[t, j] * DOUT[t, d] for t in range(T)) for d in range(D)] for j in range(S)], dv
    dense = attention_backward(DOUT[None, None], attention_forward(q[None, None], k[None, None], v[None, None], **ALL)[1])
    for flash, reference in zip((dq, dk, dv), dense, strict=True):
        yield reference[0, 0], flash
