"""docs/ops/dropout.md"""

from math import floor

import numpy as np
from docs.equations.common import delta, normal

from numllama.hashing import fold_key
from numllama.ops import dropout_backward, dropout_forward

n, P, KEY = 40, 0.3, (5, 6, 7)
X, DOUT = normal(n), normal(n, seed=1)
OUT, CACHE = dropout_forward(X, P, KEY)
M = [0 if OUT[i] == 0 else 1 for i in range(n)]


def mix(h):
    """lowbias32 with Python's integers."""
    h = (h ^ (h >> 16)) * 0x7FEB352D % 2**32
    h = (h ^ (h >> 15)) * 0x846CA68B % 2**32
    return h ^ (h >> 16)


def out():
    yield [M[i] / (1 - P) * X[i] for i in range(n)], OUT
    many = dropout_forward(np.ones(200_000), P, KEY)[0]
    yield P, (many == 0).mean(), 0.02


def mask():
    a, b = fold_key(KEY)
    yield [int(mix(mix(i ^ a) ^ b) >= floor(P * 2**32)) for i in range(n)], np.array(M)


def dx():
    dx = dropout_backward(DOUT, CACHE)
    yield [sum(DOUT[i] * delta(i, j) * M[i] / (1 - P) for i in range(n)) for j in range(n)], dx
    yield [M[j] / (1 - P) * DOUT[j] for j in range(n)], dx
