"""docs/chapters/kv_cache.md"""

from math import exp, sqrt

import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.ops import attention_forward, flash_attention_forward

S, D = 6, 4


def attention():
    q, k, v = normal(S, D), normal(S, D, seed=1), normal(S, D, seed=2)
    whole = attention_forward(q[None, None], k[None, None], v[None, None])[0][0, 0]
    for t in range(S):
        e = [exp(sum(q[t, d] * k[s, d] for d in range(D)) / sqrt(D)) for s in range(t + 1)]
        literal = [sum(e[s] / sum(e) * v[s, d] for s in range(t + 1)) for d in range(D)]
        yield literal, whole[t]
        seen = flash_attention_forward(q[None, None, t : t + 1], k[None, None, : t + 1], v[None, None, : t + 1])[0]
        yield literal, seen[0, 0, 0]


def bytes_():
    c = nl.ModelConfig(vocab_size=5, dim=16, n_layers=3, n_heads=4, n_kv_heads=2, max_seq_len=64)
    cache = nl.KVCache(nl.Transformer(c), capacity=10)
    b = np.dtype("float32").itemsize
    yield 2 * c.n_layers * c.n_kv_heads * c.head_dim * b, (cache.keys.nbytes + cache.values.nbytes) / 10
