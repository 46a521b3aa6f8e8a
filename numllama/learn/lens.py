"""Logit lens: what a model would say after each layer, if it stopped there.                              nostalgebraist 2020

The residual stream has the same width after every layer, and the last norm and the head read it after the last one. Nothing keeps
them from reading it earlier:

    logits after layer i = head · norm(stream after layer i)

After the last layer these are the model's own logits. Before, they show when the answer appears, and what stood there first.
"""

from typing import NamedTuple

import numpy as np

from numllama import ops
from numllama.backend import Array, to_numpy
from numllama.learn.intermediates import forward
from numllama.model.stages import ADD_NORM
from numllama.model.transformer import Transformer


class Lens(NamedTuple):
    """What the lens shows of T tokens at L + 1 levels: the embedding, and the stream after each of L layers.

    Attributes
    ----------
    levels : list of str
        ``embedding``, ``layer 0``, ...
    top : integer array, shape (L + 1, T, k)
        The likeliest next tokens, the first one first.
    probs : array, shape (L + 1, T, k)
        Their probabilities.
    answer : integer array, shape (T,)
        The likeliest next token at the end: what the model says.
    answer_probs : array, shape (L + 1, T)
        How likely that answer already is at each level.
    answer_ranks : integer array, shape (L + 1, T)
        How many tokens are likelier: 0 where the answer is the first.
    """

    levels: list[str]
    top: np.ndarray
    probs: np.ndarray
    answer: np.ndarray
    answer_probs: np.ndarray
    answer_ranks: np.ndarray


def logit_lens(model: Transformer, ids: Array, k: int = 5) -> Lens:
    """Read the residual stream after each layer with the last norm and the head.

    Parameters
    ----------
    model : Transformer
        Of any family, without an adapter.
    ids : integer array, shape (T,)
    k : int
        How many tokens to list.
    """
    if not 1 <= k <= model.config.vocab_size:
        raise ValueError(f"k is {k}, but must lie in 1..{model.config.vocab_size}")
    run = forward(model, np.asarray(ids)[None], only=lambda name: name == "embedding" or name.endswith(": after_ffn"))
    answer = to_numpy(run.logits[0]).argmax(-1)                        # (T,)
    every, levels = np.arange(len(answer)), []
    for stream in run.values.values():
        p = next_token_probs(model, stream)[0]                         # (T, V)
        top = np.argsort(-p, axis=-1, kind="stable")[:, :k]            # (T, k)
        of_answer = p[every, answer]
        levels.append((top, np.take_along_axis(p, top, -1), of_answer, (p > of_answer[:, None]).sum(-1)))
    names = ["embedding", *(f"layer {i}" for i in range(model.config.n_layers))]
    top, probs, answer_probs, ranks = (np.stack(each) for each in zip(*levels, strict=True))
    return Lens(names, top, probs, answer, answer_probs, ranks)


def next_token_probs(model: Transformer, stream: np.ndarray) -> np.ndarray:
    """Next-token probabilities if the stream ended here: (B, T, C) -> (B, T, V)."""
    x = model.xp.asarray(stream)
    norm, context = ADD_NORM[model.config.norm], model._context(x[..., 0].astype(int))
    (_, n), _ = norm.forward(None, x, model.weights, "norm", context, 0)
    return to_numpy(ops.softmax_forward(model._logits(n)[0])[0])
