"""Mistakes of attention: softmax, and the weighted sum."""

import math

import numpy as np

from numllama import ops
from numllama.backend import BFLOAT16
from numllama.learn.equations import OPS
from numllama.learn.mistakes.attention import masked, products
from numllama.learn.mistakes.mistake import Catalogue

catalogue = Catalogue()
forward, softmax = catalogue.forward, OPS["softmax"].forward


def exponentials(scores, visible):
    """Less than 1, and 0 where hidden."""
    return np.exp(masked(scores, visible) - masked(scores, visible, -1e30).max(-1, keepdims=True))


def unmasked(q, k):
    return products(q, k) / math.sqrt(q.shape[-1])


@forward("softmax", "Hidden scores are set to 0, which is no mask: set them to minus infinity.")
def _(scores, visible):
    return ops.softmax_forward(masked(scores, visible, 0.0))[0]


@forward("softmax", "Hidden scores are set to -1, which still counts: set them to minus infinity.")
def _(scores, visible):
    return ops.softmax_forward(masked(scores, visible, -1.0))[0]


@forward("softmax", "Hidden scores are set to -10, which still counts: set them to minus infinity.")
def _(scores, visible):
    return ops.softmax_forward(masked(scores, visible, -10.0))[0]


@forward("softmax", "1 is subtracted from hidden scores, which still count: set them to minus infinity.")
def _(q_rotated, k_repeated, visible):
    return ops.softmax_forward(unmasked(q_rotated, k_repeated) - ~visible)[0]


@forward("softmax", "10 is subtracted from hidden scores, which still count: set them to minus infinity.")
def _(q_rotated, k_repeated, visible):
    return ops.softmax_forward(unmasked(q_rotated, k_repeated) - 10.0 * ~visible)[0]


@forward("softmax", "The mask is left out.")
def _(q_rotated, k_repeated):
    return ops.softmax_forward(unmasked(q_rotated, k_repeated))[0]


@forward("softmax", "The mask is applied after softmax: the rows no longer sum to 1.")
def _(q_rotated, k_repeated, visible):
    return ops.softmax_forward(unmasked(q_rotated, k_repeated))[0] * visible


@forward("softmax", "Softmax runs over the queries instead of the keys.")
def _(scores, visible):
    return softmax(scores.swapaxes(-1, -2), visible.swapaxes(-1, -2)).swapaxes(-1, -2)


@forward("softmax", "Softmax runs over the heads instead of the keys.")
def _(scores, visible):
    return np.moveaxis(ops.softmax_forward(np.moveaxis(masked(scores, visible, -1e30), 1, -1))[0], -1, 1)


@forward("softmax", "The exponentials are not divided by their sum.")
def _(scores, visible):
    return np.exp(masked(scores, visible))


@forward("softmax", "The maximum is subtracted, but the exponentials are not divided by their sum.")
def _(scores, visible):
    return exponentials(scores, visible)


@forward("softmax", "The exponentials are divided by the sum over the whole head, not over each row.")
def _(scores, visible):
    e = np.exp(masked(scores, visible) - masked(scores, visible, -1e30).max((-1, -2), keepdims=True))
    return e / e.sum((-1, -2), keepdims=True)


@forward("softmax", "Softmax has base 2 instead of e.")
def _(scores, visible):
    return softmax(scores * math.log(2), visible)


@forward("softmax", "The scores are halved before softmax: a temperature of 2.")
def _(scores, visible):
    return softmax(scores / 2, visible)


@forward("softmax", "The scores are doubled before softmax: a temperature of ½.")
def _(scores, visible):
    return softmax(scores * 2, visible)


@forward("softmax", "The scores are divided by √D once more before softmax.")
def _(scores, visible, D):
    return softmax(scores / math.sqrt(D), visible)


@forward("softmax", "The scores are multiplied by √D before softmax.")
def _(scores, visible, D):
    return softmax(scores * math.sqrt(D), visible)


@forward("softmax", "1 is added to the sum of the exponentials.")
def _(scores, visible):
    e = np.exp(masked(scores, visible))
    return e / (1 + e.sum(-1, keepdims=True))


@forward("softmax", "1 is added to the sum of the exponentials after their maximum was made 1.")
def _(scores, visible):
    e = exponentials(scores, visible)
    return e / (1 + e.sum(-1, keepdims=True))


@forward("softmax", "Each score goes through a sigmoid instead of softmax.")
def _(scores, visible):
    return 1 / (1 + np.exp(-masked(scores, visible)))


@forward("softmax", "Softmax is missing: the weights are the scores.")
def _(scores, visible):
    return masked(scores, visible, 0.0)


@forward("softmax", "The scores are divided by their sum, without exponentials.")
def _(scores, visible):
    return (kept := masked(scores, visible, 0.0)) / kept.sum(-1, keepdims=True)


@forward("softmax", "The logarithm of softmax is taken.")
def _(scores, visible):
    p = softmax(scores, visible)
    return np.log(np.where(p > 0, p, 1))


@forward("softmax", "Softmax is applied twice.")
def _(scores, visible):
    return softmax(softmax(scores, visible), visible)


@forward("softmax", "The sign of the scores is wrong.")
def _(scores, visible):
    return softmax(-np.where(visible, scores, 0.0), visible)


@forward("softmax", "Softmax runs over the heads instead of the keys; hidden keys have no weight.")
def _(scores, visible):
    exponentials = np.exp(masked(scores, visible))
    return exponentials / np.where(visible, exponentials.sum(1, keepdims=True), 1)


@forward("softmax", "The boolean mask is added to the scores: hidden ones become 1 larger, not minus infinity.")
def _(q_rotated, k_repeated, visible):
    return ops.softmax_forward(unmasked(q_rotated, k_repeated) + ~visible)[0]


@forward("softmax", "The scores are not used: a token takes the mean of the visible ones.")
def _(scores, visible):
    return softmax(np.zeros_like(scores), visible)


@forward("softmax", "All weight is on the largest score: argmax instead of softmax.")
def _(scores, visible):
    return np.eye(scores.shape[-1])[masked(scores, visible, -1e30).argmax(-1)]


for _name, _dtype in {"bfloat16": BFLOAT16, "float16": np.float16}.items():

    @forward("softmax", f"The attention weights are rounded to {_name}.")
    def _(scores, visible, dtype=_dtype):
        return softmax(scores, visible).astype(dtype).astype(float)


for _block, _keys in {1: "key by key", 2: "in blocks of 2 keys", 4: "in blocks of 4 keys"}.items():

    @forward("softmax", f"Online softmax {_keys}: what is accumulated is not rescaled when the maximum grows.")
    def _(scores, visible, block=_block):
        return online(scores, visible, block) / exponentials(scores, visible).sum(-1, keepdims=True)

    @forward("softmax", f"Online softmax {_keys}: the sum is not rescaled when the maximum grows.")
    def _(scores, visible, block=_block):
        return exponentials(scores, visible) / online(scores, visible, block).sum(-1, keepdims=True)


def online(scores, visible, block):
    """Exponentials less the maximum up to the end of their block."""
    last = (np.arange(scores.shape[-1]) // block * block + block - 1).clip(max=scores.shape[-1] - 1)
    running = np.maximum.accumulate(masked(scores, visible, -1e30), -1)[..., last]
    return np.exp(masked(scores, visible) - running)


# ------------------------------------------------------------------------------------------------ the weighted sum


@forward("weighted_sum", "The attention weights are transposed: a key collects from queries.")
def _(attention, v):
    return attention.swapaxes(-1, -2) @ v


@forward("weighted_sum", "The weights apply to the keys instead of the values.")
def _(attention, k_repeated):
    return attention @ k_repeated


@forward("weighted_sum", "The weights are the scores, before softmax.")
def _(scores, v, visible):
    return masked(scores, visible, 0.0) @ v


@forward("weighted_sum", "The attention weights are not used: each token has its own value.")
def _(v):
    return v
