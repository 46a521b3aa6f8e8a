"""docs/chapters/residual_stream.md"""

from itertools import combinations

import numpy as np
from docs.equations.common import derivative, normal

import numllama as nl
from numllama import ops
from numllama.model.block import (
    Context,
    attention_block_backward,
    attention_block_forward,
    ffn_block_backward,
    ffn_block_forward,
    layer_forward,
)
from numllama.model.parameters import LayerGradients

T, C = 2, 4
CONFIG = nl.ModelConfig(vocab_size=5, dim=C, n_layers=2, n_heads=2, ffn_dim=8, max_seq_len=T, init_std=0.5)
MODEL = nl.Transformer(CONFIG, dtype="float64")
CONTEXT = Context(CONFIG, np.arange(T), *ops.rope_table(np.arange(T), CONFIG.head_dim, CONFIG.rope_theta, dtype="float64"))
X, DOUT = normal(1, T, C), normal(1, T, C, seed=1)


def run(x):
    """The stream before each of the four blocks and after the last, the branches, and the caches."""
    streams, branches, caches = [x], [], []
    before, branch = x, np.zeros_like(x)
    for i, w in enumerate(MODEL.params.blocks):
        for forward, backward in ((attention_block_forward, attention_block_backward), (ffn_block_forward, ffn_block_backward)):
            (before, branch), cache = forward(before, branch, w, CONTEXT, i)
            caches.append((backward, cache))
            branches.append(branch)
            streams.append(before + branch)
    return streams, branches, caches


STREAMS, BRANCHES, CACHES = run(X)


def gradients():
    """Of the stream before each block."""
    d, dbranch, found, grads = DOUT, DOUT, [DOUT], MODEL.params.zeros_like()
    for i in reversed(range(4)):
        backward, cache = CACHES[i]
        d, dbranch = backward(d, dbranch, cache, LayerGradients(grads, i // 2))
        found.append(d)
    return found[::-1]


def jacobian(i):
    """Of branch i, (T·C, T·C), by differences."""
    w = MODEL.params.blocks[i // 2]

    def branch(x):
        forward = ffn_block_forward if i % 2 else attention_block_forward
        (_, out), _ = forward(x, np.zeros_like(x), w, CONTEXT, 0)
        return out.ravel()

    return np.stack([derivative(branch, STREAMS[i], j) for j in np.ndindex(1, T, C)], axis=1)


def forward():
    for i in range(4):
        yield STREAMS[i] + BRANCHES[i], STREAMS[i + 1]
    x, branch = X, np.zeros_like(X)
    for i, w in enumerate(MODEL.params.blocks):
        (x, branch), _ = layer_forward(x, branch, w, CONTEXT, i)
        yield STREAMS[2 * i + 2], x + branch


def backward():
    found = gradients()
    for i in range(4):
        d = found[i + 1].ravel()
        yield d + jacobian(i).T @ d, found[i].ravel(), 1e-8


def product():
    J, d = [jacobian(i) for i in range(4)], DOUT.ravel()
    whole = d
    for i in reversed(range(4)):
        whole = (np.eye(T * C) + J[i].T) @ whole
    yield whole, gradients()[0].ravel(), 1e-8
    terms = d + sum(J[i].T @ d for i in range(4))
    for n in (2, 3, 4):
        for chosen in combinations(range(4), n):
            term = d
            for i in reversed(chosen):
                term = J[i].T @ term
            terms = terms + term
    yield terms, gradients()[0].ravel(), 1e-8
