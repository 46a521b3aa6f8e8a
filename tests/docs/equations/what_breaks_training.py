"""docs/chapters/what_breaks_training.md"""

from math import log

import numpy as np

import numllama as nl
from numllama.optim import adamw_update

V = 11


def start():
    """A model without a signal gives every token the same probability."""
    model = nl.Transformer(nl.ModelConfig(V, dim=8, n_layers=1, n_heads=2, init_std=1e-9), dtype="float64")
    tokens = np.arange(10).reshape(2, 5)
    yield -log(1 / V), model.loss(tokens, tokens[:, ::-1])
    yield log(V), -log(1 / V)


def eps():
    g, lr, large, small = 1e-6, 0.1, 1e-1, 1e-12
    for epsilon in (large, small):
        w, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
        before = 0.0
        for step in range(1, 6):                                       # a gradient of constant size
            before = w[0]
            adamw_update(w, np.array([g]), m, v, step, lr, (0.9, 0.95), epsilon, 0.0)
        yield [lr * g / (abs(g) + epsilon)], [before - w[0]]
        if epsilon == large:
            yield [lr / epsilon * g], [before - w[0]], 2 * g / epsilon
