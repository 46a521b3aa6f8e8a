"""Mistakes of attention: which keys are visible, and scores."""

import math

import numpy as np

from numllama.learn import equations
from numllama.learn.equations import repeat
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.ops.intervals import segment_starts

catalogue = Catalogue()
forward = catalogue.forward


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


for _window in (2, 3, 4):

    @forward("visible", f"A token sees only the last {_window}, itself included: a sliding window.")
    def _(tokens, segments, window=_window):
        T = tokens.shape[1]
        return equations.visible(tokens, segments) & np.tri(T, k=window - 1, dtype=bool).T


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


for _cap in (5.0, 10.0, 20.0, 30.0):

    @forward("scores", f"The scores have a soft cap of {_cap:.0f}, as in Gemma 2.")
    def _(q, k, visible, cap=_cap):
        return masked(cap * np.tanh(products(q, k) / math.sqrt(q.shape[-1]) / cap), visible)


@forward("scores", "Queries and keys are normalised to a length of 1 first.")
def _(q, k, visible):
    lengths = np.linalg.norm(q, axis=-1, keepdims=True), np.linalg.norm(k, axis=-1, keepdims=True)
    return masked(products(q / lengths[0], k / lengths[1]) / math.sqrt(q.shape[-1]), visible)


@forward("scores", "ALiBi's slopes times the distance are added to the scores, as in BLOOM.")
def _(q, k, visible):
    H, t = q.shape[1], np.arange(q.shape[2])
    slopes = 2.0 ** (-8 * np.arange(1, H + 1) / H)[:, None, None]
    return masked(products(q, k) / math.sqrt(q.shape[-1]) + slopes * (t - t[:, None]), visible)


@forward("scores", "The scores are divided by the fourth root of D: only queries or keys were scaled.")
def _(q, k, visible):
    return masked(products(q, k) / q.shape[-1] ** 0.25, visible)


@forward("scores", "The scores are divided by √(H·D), the root of the width of all heads, instead of √D.")
def _(q, k, visible):
    return masked(products(q, k) / math.sqrt(q.shape[1] * q.shape[-1]), visible)
