"""docs/chapters/attention_cost.md"""

from math import prod

import numpy as np
from docs.equations.common import normal

import numllama as nl
from numllama.model.parameters import block_shapes
from numllama.ops import attention_forward, flash_attention_forward, linear_forward

SHAPE = nl.ModelConfig(vocab_size=5, dim=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=40, max_seq_len=64)
C, H, K, D, F = SHAPE.dim, SHAPE.n_heads, SHAPE.n_kv_heads, SHAPE.head_dim, SHAPE.ffn_dim
P = sum(map(prod, block_shapes(SHAPE)[0].values()))
DONE = [0]


class Products(np.ndarray):
    """An array that counts the FLOPs of its matrix products in DONE."""

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        inputs = [np.asarray(x) for x in inputs]
        result = getattr(ufunc, method)(*inputs, **{name: value for name, value in kwargs.items() if name != "out"})
        if ufunc is np.matmul:
            DONE[0] += 2 * result.size * inputs[0].shape[-1]
        return result.view(Products) if isinstance(result, np.ndarray) else result


def counted(t):
    """FLOPs of the token at position t: a layer's matrices, and one query with t keys."""
    DONE[0] = 0
    for shape in block_shapes(SHAPE)[0].values():
        linear_forward(normal(1, shape[1]).view(Products), normal(*shape))
    q, k, v = (normal(1, heads, n, D).view(Products) for heads, n in ((H, 1), (K, t), (K, t)))
    attention_forward.reference(q, k, v)
    return DONE[0]


def token():
    yield float(2 * C * D * (H + K) + 3 * C * F), float(P)
    for t in (1, 7):
        yield float(2 * P + 4 * H * D * t), float(counted(t))


def text():
    for T in (1, 6):
        literal = float(sum(2 * P + 4 * H * D * t for t in range(1, T + 1)))
        yield literal, float(2 * P * T + 2 * H * D * T * (T + 1))
        yield literal, float(sum(counted(t) for t in range(1, T + 1)))


def overtakes():
    c = nl.ModelConfig(vocab_size=5, dim=24, n_layers=1, n_heads=4, head_dim=6, ffn_dim=64)
    weights = sum(map(prod, block_shapes(c)[0].values()))
    T = weights // (c.n_heads * c.head_dim) - 1
    yield float(2 * weights * T), float(2 * c.n_heads * c.head_dim * T * (T + 1))
    yield 12.0, weights / c.dim**2


def scores():
    for T in (3, 8):
        q, k, v = normal(1, H, T, D), normal(1, K, T, D), normal(1, K, T, D)
        yield float(8 * H * T**2), float(attention_forward(q, k, v)[1].p.nbytes)


def flash():
    for T in (3, 8):
        q, k, v = normal(1, H, T, D), normal(1, K, T, D), normal(1, K, T, D)
        out, cache = flash_attention_forward(q, k, v)
        yield float(8 * H * T * (D + 1)), float(out.nbytes + cache.lse.nbytes)


def intensity():
    B, b, t = 3, 8, 7
    DONE[0] = 0
    weights = [normal(*shape) for shape in block_shapes(SHAPE)[0].values()]
    for weight in weights:
        linear_forward(normal(B, weight.shape[1]).view(Products), weight)
    yield 2 * B / b, DONE[0] / sum(weight.nbytes for weight in weights)
    DONE[0] = 0
    q, k, v = (normal(B, heads, n, D).view(Products) for heads, n in ((H, 1), (K, t), (K, t)))
    attention_forward.reference(q, k, v)
    yield 2 * (H / K) / b, DONE[0] / (k.nbytes + v.nbytes)


def cache():
    """The keys and values that the last token needs: with only those, its output is the same."""
    W, b = 6, 8
    for T in (4, W, 15):
        q, k, v = normal(1, H, T, D), normal(1, K, T, D), normal(1, K, T, D)
        first = np.maximum(np.arange(T) - W + 1, 0)
        whole = attention_forward(q, k, v, first, np.arange(T) + 1)[0]
        kept = k[:, :, -min(T, W) :].copy(), v[:, :, -min(T, W) :].copy()
        yield float(2 * SHAPE.n_layers * K * D * b * min(T, W)), float(SHAPE.n_layers * sum(array.nbytes for array in kept))
        yield whole[:, :, -1:], attention_forward(q[:, :, -1:], *kept)[0]
        longer = attention_forward(q[:, :, -1:], *(array[:, :, 1:] for array in kept))[0]
        yield 1.0, float(abs(longer - whole[:, :, -1:]).max() > 1e-3)  # one key fewer is not enough


def window():
    T, W = 9, 4
    q, k = normal(1, 1, T, D), normal(1, 1, T, D)
    first = np.array([max(t - W, 0) for t in range(1, T + 1)])
    seen = (attention_forward(q, k, k, first, np.arange(1, T + 1))[1].p > 0).sum()
    literal = float(sum(min(t, W) for t in range(1, T + 1)))
    yield literal, float(seen)
    yield literal, W * T - W * (W - 1) / 2
