"""docs/chapters/initialisation.md: statistics, so they hold as well as so many numbers let them."""

from math import log, sqrt

import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.model.parameters import initial_parameters
from numllama.ops import linear_forward

CONFIG = nl.ModelConfig(vocab_size=50, dim=64, n_layers=6, n_heads=4, ffn_dim=64)


def variance():
    """Over 40,000 outputs; the mean of squares of so many is known to one per cent."""
    I, sigma = 32, 0.3  # noqa: E741
    x = normal(I)
    out = linear_forward(x[None], sigma * normal(40_000, I, seed=1))[0]
    yield I * sigma**2 * sum(x[i] ** 2 for i in range(I)) / I, (out**2).mean(), 0.03


def stream():
    x, tau, L = 1.5 * normal(100_000), 0.4, 5
    start = (x**2).mean()
    for i in range(2 * L):
        x = x + tau * normal(100_000, seed=i + 1)
    yield start + 2 * L * tau**2, (x**2).mean(), 0.02


def scaled():
    params = initial_parameters(CONFIG, 0, np.float64)
    for name in ("wo", "w_down"):
        drawn = np.concatenate([block[name].ravel() for block in params.blocks])
        yield CONFIG.init_std / sqrt(2 * CONFIG.n_layers), drawn.std(), 0.02
        yield CONFIG.init_std**2, 2 * CONFIG.n_layers * drawn.var(), 0.04


def loss():
    tokens = np.random.default_rng(0).integers(0, 50, (16, 65))
    yield log(50), nl.Transformer(CONFIG, seed=0, dtype="float64").loss(tokens[:, :-1], tokens[:, 1:]), 0.01
