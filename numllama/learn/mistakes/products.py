"""Mistakes of matrix products: right operations on wrong values or weights."""

import math

import numpy as np

from numllama.backend import BFLOAT16
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply

catalogue = Catalogue()
forward = catalogue.forward


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
    """wq, wk and wv under each other, taken for [q, ..., q, k, v] of each key head."""
    rows = np.concatenate([wq, wk, wv]).reshape(len(wk) // D, -1, D, wq.shape[1])                # (K, H/K + 2, D, C)
    return [part.reshape(-1, wq.shape[1]) for part in (rows[:, :-2], rows[:, -2], rows[:, -1])]


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


@forward("linear", "The weight's bytes are (in, out), and are read as (out, in).")
def _(x, weight):
    return x @ weight.T.reshape(weight.shape).T


@forward("q k", "The product is divided by √D, which belongs to the scores.")
def _(x, weight, D):
    return x @ weight.T / math.sqrt(D)


@forward("q k", "The product is divided by the fourth root of D: the scores divide by √D once more.")
def _(x, weight, D):
    return x @ weight.T / D**0.25


@forward("attn_out ffn_out", "The product is divided by √(2L), which is for initial weights only.")
def _(x, weight, config):
    return x @ weight.T / math.sqrt(2 * config.n_layers)


@forward("k", "The weight wk is read at l times wq's size, not its own: the second block reads other weights.")
def _(x, weight, wq, weight_of_layer_0, wv_of_layer_0, wv_of_last_layer, wo_of_layer_0, config):
    return x @ second_block(wq, weight_of_layer_0, weight, [wv_of_layer_0, wv_of_last_layer, wo_of_layer_0], config).T


@forward("v", "The weight wv is read at l times wq's size, not its own: the second block reads other weights.")
def _(x, weight, wq, weight_of_layer_0, wo_of_layer_0, config):
    return x @ second_block(wq, weight_of_layer_0, weight, [wo_of_layer_0], config).T


def second_block(wq, first, second, others, config):
    """The second of two blocks' weight, if each kind of weight follows the other in memory, for all blocks."""
    memory = np.concatenate([each.ravel() for each in (first, second, *others)])[wq.size :]
    if config.n_layers != 2 or second is first or len(memory) < second.size:
        raise DoesNotApply
    return memory[: second.size].reshape(second.shape)


@forward("gate up", "Rows of w_gate, then of w_up are read as if they alternated, as in gpt-oss.")
def _(x, weight, w_gate, w_up):
    return x @ np.concatenate([w_gate, w_up])[int(weight is w_up) :: 2].T


@forward("gate up", "Rows of w_gate and w_up that alternate are read as all of w_gate, then all of w_up.")
def _(x, weight, w_gate, w_up):
    return x @ np.stack([w_gate, w_up], 1).reshape(2, *weight.shape)[int(weight is w_up)].T


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


@forward("linear", "The weight is rounded to int8, with one scale for the whole matrix.")
def _(x, weight):
    scale = np.abs(weight).max() / 127
    return x @ (np.round(weight / scale) * scale).T


@forward("linear", "The weight is rounded to 4 bits, with a scale for each row.")
def _(x, weight):
    scale = np.abs(weight).max(1, keepdims=True) / 7
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
