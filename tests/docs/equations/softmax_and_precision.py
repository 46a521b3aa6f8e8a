"""docs/chapters/softmax_and_precision.md"""

from math import exp, log

import numpy as np
from docs.equations.common import normal

from numllama.ops import cross_entropy_forward, softmax_forward

n = 6
X = 2 * normal(n)


def code(x):
    """Log-sum-exp, as the loss computes it."""
    return cross_entropy_forward(x[None], np.array([0]))[1].lse[0]


def lse():
    yield log(sum(exp(X[i]) for i in range(n))), code(X)
    yield [exp(X[i] - code(X)) for i in range(n)], softmax_forward(X)[0]


def bounds():
    m = max(X)
    yield code(X), float(np.clip(code(X), m, m + log(n)))  # nothing had to be cut
    yield m + log(n), code(np.full(n, m))  # the upper bound is reached


def shift():
    for c in (3.0, -1.5, max(X)):
        yield c + log(sum(exp(X[i] - c) for i in range(n))), code(X)


def sum_():
    a = normal(1000).astype("float32")
    error = abs(float(np.cumsum(a)[-1]) - sum(map(float, a)))
    bound = (1000 - 1) * 2.0**-23 / 2 * sum(abs(float(x)) for x in a)
    yield bound, max(bound, error)
