"""docs/ops/rope.md"""

from math import cos, pi, sin

import numpy as np
from docs.equations.common import normal

from numllama.ops import rope_backward, rope_forward, rope_table

T, D, THETA = 5, 6, 100.0
POSITIONS = np.array([0, 3, 4, 11, 25])
X, DOUT = normal(1, 1, T, D), normal(1, 1, T, D, seed=1)
COS, SIN = rope_table(POSITIONS, D, THETA, dtype="float64")
ANGLES = [[t * THETA ** (-2 * j / D) for j in range(D // 2)] for t in POSITIONS]
LAYOUTS = {"half": lambda j: (j, j + D // 2), "interleaved": lambda j: (2 * j, 2 * j + 1)}


def angle():
    yield [[cos(ANGLES[t][j]) for j in range(D // 2)] for t in range(T)], COS
    yield [[sin(ANGLES[t][j]) for j in range(D // 2)] for t in range(T)], SIN


def turned(x, sign, pair):
    literal = np.empty((T, D))
    for t in range(T):
        for j in range(D // 2):
            first, second = pair(j)
            a, x1, x2 = ANGLES[t][j], x[0, 0, t, first], x[0, 0, t, second]
            literal[t, first] = x1 * cos(a) - sign * x2 * sin(a)
            literal[t, second] = x2 * cos(a) + sign * x1 * sin(a)
    return literal


def out():
    for layout, pair in LAYOUTS.items():
        yield turned(X, +1, pair), rope_forward(X, COS, SIN, layout)[0][0, 0]


def dx():
    for layout, pair in LAYOUTS.items():
        yield turned(DOUT, -1, pair), rope_backward(DOUT, rope_forward(X, COS, SIN, layout)[1])[0, 0]


def relative():
    q, k = normal(2), normal(2, seed=1)
    table = rope_table(np.arange(30), 2, THETA, dtype="float64")
    outs = [rope_forward(np.tile(x, (1, 1, 30, 1)), *table)[0][0, 0] for x in (q, k)]
    for t, s in ((7, 3), (29, 0), (4, 20)):
        difference = t - s  # the one pair of D = 2 turns by one radian a token
        literal = (q[0] * k[0] + q[1] * k[1]) * cos(difference) + (q[0] * k[1] - q[1] * k[0]) * sin(difference)
        yield literal, outs[0][t] @ outs[1][s]


def scaling():
    settings = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    D, theta = 16, 100.0
    cosines, _ = rope_table(np.arange(3), D, theta, settings, dtype="float64")
    literal = []
    for j in range(D // 2):
        omega = theta ** (-2 * j / D)
        n = 64 * omega / (2 * pi)
        kappa = min(1, max(0, (n - 1.0) / (4.0 - 1.0)))
        literal.append(omega * (kappa + (1 - kappa) / 8.0))
    yield [[cos(t * omega) for omega in literal] for t in range(3)], cosines
