"""Mistakes of the embedding and of matrix products: right operations on wrong values or weights."""

import math

import numpy as np

from numllama.backend import BFLOAT16
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply

catalogue = Catalogue()
forward, rmsnorm, softmax = catalogue.forward, OPS["rmsnorm"].forward, OPS["softmax"].forward


# ------------------------------------------------------------------------------------------------ embedding


@forward("embedding", "The ids are one too large: each token gets the next token's row.")
def _(tokens, weight):
    return weight[(tokens + 1) % len(weight)]


@forward("embedding", "The ids are one too small: each token gets the row of the token before.")
def _(tokens, weight):
    return weight[tokens - 1]


@forward("embedding", "The embedding is multiplied by √C, as in Gemma.")
def _(tokens, weight):
    return weight[tokens] * math.sqrt(weight.shape[1])


@forward("embedding", "The embedding is divided by √C.")
def _(tokens, weight):
    return weight[tokens] / math.sqrt(weight.shape[1])


@forward("embedding", "The embedding is normalised to a root mean square of 1.")
def _(tokens, weight, eps):
    return rmsnorm(weight[tokens], np.ones(weight.shape[1]), eps)


@forward("embedding", "The rows are those of the head, as if it were tied to the embedding.")
def _(tokens, head):
    return head[tokens]


@forward("embedding", "The matrix was read with its axes exchanged: (V, C) numbers as (C, V).")
def _(tokens, weight):
    return as_transposed(weight)[tokens]


@forward("embedding", "Sines and cosines of the position are added; positions enter through RoPE only.")
def _(tokens, weight, positions):
    C = weight.shape[1]
    angles = positions[..., None] / 10000 ** (np.arange(C) // 2 * 2 / C)                         # (T, C) or (B, T, C)
    return weight[tokens] + np.where(np.arange(C) % 2, np.cos(angles), np.sin(angles))


@forward("embedding", "The embeddings are those of the targets.")
def _(targets, weight):
    return weight[np.maximum(targets, 0)]


@forward("embedding", "The tokens of each sequence are in reverse order.")
def _(tokens, weight):
    return weight[tokens[:, ::-1]]


@forward("embedding", "Token 0 has a row of zeros, as if it were padding.")
def _(tokens, weight):
    return weight[tokens] * (tokens != 0)[..., None]


@forward("embedding", "The batch is read with its axes exchanged: the tokens of all sequences alternate.")
def _(tokens, weight):
    return weight[tokens.T.reshape(tokens.shape)]


# ------------------------------------------------------------------------------------------------ products


def product(x, weight, right):
    """With a weight that stands for the right one, if their shapes allow it."""
    if weight.shape != right.shape:
        raise DoesNotApply
    return x @ weight.T


def as_transposed(weight):
    """Numbers of a matrix (out, in) that were read as (in, out), and then transposed."""
    return weight.reshape(weight.shape[::-1]).T


@forward("linear", "The weight is not transposed: its numbers, one row for each output, are read as (in, out).")
def _(x, weight):
    return x @ as_transposed(weight).T


@forward("linear", "The weight is that of the first block, in every block.")
def _(x, weight_of_layer_0):
    return x @ weight_of_layer_0.T


@forward("linear", "The weight is that of the last block, in every block.")
def _(x, weight_of_last_layer):
    return x @ weight_of_last_layer.T


@forward("q", "The weight is wk instead of wq.")
def _(x, weight, wk):
    return product(x, wk, weight)


@forward("q", "The weight is wv instead of wq.")
def _(x, weight, wv):
    return product(x, wv, weight)


@forward("q", "The weight is wo instead of wq.")
def _(x, weight, wo):
    return product(x, wo, weight)


@forward("attn_out", "The weight is wq instead of wo.")
def _(x, weight, wq):
    return product(x, wq, weight)


@forward("k v", "The weight is that of the queries.")
def _(x, weight, wq):
    return product(x, wq, weight)


@forward("k", "The weight is that of the values.")
def _(x, weight, wv):
    return product(x, wv, weight)


@forward("v", "The weight is that of the keys.")
def _(x, weight, wk):
    return product(x, wk, weight)


@forward("gate", "The weight is w_up instead of w_gate.")
def _(x, w_up):
    return x @ w_up.T


@forward("up", "The weight is w_gate instead of w_up.")
def _(x, w_gate):
    return x @ w_gate.T


@forward("gate", "The weight is w_down, transposed: w1 and w2 of Meta's files are exchanged.")
def _(x, w_down):
    return x @ w_down


@forward("up", "The weight is w_down, transposed: w3 and w2 of Meta's files are exchanged.")
def _(x, w_down):
    return x @ w_down


@forward("logits", "The head is the embedding, though the two are not tied.")
def _(x, embed):
    return x @ embed.T


@forward("q k v", "The matrix multiplies the block's input, not its norm.")
def _(block_input, weight):
    return block_input @ weight.T


@forward("gate up", "The matrix multiplies the stream after attention, not its norm.")
def _(after_attention, weight):
    return after_attention @ weight.T


@forward("gate up", "The matrix multiplies the output of the attention's norm, not of the feed-forward's.")
def _(attn_norm, weight):
    return attn_norm @ weight.T


@forward("logits", "The matrix multiplies the last block's output, not its norm.")
def _(last, weight):
    return last @ weight.T


@forward("ffn_out", "The matrix multiplies gate · up, without SiLU.")
def _(gate, up, weight):
    return (gate * up) @ weight.T


@forward("attn_out", "The output matrix wo is missing.")
def _(x, weight):
    if weight.shape[0] != weight.shape[1]:
        raise DoesNotApply
    return x


@forward("q", "The rows of wq are in the order of the other RoPE layout: neighbours have become halves.")
def _(x, weight, D):
    return x @ neighbours_to_halves(weight, D).T


@forward("k", "The rows of wk are in the order of the other RoPE layout: neighbours have become halves.")
def _(x, weight, D):
    return x @ neighbours_to_halves(weight, D).T


@forward("q", "The rows of wq are in the order of the other RoPE layout: halves have become neighbours.")
def _(x, weight, D):
    return x @ halves_to_neighbours(weight, D).T


@forward("k", "The rows of wk are in the order of the other RoPE layout: halves have become neighbours.")
def _(x, weight, D):
    return x @ halves_to_neighbours(weight, D).T


@forward("k", "The rows of wk were put in another RoPE layout with H heads instead of K.")
def _(x, weight, config):
    if len(weight) % (2 * config.n_heads):
        raise DoesNotApply
    return x @ neighbours_to_halves(weight, len(weight) // config.n_heads).T


def neighbours_to_halves(weight, D):
    return weight.reshape(-1, D // 2, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def halves_to_neighbours(weight, D):
    return weight.reshape(-1, 2, D // 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@forward("q", "The rows of wq are cut from a matrix that has q, k and v side by side for each head, not all of q first.")
def _(x, weight, wk, wv, D):
    return x @ cut_by_head(weight, wk, wv, D)[0].T


@forward("k", "The rows of wk are cut from a matrix that has q, k and v side by side for each head, not all of q first.")
def _(x, wq, weight, wv, D):
    return x @ cut_by_head(wq, weight, wv, D)[1].T


@forward("v", "The rows of wv are cut from a matrix that has q, k and v side by side for each head, not all of q first.")
def _(x, wq, wk, weight, D):
    return x @ cut_by_head(wq, wk, weight, D)[2].T


def cut_by_head(wq, wk, wv, D):
    """wq, wk and wv under each other, taken for [q, k, v] of each head."""
    if wq.shape != wk.shape:
        raise DoesNotApply
    rows = np.concatenate([wq, wk, wv]).reshape(-1, 3, D, wq.shape[1])                           # (H, 3, D, C)
    return [rows[:, i].reshape(wq.shape) for i in range(3)]


@forward("logits", "The rows of the head are off by one: each token gets the next one's logit.")
def _(x, weight):
    return x @ np.roll(weight, 1, 0).T


@forward("logits", "The rows of the head are off by one: each token gets the logit of the token before.")
def _(x, weight):
    return x @ np.roll(weight, -1, 0).T


@forward("ffn_out", "The weight is w_up, transposed, instead of w_down.")
def _(x, w_up):
    return x @ w_up


@forward("ffn_out", "The weight is w_gate, transposed, instead of w_down.")
def _(x, w_gate):
    return x @ w_gate


# ------------------------------------------------------------------------------------------------ precision


def rounded(x, dtype):
    return x.astype(dtype).astype(float)


@forward("linear", "The weight is rounded to bfloat16.")
def _(x, weight):
    return x @ rounded(weight, BFLOAT16).T


@forward("linear", "The weight is rounded to float16.")
def _(x, weight):
    return x @ rounded(weight, np.float16).T


@forward("linear", "The weight is rounded to int8, with a scale for each row.")
def _(x, weight):
    scale = np.abs(weight).max(1, keepdims=True) / 127
    return x @ (np.round(weight / np.where(scale == 0, 1, scale)) * scale).T


@forward("linear", "The product is computed in bfloat16: inputs, weight and result are rounded.")
def _(x, weight):
    return rounded(rounded(x, BFLOAT16) @ rounded(weight, BFLOAT16).T, BFLOAT16)


@forward("linear", "The product is computed in float16: inputs, weight and result are rounded.")
def _(x, weight):
    return rounded(rounded(x, np.float16) @ rounded(weight, np.float16).T, np.float16)


@forward("linear", "The product is computed in TF32: inputs and weight keep 10 bits of their mantissas.")
def _(x, weight):
    def tf32(values):
        mantissa, exponent = np.frexp(values)
        return np.ldexp(np.round(mantissa * 2**11), exponent - 11)

    return tf32(x) @ tf32(weight).T
