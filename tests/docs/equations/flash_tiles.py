"""docs/chapters/flash_tiles.md"""

from math import ceil, exp

import numpy as np
from docs.equations.common import normal

from numllama.cpu.flash_attention import QUERY_TILE, tiles
from numllama.ops import flash_attention_forward
from numllama.ops.intervals import key_intervals

S, D = 7, 3
Q, K, V = normal(D), 2 * normal(S, D), normal(S, D, seed=1)


def merge():
    scores = [sum(Q[d] * K[s, d] for d in range(D)) for s in range(S)]

    def summary(keys):
        m = max(scores[j] for j in keys)
        z = sum(exp(scores[j] - m) for j in keys)
        return m, z, [sum(exp(scores[j] - m) * V[j, d] for j in keys) for d in range(D)]

    def merged(a, b):
        (m, z, o), (m2, z2, o2) = a, b
        M = max(m, m2)
        o = [o[d] * exp(m - M) + o2[d] * exp(m2 - M) for d in range(D)]
        return M, z * exp(m - M) + z2 * exp(m2 - M), o

    out = flash_attention_forward(Q[None, None, None], K[None, None], V[None, None], scale=1.0)[0][0, 0, 0]
    a, b, c = summary([0, 1]), summary([2, 3, 4]), summary([5, 6])
    for _, z, o in (merged(merged(a, b), c), merged(a, merged(b, c)), merged(merged(c, a), b)):
        yield [o[d] / z for d in range(D)], out


def bytes_():
    """The tiles that the code makes read as many keys as the formula says, and a dense array has T·S elements four times."""
    T = S = 300
    q = np.zeros((1, 1, T, 8))
    everything = np.zeros(T, dtype=int), np.full(T, S)
    b, D = q.itemsize, 8
    made = tiles(q, q, *key_intervals(*everything, q, S))
    read = sum(2 * D * (keys.stop - keys.start) for _, _, pieces in made for keys, _ in pieces)
    yield b * (2 * T * D + 2 * S * D * ceil(T / QUERY_TILE)), b * (2 * T * D + read)
    yield b * (2 * T * D + 2 * S * D + 4 * T * S), 2 * q.nbytes + 2 * q.nbytes + 4 * np.zeros((T, S)).nbytes
