"""docs/chapters/scaling_laws.md"""

from math import exp, log

import numpy as np
from docs.equations.common import derivative
from helpers import example

E, A, B, ALPHA, BETA = 1.2, 40.0, 300.0, 0.35, 0.45
THETA = np.array([log(E), log(A), log(B), ALPHA, BETA])
N, D = np.array([5e3, 8e4, 1e6, 5e3]), np.array([1e5, 4e5, 2e6, 2e6])


def law(theta=THETA):
    """log L at every point, in plain numbers."""
    e, a, b, alpha, beta = theta
    return np.array([log(exp(e) + exp(a) / n**alpha + exp(b) / d**beta) for n, d in zip(N, D, strict=True)])


def loss():
    literal = np.array([E + A / n**ALPHA + B / d**BETA for n, d in zip(N, D, strict=True)])
    yield literal, example("scaling_laws").Law(E, A, B, ALPHA, BETA)(N, D)


def objective():
    """Huber's loss is a parabola inside and a line outside, and the slope of their sum is what the fit sets to zero."""
    laws, delta = example("scaling_laws"), 0.01
    measured = law() + np.array([0.003, -0.05, 0.2, 0.0])
    literal = 0.0
    for r in law() - measured:
        literal += r * r / 2 if abs(r) <= delta else delta * (abs(r) - delta / 2)
    yield literal, laws.huber(law() - measured, delta).sum()
    log_loss, slopes = laws.log_law(THETA, N, D)
    r = log_loss - measured
    for i in range(5):
        slope = derivative(lambda at: laws.huber(laws.log_law(at, N, D)[0] - measured, delta).sum(), THETA, (i,), 1e-5)
        yield (slopes[:, i] * np.minimum(1, delta / np.maximum(abs(r), 1e-300)) * r).sum(), slope, 1e-7


def slopes():
    found = example("scaling_laws").log_law(THETA, N, D)[1]
    L = np.exp(law())
    p = np.array([[E, A / n**ALPHA, B / d**BETA] for n, d in zip(N, D, strict=True)]) / L[:, None]
    yield np.stack([p[:, 0], p[:, 1], p[:, 2], -p[:, 1] * np.log(N), -p[:, 2] * np.log(D)], axis=1), found
    yield np.stack([derivative(law, THETA, (i,)) for i in range(5)], axis=1), found, 1e-9


def optimum():
    """At the best size the loss along a line of equal cost is level."""
    laws = example("scaling_laws").Law(E, A, B, ALPHA, BETA)
    for cost in (1e10, 6e12):
        n = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (cost / 6) ** (BETA / (ALPHA + BETA))
        yield n, laws.best_size(cost)
        slope = derivative(lambda s, cost=cost: np.array(laws(np.exp(s[0]), cost / 6 / np.exp(s[0]))), np.array([log(n)]), (0,))
        yield 1.0, 1.0 + slope, 1e-9
