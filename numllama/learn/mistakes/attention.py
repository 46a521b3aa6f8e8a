"""Mistakes of attention: which keys are visible, scores, softmax, the weighted sum."""

import math

import numpy as np

from numllama import ops
from numllama.learn import equations
from numllama.learn.equations import OPS, repeat
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.ops.intervals import segment_starts

catalogue = Catalogue()
forward, softmax = catalogue.forward, OPS["softmax"].forward


# ------------------------------------------------------------------------------------------------ visible keys


def same_document(tokens, segments):
    """(T, T) or (B, 1, T, T), the future included."""
    seen = equations.visible(tokens, segments)
    return seen | seen.swapaxes(-1, -2)


@forward("visible", "A token also sees the next one: the mask's diagonal is off by one.")
def _(tokens, segments):
    return same_document(tokens, segments) & np.tri(tokens.shape[1], k=1, dtype=bool)


@forward("visible", "A token does not see itself: the mask's diagonal is off by one.")
def _(tokens, segments):
    return equations.visible(tokens, segments) & np.tri(tokens.shape[1], k=-1, dtype=bool)


@forward("visible", "There is no mask: a token sees all others, of all documents.")
def _(tokens, segments):
    return np.ones_like(equations.visible(tokens, segments))


@forward("visible", "The mask separates documents, but it is not causal: a token sees all of its own.")
def _(tokens, segments):
    return _packed(same_document(tokens, segments), segments)


@forward("visible", "The mask is transposed: a token sees itself and the future.")
def _(tokens, segments):
    return equations.visible(tokens, segments).swapaxes(-1, -2)


@forward("visible", "The mask is inverted: a token sees what it should not.")
def _(tokens, segments):
    return ~equations.visible(tokens, segments)


@forward("visible", "The mask is causal, but it does not separate documents; padding is one too.")
def _(tokens, segments):
    return np.broadcast_to(np.tri(tokens.shape[1], dtype=bool), _packed(equations.visible(tokens, segments), segments).shape)


@forward("visible", "A document begins one token too early: its tokens see the last one of the document before.")
def _(tokens, segments):
    first = segment_starts(_packed(segments, segments))
    return np.tri(tokens.shape[1], dtype=bool) & (np.arange(tokens.shape[1]) >= first[..., None] - 1)[:, None]


@forward("visible", "The documents of the first sequence are used for the whole batch.")
def _(tokens, segments):
    return equations.visible(tokens, np.repeat(_packed(segments, segments)[:1], len(tokens), 0))


def _packed(result, segments):
    if segments is None:
        raise DoesNotApply
    return result


@forward("visible", "A token sees itself only.")
def _(tokens, segments):
    return equations.visible(tokens, segments) & np.eye(tokens.shape[1], dtype=bool)


@forward("visible", "Tokens with id 0 are hidden, as if they were padding.")
def _(tokens, segments):
    return equations.visible(tokens, segments) & (tokens != 0)[:, None, None]


@forward("visible", "The first token of the sequence is hidden from all others.")
def _(tokens, segments):
    T = tokens.shape[1]
    return equations.visible(tokens, segments) & ((np.arange(T) > 0) | np.eye(T, dtype=bool))


# ------------------------------------------------------------------------------------------------ scores


def products(q, k):
    return q @ k.swapaxes(-1, -2)                                                                # (B, H, T, T)


def masked(scores, visible, value=-math.inf):
    return np.where(visible, scores, value)


@forward("scores", "The scores are not divided by √D.")
def _(q, k, visible):
    return masked(products(q, k), visible)


@forward("scores", "The scores are divided by D instead of √D, or twice by √D.")
def _(q, k, visible):
    return masked(products(q, k) / q.shape[-1], visible)


@forward("scores", "The scores are multiplied by √D, not divided by it.")
def _(q, k, visible):
    return masked(products(q, k) * math.sqrt(q.shape[-1]), visible)


@forward("scores", "The scores are divided by √C, the root of the model's width, instead of √D.")
def _(q, k, visible, config):
    return masked(products(q, k) / math.sqrt(config.dim), visible)


@forward("scores", "The scores are divided by √H, the root of the number of heads, instead of √D.")
def _(q, k, visible):
    return masked(products(q, k) / math.sqrt(q.shape[1]), visible)


@forward("scores", "The scores are divided by √K, the root of the number of key heads, instead of √D.")
def _(q, k, visible, config):
    return masked(products(q, k) / math.sqrt(config.n_kv_heads), visible)


@forward("scores", "The scores are divided by √(C/K), the width over the number of key heads, instead of √D.")
def _(q, k, visible, config):
    return masked(products(q, k) / math.sqrt(config.dim / config.n_kv_heads), visible)


@forward("scores", "The scores are divided by √(C/H) although heads are not C/H wide.")
def _(q, k, visible, config):
    return masked(products(q, k) / math.sqrt(config.dim / config.n_heads), visible)


@forward("scores", "The scores are divided by √T, the root of the number of tokens, instead of √D.")
def _(q, k, visible):
    return masked(products(q, k) / math.sqrt(q.shape[-2]), visible)


@forward("scores", "The scores are divided by √(D/2) instead of √D.")
def _(q, k, visible):
    return masked(products(q, k) / math.sqrt(q.shape[-1] / 2), visible)


@forward("scores", "Queries and keys are exchanged: the scores are transposed.")
def _(q, k, visible):
    return masked(products(k, q) / math.sqrt(q.shape[-1]), visible)


@forward("scores", "The keys are reshaped to (B, H, D, T), not transposed.")
def _(q, k, visible):
    return masked(q @ k.reshape(*k.shape[:2], k.shape[3], k.shape[2]) / math.sqrt(q.shape[-1]), visible)


@forward("scores", "The queries are those before RoPE.")
def _(q_unrotated, k, visible):
    return equations.scores(q_unrotated, k, visible)


@forward("scores", "The keys are those before RoPE.")
def _(q, k_unrotated, visible):
    return equations.scores(q, repeat(k_unrotated, q.shape[1]), visible)


@forward("scores", "Queries and keys are those before RoPE.")
def _(q_unrotated, k_unrotated, visible):
    return equations.scores(q_unrotated, repeat(k_unrotated, q_unrotated.shape[1]), visible)


@forward("scores", "The queries are compared with queries.")
def _(q, visible):
    return equations.scores(q, q, visible)


@forward("scores", "The queries are compared with values instead of keys.")
def _(q, v_repeated, visible):
    return equations.scores(q, v_repeated, visible)


@forward("scores", "Queries and keys are scaled to length 1 first.")
def _(q, k, visible):
    return masked(products(*(x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))), visible)


@forward("scores", "The scores have a soft cap of 50, as in Gemma 2.")
def _(q, k, visible):
    return masked(50 * np.tanh(products(q, k) / math.sqrt(q.shape[-1]) / 50), visible)


# ------------------------------------------------------------------------------------------------ softmax


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


for _window in (2, 3, 4):

    @forward("visible", f"A token sees only the last {_window}, itself included: a sliding window.")
    def _(tokens, segments, window=_window):
        T = tokens.shape[1]
        return equations.visible(tokens, segments) & np.tri(T, k=window - 1, dtype=bool).T


for _cap in (5.0, 10.0, 20.0, 30.0):

    @forward("scores", f"The scores have a soft cap of {_cap:.0f}, as in Gemma 2.")
    def _(q, k, visible, cap=_cap):
        return masked(cap * np.tanh(products(q, k) / math.sqrt(q.shape[-1]) / cap), visible)


@forward("scores", "Queries and keys are normalised to a length of 1 first.")
def _(q, k, visible):
    lengths = np.linalg.norm(q, axis=-1, keepdims=True), np.linalg.norm(k, axis=-1, keepdims=True)
    return masked(products(q / lengths[0], k / lengths[1]) / math.sqrt(q.shape[-1]), visible)


@forward("softmax", "Softmax runs over the heads instead of the keys; hidden keys have no weight.")
def _(scores, visible):
    exponentials = np.exp(masked(scores, visible))
    return exponentials / np.where(visible, exponentials.sum(1, keepdims=True), 1)
