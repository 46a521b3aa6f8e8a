"""Mistakes of the embedding: the rows that tokens get, and what is done with them."""

import math

import numpy as np

from numllama.learn.equations import OPS
from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply
from numllama.learn.mistakes.products import as_transposed

catalogue = Catalogue()
forward, rmsnorm = catalogue.forward, OPS["rmsnorm"].forward


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


@forward("embedding", "The embedding is multiplied by C: the root is missing in Gemma's factor.")
def _(tokens, weight):
    return weight[tokens] * weight.shape[1]


@forward("embedding", "The table's bytes are (C, V), and are read as (V, C).")
def _(tokens, weight):
    return weight.T.reshape(weight.shape)[tokens]


@forward("embedding", "A LayerNorm without gain follows the embedding, as in BLOOM.")
def _(tokens, weight, eps):
    x = weight[tokens]
    return rmsnorm(x - x.mean(-1, keepdims=True), np.ones(weight.shape[1]), eps)


@forward("embedding", "Rows are scaled down to a length of 1 where they are longer: max_norm=1.")
def _(tokens, weight):
    return weight[tokens] / np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), 1)[tokens]


@forward("embedding", "The table's first T rows are added as embeddings of the positions, as in GPT-2.")
def _(tokens, weight):
    return weight[tokens] + rows_of(np.arange(tokens.shape[1]), weight)


@forward("embedding", "The table's rows of the positions are added; positions begin again with each document.")
def _(tokens, weight, positions):
    return weight[tokens] + rows_of(positions, weight)


def rows_of(positions, weight):
    if positions.max() >= len(weight):
        raise DoesNotApply
    return weight[positions]


for _row in (0, 1):

    @forward("embedding", f"Row {_row} of the table is added to all tokens, as BERT adds a token type's embedding.")
    def _(tokens, weight, row=_row):
        return weight[tokens] + weight[row]


@forward("embedding", "All sequences of the batch get the tokens of the first one.")
def _(tokens, weight):
    return np.repeat(weight[tokens[:1]], len(tokens), 0)


@forward("embedding", "The tokens are shifted right behind token 0, as decoder inputs of T5.")
def _(tokens, weight):
    return weight[np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]]


@forward("embedding", "Each token gets the embedding of the one before it in the sequence, the first that of the last.")
def _(tokens, weight):
    return weight[np.roll(tokens, 1, 1)]
