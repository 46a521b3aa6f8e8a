"""Mistakes of RMSNorm."""

import numpy as np

from numllama.backend import BFLOAT16
from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue

catalogue = Catalogue()
forward, rmsnorm = catalogue.forward, OPS["rmsnorm"].forward


def mean_square(x, axis: int | tuple[int, ...] | None = -1):
    return (x * x).mean(axis, keepdims=True)


# ------------------------------------------------------------------------------------------------ eps


@forward("rmsnorm", "eps is added to the root instead of the mean square.")
def _(x, weight, eps):
    return x / (np.sqrt(mean_square(x)) + eps) * weight


@forward("rmsnorm", "eps is missing.")
def _(x, weight):
    return rmsnorm(x, weight, 0)


@forward("rmsnorm", "eps is 1e-6, whatever the configuration says.")
def _(x, weight):
    return rmsnorm(x, weight, 1e-6)


@forward("rmsnorm", "eps is 1e-5, whatever the configuration says.")
def _(x, weight):
    return rmsnorm(x, weight, 1e-5)


@forward("rmsnorm", "eps is a lower limit of the mean square; it is not added.")
def _(x, weight, eps):
    return x / np.sqrt(np.maximum(mean_square(x), eps)) * weight


@forward("rmsnorm", "eps is added twice: to the mean square, and to the root.")
def _(x, weight, eps):
    return x / (np.sqrt(mean_square(x) + eps) + eps) * weight


@forward("rmsnorm", "eps is squared.")
def _(x, weight, eps):
    return rmsnorm(x, weight, eps**2)


# ------------------------------------------------------------------------------------------------ the size of a vector


@forward("rmsnorm", "The norm is missing: the values pass unchanged.")
def _(x):
    return x


@forward("rmsnorm", "The norm is LayerNorm: the mean is subtracted first.")
def _(x, weight, eps):
    return rmsnorm(x - x.mean(-1, keepdims=True), weight, eps)


@forward("rmsnorm", "The values are divided by their standard deviation instead of their root mean square.")
def _(x, weight, eps):
    return x / np.sqrt(x.var(-1, keepdims=True) + eps) * weight


@forward("rmsnorm", "The mean is subtracted from the values, but not from those that are squared.")
def _(x, weight, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(mean_square(x) + eps) * weight


@forward("rmsnorm", "The norm is LayerNorm with the variance of a sample: its sum is divided by n - 1.")
def _(x, weight, eps):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * weight


@forward("rmsnorm", "The sum of the squares is divided by n - 1 instead of n.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x) * x.shape[-1] / (x.shape[-1] - 1) + eps) * weight


@forward("rmsnorm", "The squares are summed, not averaged.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x) * x.shape[-1] + eps) * weight


@forward("rmsnorm", "The root is missing: the values are divided by the mean square.")
def _(x, weight, eps):
    return x / (mean_square(x) + eps) * weight


@forward("rmsnorm", "The values are multiplied by the root mean square, not divided by it.")
def _(x, weight, eps):
    return x * np.sqrt(mean_square(x) + eps) * weight


@forward("rmsnorm", "The values are divided by the mean of their absolute values.")
def _(x, weight, eps):
    return x / (np.abs(x).mean(-1, keepdims=True) + eps) * weight


@forward("rmsnorm", "The values are divided by the largest absolute value.")
def _(x, weight, eps):
    return x / (np.abs(x).max(-1, keepdims=True) + eps) * weight


@forward("rmsnorm", "The root mean square is that of the tokens' axis.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x, -2) + eps) * weight


@forward("rmsnorm", "The root mean square is that of a whole sequence: one number for all its tokens.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x, tuple(range(1, x.ndim))) + eps) * weight


@forward("rmsnorm", "The root mean square is that of the whole batch: a single number.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x, None) + eps) * weight


@forward("rmsnorm", "The root mean square is that of the first token, for all tokens.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x)[..., :1, :] + eps) * weight


@forward("rmsnorm", "The norm is applied twice.")
def _(x, weight, eps):
    return rmsnorm(rmsnorm(x, weight, eps), weight, eps)


# ------------------------------------------------------------------------------------------------ gains


@forward("rmsnorm", "The gain is missing.")
def _(x, weight, eps):
    return rmsnorm(x, np.ones_like(weight), eps)


@forward("rmsnorm", "The gain is 1 + weight, as in Gemma.")
def _(x, weight, eps):
    return rmsnorm(x, 1 + weight, eps)


@forward("rmsnorm", "The gain is applied before the root mean square is computed.")
def _(x, weight, eps):
    return rmsnorm(x * weight, np.ones_like(weight), eps)


@forward("rmsnorm", "The gain is applied twice.")
def _(x, weight, eps):
    return rmsnorm(x, weight**2, eps)


@forward("rmsnorm", "The gain is added instead of multiplied.")
def _(x, weight, eps):
    return rmsnorm(x, np.ones_like(weight), eps) + weight


@forward("rmsnorm", "The values are divided by the gain.")
def _(x, weight, eps):
    return rmsnorm(x, 1 / weight, eps)


@forward("rmsnorm", "The gain is a single number: the first of the weights.")
def _(x, weight, eps):
    return rmsnorm(x, np.full_like(weight, weight[0]), eps)


@forward("rmsnorm", "The gain is that of the first block, in every block.")
def _(x, weight_of_layer_0, eps):
    return rmsnorm(x, weight_of_layer_0, eps)


@forward("attn_norm", "The gain is that of the feed-forward's norm.")
def _(x, w_ffn_norm, eps):
    return rmsnorm(x, w_ffn_norm, eps)


@forward("ffn_norm", "The gain is that of the attention's norm.")
def _(x, w_attn_norm, eps):
    return rmsnorm(x, w_attn_norm, eps)


@forward("attn_norm ffn_norm", "The gain is that of the final norm.")
def _(x, w_norm, eps):
    return rmsnorm(x, w_norm, eps)


@forward("q_norm", "The gain is that of the keys.")
def _(x, w_k_norm, eps):
    return rmsnorm(x, w_k_norm, eps)


@forward("k_norm", "The gain is that of the queries.")
def _(x, w_q_norm, eps):
    return rmsnorm(x, w_q_norm, eps)


# ------------------------------------------------------------------------------------------------ what is normalised


@forward("q_norm k_norm", "The root mean square is that of all heads of a token together.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x, (1, 3)) + eps) * weight


@forward("ffn_norm", "The norm reads the block's input, so that attention and feed-forward are parallel.")
def _(block_input, weight, eps):
    return rmsnorm(block_input, weight, eps)


@forward("ffn_norm", "The norm reads the attention's output, without the residual.")
def _(attn_out, weight, eps):
    return rmsnorm(attn_out, weight, eps)


@forward("ffn_norm", "The norm reads the output of the attention's norm.")
def _(attn_norm, weight, eps):
    return rmsnorm(attn_norm, weight, eps)


@forward("attn_norm", "The norm reads the embedding in every block, not the output of the block before.")
def _(embedding, weight, eps):
    return rmsnorm(embedding, weight, eps)


@forward("norm", "The final norm reads the embedding: the blocks are left out.")
def _(embedding, weight, eps):
    return rmsnorm(embedding, weight, eps)


@forward("rmsnorm", "The root mean square is that of the batch's axis.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x, 0) + eps) * weight


@forward("rmsnorm", "The gain is that of the last block, in every block.")
def _(x, weight_of_last_layer, eps):
    return rmsnorm(x, weight_of_last_layer, eps)


@forward("norm", "The gain is that of the last block's ffn_norm.")
def _(x, w_ffn_norm_of_last_layer, eps):
    return rmsnorm(x, w_ffn_norm_of_last_layer, eps)


@forward("norm", "The gain is that of the last block's attn_norm.")
def _(x, w_attn_norm_of_last_layer, eps):
    return rmsnorm(x, w_attn_norm_of_last_layer, eps)


@forward("norm", "The final norm reads the last block's input: one block is left out.")
def _(block_input_of_last_layer, weight, eps):
    return rmsnorm(block_input_of_last_layer, weight, eps)


@forward("ffn_norm", "The norm is that of the attention: the feed-forward reads attn_norm.")
def _(attn_norm):
    return attn_norm


@forward("rmsnorm", "The values are divided by the root of their variance with n - 1; they keep their mean.")
def _(x, weight, eps):
    return x / np.sqrt(x.var(-1, keepdims=True, ddof=1) + eps) * weight


@forward("rmsnorm", "eps is added to the reciprocal of the root instead of the mean square.")
def _(x, weight, eps):
    return x * (1 / np.sqrt(mean_square(x)) + eps) * weight


@forward("rmsnorm", "eps is added to the sum of the squares, before it is divided by n.")
def _(x, weight, eps):
    return rmsnorm(x, weight, eps / x.shape[-1])


@forward("rmsnorm", "eps is multiplied by n: it is added to each square and these are summed.")
def _(x, weight, eps):
    return rmsnorm(x, weight, eps * x.shape[-1])


@forward("rmsnorm", "The normalised values are rounded to bfloat16 before the gain.")
def _(x, weight, eps):
    return rmsnorm(x, np.ones_like(weight), eps).astype(BFLOAT16).astype(float) * weight


@forward("rmsnorm", "The root mean square is that of the first half of the components.")
def _(x, weight, eps):
    return x / np.sqrt(mean_square(x[..., : x.shape[-1] // 2]) + eps) * weight
