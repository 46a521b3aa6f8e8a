"""docs/ops/mixture_of_experts.md"""

from math import exp

import numpy as np
from docs.equations.common import normal

from numllama.ops import (
    load_balancing_backward,
    load_balancing_forward,
    mixture_of_experts_backward,
    mixture_of_experts_forward,
    router_backward,
    router_forward,
)

N, E, C, F, K = 4, 5, 3, 6, 2
X, ROUTER, GATE, UP, DOWN = normal(N, C), normal(E, C), normal(E, F, C), normal(E, F, C, seed=1), normal(E, C, F)
(OUT, PROBS), CACHE = mixture_of_experts_forward(X, ROUTER, GATE, UP, DOWN, K)
CHOSEN, W = CACHE.router.chosen, CACHE.router.weights
Z, DOUT, DW = X @ ROUTER.T, normal(N, C, seed=2), normal(N, K, seed=3)


def y(n, a):
    e = CHOSEN[n, a]
    g, u = GATE[e] @ X[n], UP[e] @ X[n]
    return DOWN[e] @ (g / (1 + np.exp(-g)) * u)


def router():
    (weights, probs), cache = router_forward(Z, K)
    for n in range(N):
        p = [exp(Z[n, e]) / sum(exp(Z[n, i]) for i in range(E)) for e in range(E)]
        s = sum(p[cache.chosen[n, b]] for b in range(K))
        yield p, probs[n]
        yield [p[cache.chosen[n, a]] / s for a in range(K)], weights[n]


def out():
    for n in range(N):
        yield sum(W[n, a] * y(n, a) for a in range(K)), OUT[n]


def balance():
    f = [sum(e in CHOSEN[n] for n in range(N)) / N for e in range(E)]
    P = [sum(PROBS[n, e] for n in range(N)) / N for e in range(E)]
    yield np.asarray(E * sum(f[e] * P[e] for e in range(E))), load_balancing_forward(PROBS, CHOSEN)[0]


def dw():
    """The gradients of w and of y, as those of the router's logits and of the last matrices that they make."""
    _, drouter, _, _, ddown = mixture_of_experts_backward((DOUT, None), CACHE)
    dweights = np.array([[sum(DOUT[n, c] * y(n, a)[c] for c in range(C)) for a in range(K)] for n in range(N)])
    yield router_backward((dweights, None), CACHE.router).T @ X, drouter
    expected = np.zeros_like(DOWN)
    for n, a in np.ndindex(N, K):
        e = CHOSEN[n, a]
        g, u = GATE[e] @ X[n], UP[e] @ X[n]
        expected[e] += np.outer(W[n, a] * DOUT[n], g / (1 + np.exp(-g)) * u)
    yield expected, ddown


def dp():
    dz = router_backward((DW, None), CACHE.router)
    for n in range(N):
        s, dprobs = sum(PROBS[n, CHOSEN[n, b]] for b in range(K)), np.zeros(E)
        for a in range(K):
            dprobs[CHOSEN[n, a]] = (DW[n, a] - sum(DW[n, b] * W[n, b] for b in range(K))) / s
        yield [PROBS[n, e] * (dprobs[e] - sum(dprobs * PROBS[n])) for e in range(E)], dz[n]


def dbalance():
    _, cache = load_balancing_forward(PROBS, CHOSEN)
    f = [sum(e in CHOSEN[n] for n in range(N)) / N for e in range(E)]
    yield [[E * f[e] / N for e in range(E)] for _ in range(N)], load_balancing_backward(1.0, cache)
