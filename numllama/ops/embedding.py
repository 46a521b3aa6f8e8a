"""Embedding:  out[n] = weight[tokens[n]]

A token that occurs several times fed the same row into several places, so its row collects all of their gradients:
    dweight[v] = Σ over n with tokens[n] = v of dout[n]
`dweight[tokens] += dout` would keep only one of them. Sorting the rows by token makes each sum a run of neighbours,
in a fixed order, so that the result is the same bits each time.
"""

from numllama.backend import Array, xp_of
from numllama.checks import check_ids, check_shape
from numllama.dispatch import accelerated


@accelerated
def embedding_forward(tokens: Array, weight: Array) -> tuple[Array, tuple]:
    """Look up a row for each token.

    Parameters
    ----------
    tokens : integer array, shape (...)
        Ids in [0, V).
    weight : array, shape (V, C)

    Returns
    -------
    out : array, shape (..., C)
    cache : tuple
    """
    check_ids("tokens", tokens, len(weight))
    return weight[tokens], (tokens, weight)


@accelerated
def embedding_backward(dout: Array, cache: tuple, into: Array | None = None) -> Array:
    """Gradient of :func:`embedding_forward` with respect to ``weight``.

    Parameters
    ----------
    dout : array, shape (..., C)
    cache : tuple
    into : array, shape (V, C), optional
        A buffer that the gradient is added to, and that is then returned.
    """
    tokens, weight = cache
    check_shape("dout", dout, (*tokens.shape, weight.shape[1]))
    xp = xp_of(dout)
    dweight = xp.zeros_like(weight) if into is None else into
    order = xp.argsort(tokens.ravel(), kind="stable")                  # (N,)
    tokens = tokens.ravel()[order]
    is_start = xp.ones(len(tokens), dtype=bool)
    is_start[1:] = tokens[1:] != tokens[:-1]
    starts = xp.flatnonzero(is_start)                                  # one for each different token
    rows = dout.reshape(-1, weight.shape[1])[order]                    # (N, C)
    dweight[tokens[starts]] += xp.add.reduceat(rows, starts, axis=0)
    return dweight
