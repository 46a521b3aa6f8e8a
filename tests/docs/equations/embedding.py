"""docs/ops/embedding.md"""

import numpy as np
from docs.equations.common import delta, normal

from numllama.ops import embedding_backward, embedding_forward

V, N, C = 5, 7, 3
W, TOKENS, DOUT = normal(V, C), np.array([1, 0, 1, 4, 1, 2, 0]), normal(N, C)
OUT, CACHE = embedding_forward(TOKENS, W)
DW = embedding_backward(DOUT, CACHE)


def out():
    yield [[W[TOKENS[n], c] for c in range(C)] for n in range(N)], OUT


def onehot():
    yield [[sum(delta(v, TOKENS[n]) * W[v, c] for v in range(V)) for c in range(C)] for n in range(N)], OUT


def dweight():
    yield [[sum(DOUT[n, c] * delta(v, TOKENS[n]) for n in range(N)) for c in range(C)] for v in range(V)], DW
    yield [[sum(DOUT[n, c] for n in range(N) if TOKENS[n] == v) for c in range(C)] for v in range(V)], DW
