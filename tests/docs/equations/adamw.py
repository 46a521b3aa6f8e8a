"""docs/chapters/adamw.md"""

from math import cos, pi, sqrt

import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.optim import adamw_update, clip_grad_norm, cosine_schedule

n, STEPS, BETA1, BETA2, LR, EPS, DECAY = 3, 5, 0.9, 0.99, 0.01, 1e-8, 0.1
G, W0 = normal(STEPS, n), normal(n)


def code(gradients=G, weight_decay=DECAY):
    w, m, v = W0.copy(), np.zeros(n), np.zeros(n)
    for t, g in enumerate(gradients, 1):
        adamw_update(w, g, m, v, t, LR, (BETA1, BETA2), EPS, weight_decay)
    return w, m, v


def literal_moments(t):
    m, v = [0.0] * n, [0.0] * n
    for g in G[:t]:
        m = [BETA1 * m[i] + (1 - BETA1) * g[i] for i in range(n)]
        v = [BETA2 * v[i] + (1 - BETA2) * g[i] ** 2 for i in range(n)]
    return m, v


def moments():
    m, v = literal_moments(STEPS)
    yield m, code()[1]
    yield v, code()[2]


def bias():
    g = normal(n, seed=1)
    m = code([g] * STEPS)[1]
    yield [(1 - BETA1) * sum(BETA1 ** (STEPS - i) * g[j] for i in range(1, STEPS + 1)) for j in range(n)], m
    yield [(1 - BETA1**STEPS) * g[j] for j in range(n)], m


def corrected():
    """With gradients that are all alike, what is corrected is the gradient itself."""
    g = normal(n, seed=1)
    _, m, v = code([g] * STEPS)
    yield g, [m[i] / (1 - BETA1**STEPS) for i in range(n)]
    yield g**2, [v[i] / (1 - BETA2**STEPS) for i in range(n)]


def step():
    w = list(W0)
    for t in range(1, STEPS + 1):
        m, v = literal_moments(t)
        m_hat, v_hat = [x / (1 - BETA1**t) for x in m], [x / (1 - BETA2**t) for x in v]
        w = [w[i] - LR * DECAY * w[i] - LR * m_hat[i] / (sqrt(v_hat[i]) + EPS) for i in range(n)]
    yield w, code()[0]


def regrouped():
    w, m, v = np.zeros(n), np.zeros(n), np.zeros(n)
    adamw_update(w, G[0], m, v, 1, 1.0, (BETA1, BETA2), EPS, 0.0)  # a step of length 1 from zero is minus the quotient
    m_hat, v_hat, c = m / (1 - BETA1), v / (1 - BETA2), sqrt(1 - BETA2)
    yield [m_hat[i] / (sqrt(v_hat[i]) + EPS) for i in range(n)], -w
    yield [c / (1 - BETA1) * m[i] / (sqrt(v[i]) + c * EPS) for i in range(n)], -w


def schedule():
    top, bottom, warm_up, total = 3e-3, 1e-4, 10, 50
    literal = [top * t / warm_up for t in range(warm_up)] + [
        bottom + 1 / 2 * (top - bottom) * (1 + cos(pi * (t - warm_up) / (total - warm_up))) for t in range(warm_up, total + 1)
    ]
    yield literal, [cosine_schedule(t, top, bottom, warm_up, total) for t in range(total + 1)]


def clip():
    model = nl.Transformer(nl.ModelConfig(vocab_size=5, dim=4, n_layers=1, n_heads=1), dtype="float64")
    for most in (1e-3, 1e3):
        g = model.params.flat.copy()
        norm = sqrt(sum(x**2 for x in g))
        grads = model.params.zeros_like()
        grads.flat[:] = g
        yield norm, clip_grad_norm(grads, most)
        yield [x * min(1, most / norm) for x in g], grads.flat, 1e-5  # the code guards its division with 1e-6
