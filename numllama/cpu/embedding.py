"""The embedding's gradient by sorting: rows of one token become neighbours, and each sum one run of them, in a fixed order."""

import numpy as np

from numllama.checks import check_shape
from numllama.ops.embedding import EmbeddingCache


def embedding_backward(dout: np.ndarray, cache: EmbeddingCache, into: np.ndarray | None = None) -> np.ndarray:
    tokens, weight = cache
    check_shape("dout", dout, (*tokens.shape, weight.shape[1]))
    dweight = np.zeros_like(weight) if into is None else into
    order = np.argsort(tokens.ravel(), kind="stable")                  # (N,)
    tokens = tokens.ravel()[order]
    is_start = np.ones(len(tokens), dtype=bool)
    is_start[1:] = tokens[1:] != tokens[:-1]
    starts = np.flatnonzero(is_start)                                  # one for each different token
    rows = dout.reshape(-1, weight.shape[1])[order]                    # (N, C)
    dweight[tokens[starts]] += np.add.reduceat(rows, starts, axis=0)
    return dweight
