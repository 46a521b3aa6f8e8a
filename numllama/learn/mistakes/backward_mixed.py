"""Mistakes in a backward that takes the wrong values: of another layer, another op, or another axis; and wrong sums of terms."""

import math

import numpy as np

from numllama.learn.equations import OPS
from numllama.learn.mistakes.backward_attention import turned
from numllama.learn.mistakes.backward_linear import product, weight_from
from numllama.learn.mistakes.backward_loss import errors, mean, onehot, softmax
from numllama.learn.mistakes.backward_norms import over_rows, rstd
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.learn.plain_llama import merge_heads

catalogue = Catalogue()
backward = catalogue.backward


def right(op, dout, *inputs):
    """The op's own gradients."""
    own = OPS[op].backward
    assert own is not None
    return own(dout, *inputs)


# ------------------------------------------------------------------------------------------------ sums


@backward("gate up", "The gradients through gate and up are averaged instead of added.")
def _(dout, x, weight):
    return {"x": dout @ weight / 2}


@backward("q k v", "The gradients through queries, keys and values are averaged instead of added.")
def _(dout, x, weight):
    return {"x": dout @ weight / 3}


@backward("after_attention", "The attention's gradient is that of the block's output, without the feed-forward's term.")
def _(dout, x, branch, d_after_ffn):
    return {"branch": d_after_ffn}


# ------------------------------------------------------------------------------------------------ other values


@backward("linear", "dx has the first block's weight, in every block.")
def _(dout, x, weight_of_layer_0):
    return {"x": dout @ weight_of_layer_0}


@backward("linear", "dweight has the first block's input, in every block.")
def _(dout, x_of_layer_0, weight):
    return weight_from(dout, x_of_layer_0, weight)


@backward("linear", "dx has the last block's weight, in every block.")
def _(dout, x, weight_of_last_layer):
    return {"x": dout @ weight_of_last_layer}


@backward("linear", "dweight has the last block's input, in every block.")
def _(dout, x_of_last_layer, weight):
    return weight_from(dout, x_of_last_layer, weight)


@backward("ffn_out", "dweight has SiLU(gate) instead of swiglu's output: up is missing.")
def _(dout, x, weight, gate):
    return {"weight": product(dout, gate / (1 + np.exp(-gate)))}


@backward("rmsnorm", "dweight has x times its root mean square, instead of divided by it.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x / rstd(x, eps))}


@backward("k_norm", "The gain in dx is that of the queries.")
def _(dout, x, w_q_norm, eps):
    return {"x": right("rmsnorm", dout, x, w_q_norm, eps)[0]}


@backward("q_norm", "The gain in dx is that of the keys.")
def _(dout, x, w_k_norm, eps):
    return {"x": right("rmsnorm", dout, x, w_k_norm, eps)[0]}


@backward("k_norm", "The norm's gradient is taken at the queries' first heads instead of the keys.")
def _(dout, x, q_heads, weight, eps):
    return right("rmsnorm", dout, q_heads[:, : x.shape[1]], weight, eps)


@backward("attn_norm ffn_norm q_norm k_norm", "The next block's gradient of the gain is in it: the buffer is not zeroed.")
def _(dout, x, weight, eps, d_weight_of_next_layer):
    return {"weight": right("rmsnorm", dout, x, weight, eps)[1] + d_weight_of_next_layer}


@backward("q_norm", "The norm's gradient is taken at the queries after RoPE.")
def _(dout, q_rotated, weight, eps):
    return right("rmsnorm", dout, q_rotated, weight, eps)


@backward("k_norm", "The norm's gradient is taken at the keys after RoPE.")
def _(dout, k_rotated, weight, eps):
    return right("rmsnorm", dout, k_rotated, weight, eps)


@backward("v_heads", "The gradient of the values is turned back by RoPE, as that of the keys.")
def _(dout, x, cos, sin, layout):
    return {"x": merge_heads(right("rope", dout, dout, cos, sin, layout)[0])}


# ------------------------------------------------------------------------------------------------ attention


def tiled(x, n_heads):
    """(B, K, T, D) -> (B, H, T, D): heads 0, 1, 0, 1 instead of 0, 0, 1, 1."""
    if x.shape[1] in (1, n_heads):
        raise DoesNotApply
    return np.tile(x, (1, n_heads // x.shape[1], 1, 1))


@backward("weighted_sum", "The attention weights' gradient has tiled values (0, 1, 0, 1) instead of repeated ones (0, 0, 1, 1).")
def _(dout, attention, v, v_heads, n_heads):
    return {"attention": dout @ turned(tiled(v_heads, n_heads))}


@backward("scores", "dq has tiled keys (0, 1, 0, 1) instead of repeated ones (0, 0, 1, 1).")
def _(dout, q, k, k_rotated, n_heads):
    return {"q": dout @ tiled(k_rotated, n_heads) / math.sqrt(q.shape[-1])}


@backward("scores", "dq has the attention weights instead of the scores' gradient.")
def _(dout, q, k, attention):
    return {"q": attention @ k / math.sqrt(q.shape[-1])}


@backward("scores", "In dk, (D, T) is reshaped to (T, D) instead of transposed.")
def _(dout, q, k):
    return {"k": (turned(q) @ dout).reshape(k.shape) / math.sqrt(q.shape[-1])}


@backward("weighted_sum", "dv has the head outputs instead of their gradient.")
def _(dout, attention, v, head_outputs):
    return {"v": turned(attention) @ head_outputs}


def weights(scores, visible):
    return OPS["softmax"].forward(scores, visible)


@backward("softmax", "The sum in softmax's gradient is over heads instead of keys.")
def _(dout, scores, visible):
    p = weights(scores, visible)
    return {"scores": p * (dout - (dout * p).sum(1, keepdims=True))}


@backward("softmax", "The sum in softmax's gradient is over keys and heads: delta is one for all heads.")
def _(dout, scores, visible):
    p = weights(scores, visible)
    return {"scores": p * (dout - (dout * p).sum((1, 3), keepdims=True))}


@backward("softmax", "The sum in softmax's gradient is that of the token before: delta is off by one.")
def _(dout, scores, visible):
    p = weights(scores, visible)
    return {"scores": p * (dout - np.roll((dout * p).sum(-1, keepdims=True), 1, -2))}


@backward("scores", "dq and dk are divided by the root of the number of tokens instead of the head's width.")
def _(dout, q, k):
    return dout @ k / math.sqrt(k.shape[-2]), turned(dout) @ q / math.sqrt(k.shape[-2])


@backward("softmax", "The sum in softmax's gradient lacks the outer factor p: p·dout − Σ p·dout.")
def _(dout, scores, visible):
    p = weights(scores, visible)
    return {"scores": p * dout - (dout * p).sum(-1, keepdims=True)}


@backward("softmax", "The sum in softmax's gradient has the outer factor p twice: p·dout − p²·Σ p·dout.")
def _(dout, scores, visible):
    p = weights(scores, visible)
    return {"scores": p * dout - p * p * (dout * p).sum(-1, keepdims=True)}


@backward("softmax", "Softmax's gradient is p − dout, as if a cross-entropy followed.")
def _(dout, scores, visible):
    return {"scores": weights(scores, visible) - dout}


# ------------------------------------------------------------------------------------------------ the two ends


@backward("cross_entropy", "The gradient of the loss is divided by log 2, as if the loss were in bits.")
def _(dout, logits, targets):
    return mean(errors(logits, targets) / math.log(2), targets)


@backward("cross_entropy", "The gradient of the loss is that of labels which are smoothed by 0.1.")
def _(dout, logits, targets):
    smooth = 0.1 * (onehot(targets, logits.shape[-1]) - 1 / logits.shape[-1])
    return mean(errors(logits, targets) + smooth, targets)


@backward("cross_entropy", "The gradient of a z-loss of 1e-4 is in that of the loss.")
def _(dout, logits, targets):
    z = np.logaddexp.reduce(logits, -1, keepdims=True)
    return mean(errors(logits, targets) + 2e-4 * z * softmax(logits), targets)


@backward("embedding", "Row 0 gets no gradient, as if it were padding.")
def _(dout, tokens, weight):
    return right("embedding", dout * (tokens != 0)[..., None], tokens, weight)


@backward("embedding", "Tokens whose target is ignored give no gradient to their rows.")
def _(dout, tokens, weight, targets):
    return right("embedding", dout * (targets >= 0)[..., None], tokens, weight)


@backward("embedding", "The gradients of tied embedding and head are averaged instead of added.")
def _(dout, tokens, weight, norm, d_logits, config):
    if not config.tie_embeddings:
        raise DoesNotApply
    return {"weight": (right("embedding", dout, tokens, weight)[0] - product(d_logits, norm)) / 2}
