"""Mistakes of splitting into heads, merging them and repeating the heads of keys and values."""

import numpy as np

from numllama.learn import equations
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.learn.plain_llama import merge_heads, split_heads

catalogue = Catalogue()
forward = catalogue.forward


@forward("split_heads", "The axes are not exchanged: (B, T, H·D) is reshaped straight to (B, H, T, D).")
def _(x, D):
    B, T, width = x.shape
    return x.reshape(B, width // D, T, D)


@forward("split_heads", "The axes are exchanged before the reshape instead of after it.")
def _(x, D):
    B, T, width = x.shape
    return x.swapaxes(1, 2).reshape(B, width // D, T, D)


@forward("split_heads", "The last axis is reshaped to (D, H) instead of (H, D).")
def _(x, D):
    B, T, width = x.shape
    return x.reshape(B, T, D, width // D).transpose(0, 3, 1, 2)


@forward("split_heads", "The axes (B, T, H·D) are read as (T, B, H, D), as in Megatron.")
def _(x, D):
    B, T, width = x.shape
    return x.reshape(T, B, width // D, D).transpose(1, 2, 0, 3)


@forward("q_heads", "Query heads that share a key head are K apart instead of neighbours.")
def _(x, D, config):
    H, K = config.n_heads, config.n_kv_heads
    return split_heads(x, D).reshape(len(x), H // K, K, -1, D).swapaxes(1, 2).reshape(len(x), H, -1, D)


@forward("q_heads", "The heads are cut from q, k and v side by side: [q, k, v] for each head, not all of q first.")
def _(q, k, v, D):
    return _of_each_head(q, k, v, D, 0)


@forward("k_heads", "The heads are cut from q, k and v side by side: [q, k, v] for each head, not all of k in the middle.")
def _(q, k, v, D):
    return _of_each_head(q, k, v, D, 1)


@forward("v_heads", "The heads are cut from q, k and v side by side: [q, k, v] for each head, not all of v last.")
def _(q, k, v, D):
    return _of_each_head(q, k, v, D, 2)


def _of_each_head(q, k, v, D, which):
    if q.shape != k.shape:
        raise DoesNotApply
    B, T, width = q.shape
    return np.concatenate([q, k, v], -1).reshape(B, T, width // D, 3, D)[..., which, :].swapaxes(1, 2)


@forward("k_heads", "The heads of the keys are those of v.")
def _(v, D):
    return split_heads(v, D)


@forward("v_heads", "The heads of the values are those of k.")
def _(k, D):
    return split_heads(k, D)


@forward("v_heads", "RoPE turns the values too; it is for queries and keys only.")
def _(x, D, cos, sin, layout):
    return OPS["rope"].forward(split_heads(x, D), cos, sin, layout)


@forward("merge_heads", "The axes are not exchanged back: (B, H, T, D) is reshaped straight to (B, T, H·D).")
def _(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


@forward("merge_heads", "The heads of a token are merged as (D, H) instead of (H, D).")
def _(x):
    return x.transpose(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], -1)


@forward("merge_heads", "The axes (B, H, T, D) are read as (H, B, T, D).")
def _(x):
    B, H, T, D = x.shape
    return x.reshape(H, B, T, D).transpose(1, 2, 0, 3).reshape(B, T, -1)


@forward("merge_heads", "The result (B, T, H·D) has the order of (T, B, H·D), as in Megatron.")
def _(x):
    return x.transpose(2, 0, 1, 3).reshape(x.shape[0], x.shape[2], -1)


@forward("merge_heads", "The heads are merged in reverse order.")
def _(x):
    return merge_heads(x[:, ::-1])


@forward("repeat", "The key/value heads are tiled (0, 1, 0, 1) instead of repeated (0, 0, 1, 1).")
def _(x, n_heads):
    return np.tile(x, (1, n_heads // x.shape[1], 1, 1))


@forward("repeat", "Tokens instead of heads are repeated, and then reshaped to heads.")
def _(x, n_heads):
    return np.repeat(x, n_heads // x.shape[1], 2).reshape(len(x), n_heads, *x.shape[2:])


@forward("repeat", "All query heads share the first key/value head.")
def _(x, n_heads):
    return np.repeat(x[:, :1], n_heads, 1)


@forward("repeat", "All query heads share the mean of the key/value heads.")
def _(x, n_heads):
    return np.repeat(x.mean(1, keepdims=True), n_heads, 1)


@forward("repeat", "The key/value heads are in reverse order.")
def _(x, n_heads):
    return equations.repeat(x[:, ::-1], n_heads)


@forward("repeat", "Query head h reads at h·D/R in a token's row of key/value heads, not at (h // R)·D.")
def _(x, n_heads):
    B, K, T, D = x.shape
    memory = np.append(merge_heads(x), np.zeros(D))                                              # (B·T·K·D + D,)
    start = np.arange(B * T)[:, None] * K * D + np.arange(n_heads) * K * D // n_heads            # (B·T, H)
    return memory[start[..., None] + np.arange(D)].reshape(B, T, n_heads, D).swapaxes(1, 2)


@forward("repeat", "Each query head has the key/value head after its own, the last ones the first.")
def _(x, n_heads):
    return equations.repeat(np.roll(x, -1, 1), n_heads)
