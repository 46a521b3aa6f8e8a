"""docs/chapters/sampling.md"""

from math import exp, log

import numpy as np
from docs.equations.common import normal

from numllama.generation.sampling import (
    SamplingConfig,
    draw,
    filtered,
    keep_min_p,
    keep_top_p,
    penalise_repetition,
)
from numllama.ops import softmax_forward

V = 9
X = 2 * normal(V)
P = [exp(x) / sum(exp(u) for u in X) for x in X]


def kept(logits):
    return {int(v) for v in np.flatnonzero(np.isfinite(logits[0]))}


def same(literal, actual):
    """Two sets of tokens as arrays of zeros and ones."""
    return [[float(v in chosen) for v in range(V)] for chosen in (literal, actual)]


def temperature():
    for tau in (0.5, 1.0, 3.0):
        literal = [exp(X[v] / tau) / sum(exp(X[u] / tau) for u in range(V)) for v in range(V)]
        yield literal, softmax_forward(filtered(X[None], SamplingConfig(temperature=tau)))[0][0]


def top_p():
    order = sorted(range(V), key=lambda v: -P[v])
    for bound in (0.1, 0.5, 0.9, 0.999):
        n = min(n for n in range(1, V + 1) if sum(P[v] for v in order[:n]) >= bound)
        yield same(set(order[:n]), kept(keep_top_p(X[None], bound)))


def min_p():
    for alpha in (0.01, 0.1, 0.5):
        actual = kept(keep_min_p(X[None], alpha))
        yield same({v for v in range(V) if P[v] >= alpha * max(P)}, actual)
        yield same({v for v in range(V) if X[v] >= max(X) + log(alpha)}, actual)


def penalty():
    literal = [X[v] / 1.3 if X[v] >= 0 else X[v] * 1.3 for v in range(V)]
    yield literal, penalise_repetition(X[None], np.ones((1, V), dtype=bool), 1.3)[0]


def draw_():
    a = [0.0, 0.2, 0.0, 0.5, 0.3, 0.0]
    for u in (0.0, 0.1999, 0.2, 0.5, 0.7, 0.999999):
        v = min(v for v in range(6) if sum(a[: v + 1]) > u * sum(a))
        yield float(v), draw(np.array([a]), [u])[0].astype(float)
