"""The loss around a trained model: a plane through its parameters.                                    Li et al. 2018, sect. 4

A plane is w + a·u + b·v, with the parameters w and two random directions u and v. A step of fixed length means nothing by
itself: where a norm follows, a matrix can be made ten times larger without a change in what the model computes. Therefore each
row of each matrix of u and v is scaled to the length of the same row of w ("filter normalisation"). Gains and biases stay as
they are. At a = 1 every row has moved by its own length, so that planes of different models can be compared.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numllama.backend import to_numpy, xp_of
from numllama.model.parameters import FlatTensors


def direction(params: FlatTensors, rng: np.random.Generator) -> FlatTensors:
    """A random direction: each row of a matrix is as long as that row of `params`; gains and biases are 0."""
    found = params.zeros_like()
    for name, w in params.items():
        if w.ndim == 2:
            d = rng.standard_normal(w.shape)
            lengths = np.linalg.norm(to_numpy(w), axis=1, keepdims=True) / np.linalg.norm(d, axis=1, keepdims=True)
            found[name][...] = xp_of(w).asarray(d * lengths, dtype=w.dtype)
    return found


def plane(model: Any, tokens: np.ndarray, targets: np.ndarray, at: Sequence[float], seed: int = 0) -> np.ndarray:
    """Losses on a plane through the parameters of a model, which are put back at the end.

    Parameters
    ----------
    model : Transformer
        Or any other object with `params` and `loss`.
    tokens, targets : integer array, shape (B, T)
    at : sequence of n floats
        The values of a and b.
    seed : int
        Of the two directions.

    Returns
    -------
    losses : array, shape (n, n)
        Row i has b = at[i], column j has a = at[j].
    """
    rng = np.random.default_rng(seed)
    u, v = direction(model.params, rng).flat, direction(model.params, rng).flat
    w, trained = model.params.flat, model.params.flat.copy()
    losses = np.empty((len(at), len(at)))
    try:
        for i, j in np.ndindex(losses.shape):
            w[...] = trained + float(at[j]) * u + float(at[i]) * v
            losses[i, j] = float(model.loss(tokens, targets))
    finally:
        w[...] = trained
    return losses
