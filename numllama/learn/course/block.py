"""The backward of a whole Llama block, value by value: what the exercise `block` is made from, and its solution.

Each function returns one gradient. It is given d, the gradients of all values that are used further down in the forward; a, the
values of the forward; and w, the weights. d.q has the shape of a.q. Sizes: H query heads, K key heads, D head size.
"""

import math

import numpy as np

H, K, D, EPS = 4, 2, 4, 1e-5


class Values(dict):
    """Arrays by name: a.q is a["q"]."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


def split_heads(x):                                                    # (B, T, n·D) -> (B, n, T, D)
    B, T, width = x.shape
    return x.reshape(B, T, width // D, D).swapaxes(1, 2)


def merge_heads(x):                                                    # (B, n, T, D) -> (B, T, n·D)
    B, n, T, _ = x.shape
    return x.swapaxes(1, 2).reshape(B, T, n * D)


def turn(x, cos, sin):                                                 # RoPE: pairs (x[j], x[j + D/2]) turn by an angle
    first, second = x[..., : D // 2], x[..., D // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def block_forward(x, w, cos, sin):
    """The values of a block for the stream x, (B, T, C)."""
    a = Values()
    a.x, a.cos, a.sin = x, cos, sin
    a.attn_rstd = 1 / np.sqrt((a.x * a.x).mean(-1, keepdims=True) + EPS)                     # (B, T, 1)
    a.attn_n = a.x * a.attn_rstd                                                             # (B, T, C)
    a.attn_norm = a.attn_n * w.attn_gain                                                     # (B, T, C)
    a.q = a.attn_norm @ w.wq.T                                                               # (B, T, H·D)
    a.k = a.attn_norm @ w.wk.T                                                               # (B, T, K·D)
    a.v = a.attn_norm @ w.wv.T                                                               # (B, T, K·D)
    a.q_heads, a.k_heads, a.v_heads = split_heads(a.q), split_heads(a.k), split_heads(a.v)   # (B, H or K, T, D)
    a.q_rotated = turn(a.q_heads, cos, sin)                                                  # (B, H, T, D)
    a.k_rotated = turn(a.k_heads, cos, sin)                                                  # (B, K, T, D)
    a.k_all = np.repeat(a.k_rotated, H // K, axis=1)                                         # (B, H, T, D)
    a.v_all = np.repeat(a.v_heads, H // K, axis=1)                                           # (B, H, T, D)
    causal = np.tri(x.shape[1], dtype=bool)                                                  # query t sees keys 0..t
    a.scores = np.where(causal, a.q_rotated @ a.k_all.swapaxes(-1, -2) / math.sqrt(D), -math.inf)    # (B, H, T, T)
    e = np.exp(a.scores - a.scores.max(-1, keepdims=True))
    a.attention = e / e.sum(-1, keepdims=True)                                               # (B, H, T, T)
    a.head_outputs = a.attention @ a.v_all                                                   # (B, H, T, D)
    a.merged = merge_heads(a.head_outputs)                                                   # (B, T, H·D)
    a.attn_out = a.merged @ w.wo.T                                                           # (B, T, C)
    a.after_attention = a.x + a.attn_out                                                     # (B, T, C)
    a.ffn_rstd = 1 / np.sqrt((a.after_attention * a.after_attention).mean(-1, keepdims=True) + EPS)  # (B, T, 1)
    a.ffn_n = a.after_attention * a.ffn_rstd                                                 # (B, T, C)
    a.ffn_norm = a.ffn_n * w.ffn_gain                                                        # (B, T, C)
    a.gate = a.ffn_norm @ w.w_gate.T                                                         # (B, T, F)
    a.up = a.ffn_norm @ w.w_up.T                                                             # (B, T, F)
    a.sigma = 1 / (1 + np.exp(-a.gate))                                                      # (B, T, F)
    a.silu = a.gate * a.sigma                                                                # (B, T, F)
    a.swiglu = a.silu * a.up                                                                 # (B, T, F)
    a.ffn_out = a.swiglu @ w.w_down.T                                                        # (B, T, C)
    a.after_ffn = a.after_attention + a.ffn_out                                              # (B, T, C)
    return a


# ------------------------------------------------------------------------------------------------ the feed-forward


# forward: a.after_ffn = a.after_attention + a.ffn_out
def d_ffn_out(d, a, w):                                                # (B, T, C)
    return d.after_ffn


# forward: a.ffn_out = a.swiglu @ w.w_down.T
def d_w_down(d, a, w):                                                 # (C, F)
    return rows(d.ffn_out).T @ rows(a.swiglu)


def d_swiglu(d, a, w):                                                 # (B, T, F)
    return d.ffn_out @ w.w_down


# forward: a.swiglu = a.silu * a.up
def d_up(d, a, w):                                                     # (B, T, F)
    return d.swiglu * a.silu


def d_silu(d, a, w):                                                   # (B, T, F)
    return d.swiglu * a.up


# forward: a.silu = a.gate * a.sigma, and a.sigma = 1 / (1 + np.exp(-a.gate))
def d_gate(d, a, w):                                                   # (B, T, F)
    return d.silu * (a.sigma + a.gate * a.sigma * (1 - a.sigma))


# forward: a.up = a.ffn_norm @ w.w_up.T, and a.gate = a.ffn_norm @ w.w_gate.T
def d_w_up(d, a, w):                                                   # (F, C)
    return rows(d.up).T @ rows(a.ffn_norm)


def d_w_gate(d, a, w):                                                 # (F, C)
    return rows(d.gate).T @ rows(a.ffn_norm)


def d_ffn_norm(d, a, w):                                               # (B, T, C)
    return d.up @ w.w_up + d.gate @ w.w_gate


# ------------------------------------------------------------------------------------------------ its norm


# forward: a.ffn_norm = a.ffn_n * w.ffn_gain
def d_ffn_gain(d, a, w):                                               # (C,)
    return rows(d.ffn_norm * a.ffn_n).sum(0)


def d_ffn_n(d, a, w):                                                  # (B, T, C)
    return d.ffn_norm * w.ffn_gain


# forward: a.ffn_n = a.after_attention * a.ffn_rstd
def d_ffn_rstd(d, a, w):                                               # (B, T, 1)
    return (d.ffn_n * a.after_attention).sum(-1, keepdims=True)


# forward: a.after_attention is used three times: in a.after_ffn, in a.ffn_n, and in
#     a.ffn_rstd = 1 / np.sqrt((a.after_attention * a.after_attention).mean(-1, keepdims=True) + EPS)
def d_after_attention(d, a, w):                                        # (B, T, C)
    C = a.x.shape[-1]
    return d.after_ffn + d.ffn_n * a.ffn_rstd - d.ffn_rstd * a.ffn_rstd**3 * a.after_attention / C


# ------------------------------------------------------------------------------------------------ attention


# forward: a.after_attention = a.x + a.attn_out
def d_attn_out(d, a, w):                                               # (B, T, C)
    return d.after_attention


# forward: a.attn_out = a.merged @ w.wo.T
def d_wo(d, a, w):                                                     # (C, H·D)
    return rows(d.attn_out).T @ rows(a.merged)


def d_merged(d, a, w):                                                 # (B, T, H·D)
    return d.attn_out @ w.wo


# forward: a.merged = merge_heads(a.head_outputs)
def d_head_outputs(d, a, w):                                           # (B, H, T, D)
    return split_heads(d.merged)


# forward: a.head_outputs = a.attention @ a.v_all
def d_attention(d, a, w):                                              # (B, H, T, T)
    return d.head_outputs @ a.v_all.swapaxes(-1, -2)


def d_v_all(d, a, w):                                                  # (B, H, T, D)
    return a.attention.swapaxes(-1, -2) @ d.head_outputs


# forward: a.attention is the softmax of a.scores over the last axis
def d_scores(d, a, w):                                                 # (B, H, T, T)
    return a.attention * (d.attention - (d.attention * a.attention).sum(-1, keepdims=True))


# forward: a.scores = a.q_rotated @ a.k_all.swapaxes(-1, -2) / math.sqrt(D), -inf where the key is hidden
def d_q_rotated(d, a, w):                                              # (B, H, T, D)
    return d.scores @ a.k_all / math.sqrt(D)


def d_k_all(d, a, w):                                                  # (B, H, T, D)
    return d.scores.swapaxes(-1, -2) @ a.q_rotated / math.sqrt(D)


# forward: a.k_all = np.repeat(a.k_rotated, H // K, axis=1), and a.v_all likewise from a.v_heads
def d_k_rotated(d, a, w):                                              # (B, K, T, D)
    B, _, T, _ = d.k_all.shape
    return d.k_all.reshape(B, K, H // K, T, D).sum(2)


def d_v_heads(d, a, w):                                                # (B, K, T, D)
    B, _, T, _ = d.v_all.shape
    return d.v_all.reshape(B, K, H // K, T, D).sum(2)


# forward: a.q_rotated = turn(a.q_heads, a.cos, a.sin), and a.k_rotated likewise
def d_q_heads(d, a, w):                                                # (B, H, T, D)
    return turn(d.q_rotated, a.cos, -a.sin)


def d_k_heads(d, a, w):                                                # (B, K, T, D)
    return turn(d.k_rotated, a.cos, -a.sin)


# forward: a.q_heads = split_heads(a.q), and likewise for k and v
def d_q(d, a, w):                                                      # (B, T, H·D)
    return merge_heads(d.q_heads)


def d_k(d, a, w):                                                      # (B, T, K·D)
    return merge_heads(d.k_heads)


def d_v(d, a, w):                                                      # (B, T, K·D)
    return merge_heads(d.v_heads)


# forward: a.q = a.attn_norm @ w.wq.T, and likewise for k and v
def d_wq(d, a, w):                                                     # (H·D, C)
    return rows(d.q).T @ rows(a.attn_norm)


def d_wk(d, a, w):                                                     # (K·D, C)
    return rows(d.k).T @ rows(a.attn_norm)


def d_wv(d, a, w):                                                     # (K·D, C)
    return rows(d.v).T @ rows(a.attn_norm)


def d_attn_norm(d, a, w):                                              # (B, T, C)
    return d.q @ w.wq + d.k @ w.wk + d.v @ w.wv


# ------------------------------------------------------------------------------------------------ its norm, and the input


# forward: a.attn_norm = a.attn_n * w.attn_gain
def d_attn_gain(d, a, w):                                              # (C,)
    return rows(d.attn_norm * a.attn_n).sum(0)


def d_attn_n(d, a, w):                                                 # (B, T, C)
    return d.attn_norm * w.attn_gain


# forward: a.attn_n = a.x * a.attn_rstd
def d_attn_rstd(d, a, w):                                              # (B, T, 1)
    return (d.attn_n * a.x).sum(-1, keepdims=True)


# forward: a.x is used three times: in a.after_attention, in a.attn_n, and in a.attn_rstd
def d_x(d, a, w):                                                      # (B, T, C)
    C = a.x.shape[-1]
    return d.after_attention + d.attn_n * a.attn_rstd - d.attn_rstd * a.attn_rstd**3 * a.x / C


def rows(x):                                                           # (B, T, n) -> (B·T, n)
    return x.reshape(-1, x.shape[-1])


def block_backward(d_after_ffn, a, w):
    """All gradients, each from those before it."""
    d = Values()
    d.after_ffn = d_after_ffn
    for name, function in list(globals().items()):  # in the order of this file
        if name.startswith("d_"):
            d[name[2:]] = function(d, a, w)
    return d
