"""Mistakes in the backward of attention: softmax, scores, the weighted sum, repeated and split heads."""

import math

import numpy as np

from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.learn.plain_llama import merge_heads

catalogue = Catalogue()
backward = catalogue.backward


def sum_keys(x):
    return x.sum(-1, keepdims=True)


def turned(x):
    """The last two axes exchanged."""
    return x.swapaxes(-1, -2)


# ------------------------------------------------------------------------------------------------ softmax


def probabilities(scores, visible=True):
    return OPS["softmax"].forward(scores, visible)


@backward("softmax", "The sum in softmax's gradient is missing: p·dout.")
def _(dout, scores, visible):
    return {"scores": probabilities(scores, visible) * dout}


@backward("softmax", "Softmax's gradient is that of each probability with respect to its own score: p·(1 − p)·dout.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (1 - p) * dout}


@backward("softmax", "The sum in softmax's gradient is over queries instead of keys.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (dout - (p * dout).sum(-2, keepdims=True))}


@backward("softmax", "The sum in softmax's gradient is over all queries and keys of a head.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (dout - (p * dout).sum((-2, -1), keepdims=True))}


@backward("softmax", "The sum in softmax's gradient is a mean over keys.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (dout - (p * dout).mean(-1, keepdims=True))}


@backward("softmax", "The sum in softmax's gradient lacks p: Σ dout instead of Σ dout·p.")
def _(dout, scores, visible):
    return {"scores": probabilities(scores, visible) * (dout - sum_keys(dout))}


@backward("softmax", "The sum in softmax's gradient lacks p, over visible keys: Σ dout instead of Σ dout·p.")
def _(dout, scores, visible):
    return {"scores": probabilities(scores, visible) * (dout - sum_keys(np.where(visible, dout, 0)))}


@backward("softmax", "The sum in softmax's gradient is added instead of subtracted.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (dout + sum_keys(p * dout))}


@backward("softmax", "Softmax's gradient has the wrong sign.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * (sum_keys(p * dout) - dout)}


@backward("softmax", "Softmax's gradient lacks the outer factor p.")
def _(dout, scores, visible):
    return {"scores": np.where(visible, dout - sum_keys(probabilities(scores, visible) * dout), 0)}


@backward("softmax", "Softmax's gradient lacks the outer factor p, and hidden keys get a gradient.")
def _(dout, scores, visible):
    return {"scores": dout - sum_keys(probabilities(scores, visible) * dout)}


@backward("softmax", "Softmax's gradient has the outer factor p twice.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    return {"scores": p * p * (dout - sum_keys(p * dout))}


@backward("softmax", "Softmax's gradient is log-softmax's: dout − p·Σ dout.")
def _(dout, scores, visible):
    return {"scores": np.where(visible, dout - probabilities(scores, visible) * sum_keys(np.where(visible, dout, 0)), 0)}


@backward("softmax", "Softmax's gradient is computed from scores instead of probabilities.")
def _(dout, scores, visible):
    x = np.where(visible, scores, 0)
    return {"scores": x * (dout - sum_keys(x * dout))}


@backward("softmax", "Softmax's gradient is computed from exp(score − max), which does not sum to 1.")
def _(dout, scores, visible):
    p = probabilities(scores, visible)
    e = p / p.max(-1, keepdims=True)
    return {"scores": e * (dout - sum_keys(e * dout))}


@backward("softmax", "The backward computes the probabilities again without the mask.")
def _(dout, scores, q_rotated, k_repeated):
    p = probabilities(q_rotated @ turned(k_repeated) / math.sqrt(q_rotated.shape[-1]))
    return {"scores": p * (dout - sum_keys(p * dout))}


@backward("softmax", "Softmax is left out on the way back: the gradient passes unchanged.")
def _(dout, scores, visible):
    return {"scores": np.where(visible, dout, 0)}


@backward("softmax", "Softmax is left out on the way back, and hidden keys get a gradient.")
def _(dout, scores, visible):
    return {"scores": dout}


@backward("softmax", "The gradient stops at softmax: queries and keys get none.")
def _(dout, scores, visible):
    return {"scores": None}


# ------------------------------------------------------------------------------------------------ scores


def scaled(dout, q):
    return dout / math.sqrt(q.shape[-1])


@backward("scores", "dq is not divided by √D.")
def _(dout, q, k):
    return {"q": dout @ k}


@backward("scores", "dk is not divided by √D.")
def _(dout, q, k):
    return {"k": turned(dout) @ q}


@backward("scores", "Neither dq nor dk is divided by √D.")
def _(dout, q, k):
    return dout @ k, turned(dout) @ q


@backward("scores", "dq is divided by √D twice: by D.")
def _(dout, q, k):
    return {"q": dout @ k / q.shape[-1]}


@backward("scores", "dk is divided by √D twice: by D.")
def _(dout, q, k):
    return {"k": turned(dout) @ q / q.shape[-1]}


@backward("scores", "dq and dk are divided by √D twice: by D.")
def _(dout, q, k):
    return dout @ k / q.shape[-1], turned(dout) @ q / q.shape[-1]


@backward("scores", "dq and dk are multiplied by √D instead of divided.")
def _(dout, q, k):
    return dout @ k * math.sqrt(q.shape[-1]), turned(dout) @ q * math.sqrt(q.shape[-1])


@backward("scores", "dq and dk are divided by the root of the model's width instead of the head's.")
def _(dout, q, k, config):
    return dout @ k / math.sqrt(config.dim), turned(dout) @ q / math.sqrt(config.dim)


@backward("scores", "In dk, the scores' gradient is not transposed: dS·q instead of dSᵀ·q.")
def _(dout, q, k):
    return {"k": scaled(dout, q) @ q}


@backward("scores", "In dq, the scores' gradient is transposed: dSᵀ·k instead of dS·k.")
def _(dout, q, k):
    return {"q": turned(scaled(dout, q)) @ k}


@backward("scores", "In dq and dk, which is transposed is exchanged: dq = dSᵀ·k and dk = dS·q.")
def _(dout, q, k):
    return turned(scaled(dout, q)) @ k, scaled(dout, q) @ q


@backward("scores", "dq has q instead of k: dS·q.")
def _(dout, q, k):
    return {"q": scaled(dout, q) @ q}


@backward("scores", "dk has k instead of q: dSᵀ·k.")
def _(dout, q, k):
    return {"k": turned(scaled(dout, q)) @ k}


@backward("scores", "dq and dk are exchanged.")
def _(dout, q, k):
    return turned(scaled(dout, q)) @ q, scaled(dout, q) @ k


@backward("scores", "dk has queries before RoPE.")
def _(dout, q, k, q_heads):
    return {"k": turned(scaled(dout, q)) @ q_heads}


@backward("scores", "dq has keys before RoPE.")
def _(dout, q, k, k_heads, n_heads):
    return {"q": scaled(dout, q) @ OPS["repeat"].forward(k_heads, n_heads)}


@backward("scores", "The queries get no gradient.")
def _(dout, q, k):
    return {"q": None}


@backward("scores", "The keys get no gradient from the scores.")
def _(dout, q, k):
    return {"k": None}


# ------------------------------------------------------------------------------------------------ the weighted sum


@backward("weighted_sum", "In dv, the attention weights are not transposed: A·dout instead of Aᵀ·dout.")
def _(dout, attention, v):
    return {"v": attention @ dout}


@backward("weighted_sum", "dv has the scores instead of the attention weights.")
def _(dout, attention, v, scores, visible):
    return {"v": turned(np.where(visible, scores, 0)) @ dout}


@backward("weighted_sum", "dv has attention weights that were computed again without the mask.")
def _(dout, attention, v, q_rotated, k_repeated):
    return {"v": turned(probabilities(q_rotated @ turned(k_repeated) / math.sqrt(v.shape[-1]))) @ dout}


@backward("weighted_sum", "dv has the attention weights' gradient instead of the weights.")
def _(dout, attention, v):
    return {"v": turned(dout @ turned(v)) @ dout}


@backward("weighted_sum", "dv lacks the attention weights: each value gets the gradient of its own token.")
def _(dout, attention, v):
    return {"v": dout}


@backward("weighted_sum", "dv is divided by √D.")
def _(dout, attention, v):
    return {"v": turned(attention) @ scaled(dout, v)}


@backward("weighted_sum", "The attention weights' gradient is divided by √D.")
def _(dout, attention, v):
    return {"attention": scaled(dout, v) @ turned(v)}


@backward("weighted_sum", "The attention weights' gradient is transposed: v·doutᵀ.")
def _(dout, attention, v):
    return {"attention": v @ turned(dout)}


@backward("weighted_sum", "The attention weights' gradient has keys instead of values.")
def _(dout, attention, v, k_repeated):
    return {"attention": dout @ turned(k_repeated)}


@backward("weighted_sum", "The attention weights' gradient has the head outputs instead of the values.")
def _(dout, attention, v):
    return {"attention": dout @ turned(attention @ v)}


@backward("weighted_sum", "The attention weights' gradient is multiplied by the weights.")
def _(dout, attention, v):
    return {"attention": attention * (dout @ turned(v))}


@backward("weighted_sum", "The attention weights are taken for constants: only the values get a gradient.")
def _(dout, attention, v):
    return {"attention": None}


@backward("weighted_sum", "The values get no gradient.")
def _(dout, attention, v):
    return {"v": None}


# ------------------------------------------------------------------------------------------------ heads


def groups(dout, x, n_heads):
    """(B, K, R, T, D): the gradients of the R query heads that one head serves."""
    B, K, T, D = x.shape
    if n_heads == K:
        raise DoesNotApply
    return dout.reshape(B, K, n_heads // K, T, D)


@backward("repeat", "A shared head gets the gradient of its group's first query head only.")
def _(dout, x, n_heads):
    return {"x": groups(dout, x, n_heads)[:, :, 0]}


@backward("repeat", "A shared head gets the gradient of its group's last query head only.")
def _(dout, x, n_heads):
    return {"x": groups(dout, x, n_heads)[:, :, -1]}


@backward("repeat", "A shared head gets the mean over its group's query heads instead of the sum.")
def _(dout, x, n_heads):
    return {"x": groups(dout, x, n_heads).mean(2)}


@backward("repeat", "The sum is over every K-th query head, as if heads were tiled instead of repeated.")
def _(dout, x, n_heads):
    B, K, R, T, D = groups(dout, x, n_heads).shape
    return {"x": dout.reshape(B, R, K, T, D).sum(1)}


@backward("repeat", "A shared head gets the sum over all query heads, not just its group's.")
def _(dout, x, n_heads):
    return {"x": np.broadcast_to(groups(dout, x, n_heads).sum((1, 2))[:, None], x.shape)}


@backward("repeat", "The first query heads' gradients are used, one for each shared head; the others are lost.")
def _(dout, x, n_heads):
    return {"x": dout[:, : groups(dout, x, n_heads).shape[1]]}


@backward("repeat", "The last query heads' gradients are used, one for each shared head; the others are lost.")
def _(dout, x, n_heads):
    return {"x": dout[:, -groups(dout, x, n_heads).shape[1] :]}


@backward("split_heads", "The gradient of split heads is reshaped without exchanging heads and tokens.")
def _(dout, x, D):
    return {"x": dout.reshape(x.shape)}


@backward("split_heads", "The gradient of split heads is merged with the heads of a component side by side: D·H, not H·D.")
def _(dout, x, D):
    return {"x": dout.transpose(0, 2, 3, 1).reshape(x.shape)}


@backward("q_heads", "Only the first head's queries get a gradient.")
def _(dout, x, D):
    return {"x": np.where(np.arange(x.shape[-1]) < D, merge_heads(dout), 0)}


@backward("merge_heads", "The gradient of merged heads is reshaped without exchanging heads and tokens.")
def _(dout, x, D):
    return {"x": dout.reshape(x.shape)}


@backward("merge_heads", "The gradient of merged heads is split with the heads of a component side by side: D·H, not H·D.")
def _(dout, x, D):
    B, H, T, _ = x.shape
    return {"x": dout.reshape(B, T, D, H).transpose(0, 3, 1, 2)}


@backward("merge_heads", "The gradient stops where the heads are merged.")
def _(dout, x, D):
    return {"x": None}
