"""Mistakes of the residual stream and of the logits."""

import math

import numpy as np

from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue

catalogue = Catalogue()
forward, rmsnorm, softmax = catalogue.forward, OPS["rmsnorm"].forward, OPS["softmax"].forward


# ------------------------------------------------------------------------------------------------ the residual stream


@forward("add", "The residual is missing: the branch's output replaces the stream.")
def _(branch):
    return branch


@forward("add", "The branch's output is left out.")
def _(x):
    return x


@forward("after_attention", "The residual is the norm of the block's input, not the input.")
def _(attn_norm, branch):
    return attn_norm + branch


@forward("after_ffn", "The residual is the norm of the stream, not the stream.")
def _(ffn_norm, branch):
    return ffn_norm + branch


@forward("after_ffn", "The residual is the block's input: the attention's output is lost.")
def _(block_input, branch):
    return block_input + branch


@forward("after_ffn", "The attention's output is added twice.")
def _(x, attn_out, branch):
    return x + attn_out + branch


@forward("after_ffn", "The block's input is added once more.")
def _(x, block_input, branch):
    return x + block_input + branch


@forward("after_ffn", "The residual is the attention's output, without the block's input.")
def _(attn_out, branch):
    return attn_out + branch


@forward("add", "The residual is the embedding, in every block.")
def _(embedding, branch):
    return embedding + branch


@forward("add", "The branch's output is added twice.")
def _(x, branch):
    return x + 2 * branch


@forward("add", "The residual is added twice.")
def _(x, branch):
    return 2 * x + branch


@forward("add", "The sum is divided by √2.")
def _(x, branch):
    return (x + branch) / math.sqrt(2)


@forward("add", "The mean is taken instead of the sum.")
def _(x, branch):
    return (x + branch) / 2


@forward("add", "The branch's output is divided by √(2L), which is for initial weights only.")
def _(x, branch, config):
    return x + branch / math.sqrt(2 * config.n_layers)


@forward("add", "The branch's output is subtracted.")
def _(x, branch):
    return x - branch


@forward("add", "The branch's output is multiplied with the stream instead of added.")
def _(x, branch):
    return x * branch


@forward("after_attention", "The norm with the gain attn_norm is applied to the branch's output before the addition.")
def _(x, branch, w_attn_norm, eps):
    return x + rmsnorm(branch, w_attn_norm, eps)


@forward("after_ffn", "The norm with the gain ffn_norm is applied to the branch's output before the addition.")
def _(x, branch, w_ffn_norm, eps):
    return x + rmsnorm(branch, w_ffn_norm, eps)


@forward("after_attention", "The norm with the gain attn_norm follows the addition, as in the first Transformer.")
def _(x, branch, w_attn_norm, eps):
    return rmsnorm(x + branch, w_attn_norm, eps)


@forward("after_ffn", "The norm with the gain ffn_norm follows the addition, as in the first Transformer.")
def _(x, branch, w_ffn_norm, eps):
    return rmsnorm(x + branch, w_ffn_norm, eps)


@forward("after_attention", "The stream itself is replaced by the feed-forward's norm, which is for the branch only.")
def _(x, branch, w_ffn_norm, eps):
    return rmsnorm(x + branch, w_ffn_norm, eps)


@forward("after_attention", "The branch's output is normalised with the gain ffn_norm before the addition.")
def _(x, branch, w_ffn_norm, eps):
    return x + rmsnorm(branch, w_ffn_norm, eps)


@forward("after_ffn", "The branch's output is normalised with the gain attn_norm before the addition.")
def _(x, branch, w_attn_norm, eps):
    return x + rmsnorm(branch, w_attn_norm, eps)


@forward("after_ffn", "The embedding is added once more in every block.")
def _(x, branch, embedding):
    return x + branch + embedding


# ------------------------------------------------------------------------------------------------ logits


@forward("logits", "The logits are divided by √C.")
def _(x, weight):
    return x @ weight.T / math.sqrt(x.shape[-1])


@forward("logits", "The logits are divided by C, the model's width.")
def _(x, weight):
    return x @ weight.T / x.shape[-1]


for _cap in (5.0, 10.0, 15.0, 20.0, 30.0, 50.0):

    @forward("logits", f"The logits have a soft cap of {_cap:.0f}, as in Gemma 2.")
    def _(x, weight, cap=_cap):
        return cap * np.tanh(x @ weight.T / cap)


@forward("logits", "The logits are already probabilities: softmax belongs to the loss and to sampling.")
def _(x, weight):
    return softmax(x @ weight.T, True)


@forward("logits", "The logits are already logarithms of probabilities: log-softmax belongs to the loss.")
def _(x, weight):
    return np.log(softmax(x @ weight.T, True))


@forward("logits", "All tokens have the logits of the last one.")
def _(x, weight):
    return np.repeat(x[:, -1:] @ weight.T, x.shape[1], 1)


@forward("logits", "Each token has the logits of the token before it.")
def _(x, weight):
    return np.roll(x, 1, 1) @ weight.T
