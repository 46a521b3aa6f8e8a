"""Embedding:  out[n] = weight[tokens[n]]

A token that occurs several times fed the same row into several places, so its row collects all of their gradients:
    dweight[v] = Σ over n with tokens[n] = v of dout[n]
`dweight[tokens] += dout` would keep only one of them; `add.at` adds them all.
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_ids, check_shape
from numllama.dispatch import accelerated


class EmbeddingCache(NamedTuple):
    """What backward needs."""

    tokens: Array                                                      # (...)
    weight: Array                                                      # (V, C)


@accelerated
def embedding_forward(tokens: Array, weight: Array) -> tuple[Array, EmbeddingCache]:
    """Look up a row for each token.

    Parameters
    ----------
    tokens : integer array, shape (...)
        Ids in [0, V).
    weight : array, shape (V, C)

    Returns
    -------
    out : array, shape (..., C)
    cache : EmbeddingCache
    """
    check_ids("tokens", tokens, len(weight))
    return weight[tokens], EmbeddingCache(tokens, weight)


@accelerated
def embedding_backward(dout: Array, cache: EmbeddingCache, into: Array | None = None) -> Array:
    """Gradient of :func:`embedding_forward` with respect to ``weight``.

    Parameters
    ----------
    dout : array, shape (..., C)
    cache : EmbeddingCache
    into : array, shape (V, C), optional
        A buffer that the gradient is added to, and that is then returned.
    """
    tokens, weight = cache
    check_shape("dout", dout, (*tokens.shape, weight.shape[1]))
    xp = xp_of(dout)
    dweight = xp.zeros_like(weight) if into is None else into
    xp.add.at(dweight, tokens, dout)                                   # (V, C)
    return dweight
