"""docs/chapters/ladder.md"""

from math import exp, log

import numpy as np
from docs.equations.common import derivative, normal
from helpers import example

import numllama as nl
from numllama.learn.landscape import direction
from numllama.learn.landscape import plane as plane_of

B, T, I, C = 2, 4, 3, 5                                                # noqa: E741
X, W_X, W_H, BIAS, DOUT = normal(B, T, I), normal(C, I) / 2, normal(C, C) / 2, normal(C), normal(B, T, C)


def bigram():
    config = nl.ModelConfig(vocab_size=4, dim=4, n_layers=1, n_heads=1, init_std=1.0)
    model = example("llamafy").Bigram(config, dtype="float64")
    embed, head = model.params["embed"], model.params["head"]
    tokens, targets = np.array([[0, 2, 3]]), np.array([[2, 3, 1]])
    literal = 0.0
    for i, j in zip(tokens[0], targets[0], strict=True):
        z = [sum(embed[i, c] * head[v, c] for c in range(4)) for v in range(4)]
        literal -= log(exp(z[j]) / sum(exp(z[v]) for v in range(4)))
    yield literal / 3, model.loss(tokens, targets)


def states(x=X):
    h = np.zeros((B, T + 1, C))                                        # h[:, -1] stays zero: before the first token
    for b in range(B):
        for t in range(T):
            for j in range(C):
                a = sum(W_X[j, i] * x[b, t, i] for i in range(I)) + sum(W_H[j, i] * h[b, t - 1, i] for i in range(C))
                h[b, t, j] = np.tanh(a + BIAS[j])
    return h[:, :T]


def rnn():
    yield states(), example("llamafy").rnn_forward(X, W_X, W_H, BIAS)[0]


def dz_literal():
    h, dz = states(), np.zeros((B, T + 1, C))                          # after the last token there is nothing
    for b in range(B):
        for t in reversed(range(T)):
            for j in range(C):
                dh = DOUT[b, t, j] + sum(W_H[i, j] * dz[b, t + 1, i] for i in range(C))
                dz[b, t, j] = dh * (1 - h[b, t, j] ** 2)
    return h, dz[:, :T]


def gradients(dout=DOUT):
    ladder = example("llamafy")
    return ladder.rnn_backward(dout, ladder.rnn_forward(X, W_X, W_H, BIAS)[1])


def through_time():
    """dz is seen in what it makes, dx; which is the derivative of the states, too."""
    dx = dz_literal()[1] @ W_X
    yield dx, gradients()[0]
    numeric = [derivative(lambda x: (states(x) * DOUT).sum(), X, j) for j in np.ndindex(B, T, I)]
    yield np.reshape(numeric, X.shape), dx, 1e-9


def weights():
    h, dz = dz_literal()
    dw_x, dw_h, dbias = np.zeros((C, I)), np.zeros((C, C)), np.zeros(C)
    for b in range(B):
        for t in range(T):
            for j in range(C):
                dbias[j] += dz[b, t, j]
                for i in range(I):
                    dw_x[j, i] += dz[b, t, j] * X[b, t, i]
                for i in range(C):
                    dw_h[j, i] += dz[b, t, j] * (h[b, t - 1, i] if t else 0.0)
    yield from zip((dw_x, dw_h, dbias), gradients()[1:], strict=True)


def far():
    """The gradient that reaches an early state from the last one alone, as a product of Jacobians."""
    h = states()
    dout = np.zeros_like(DOUT)
    dout[:, -1] = DOUT[:, -1]
    dx = gradients(dout)[0]
    for b in range(B):
        for t in range(T):
            d = dout[b, -1]
            for s in reversed(range(t + 1, T)):
                d = W_H.T @ np.diag(1 - h[b, s] ** 2) @ d
            yield W_X.T @ np.diag(1 - h[b, t] ** 2) @ d, dx[b, t]


def plane():
    config = nl.ModelConfig(vocab_size=4, dim=4, n_layers=1, n_heads=1, ffn_dim=4, max_seq_len=3)
    model, rng = nl.Transformer(config, seed=0, dtype="float64"), np.random.default_rng(5)
    tokens, targets, w = np.array([[0, 2, 3]]), np.array([[2, 3, 1]]), {}
    u, v = direction(model.params, rng), direction(model.params, rng)
    losses = plane_of(model, tokens, targets, (-0.5, 0.0, 1.0), seed=5)
    rng = np.random.default_rng(5)
    for found in (u, v):
        for name, value in model.params.items():
            w[name] = value.copy()
            if value.ndim == 1:
                yield 0.0, abs(found[name]).max()
                continue
            d = rng.standard_normal(value.shape)
            for r in range(len(value)):
                length = sum(x * x for x in value[r]) ** 0.5 / sum(x * x for x in d[r]) ** 0.5
                yield [length * x for x in d[r]], found[name][r]
    for i, b in enumerate((-0.5, 0.0, 1.0)):
        for j, a in enumerate((-0.5, 0.0, 1.0)):
            for name, value in model.params.items():
                value[...] = w[name] + a * u[name] + b * v[name]
            yield model.loss(tokens, targets), losses[i, j]
