"""Activation patching: which value, in which layer and at which token, carries an answer.              Meng et al. 2022, sect. 2

Run a model on a clean text and on a corrupt one that differs where the answer depends on it. A metric m, here the difference of
the logits of two answers, is high in the first run and low in the second. Run the corrupt text again, but with one value a of the
clean run in its place: the rise of m is what this value carries of the answer.

That takes a forward for each value. Attribution patching (Nanda 2023; Syed et al. 2023) takes the first term of Taylor's series
for all values at once, with one backward of the corrupt run:

    m(a → a_clean) − m  ≈  (a_clean − a_corrupt) · ∂m/∂a

It is exact where m is linear in a, as in the logits and in what the head reads, and an approximation elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from numllama.backend import Array, to_numpy
from numllama.errors import shown
from numllama.learn.intermediates import Run, forward
from numllama.model.transformer import Transformer

PLACES = 16  # patched at a time: rows of a batch


class Attribution(NamedTuple):
    """The effect of every value.

    Attributes
    ----------
    answers : pair of int
        The tokens whose logits' difference is the metric: what the model says after the clean and after the corrupt text.
    clean, corrupt : float
        The metric of both runs.
    effects : dict of str to array
        By the name of the value, how much the metric of the corrupt run rises with the clean run's value in one place: shape
        (T,), or (heads, T) for the values of heads. An effect of ``clean - corrupt`` restores the answer.
    """

    answers: tuple[int, int]
    clean: float
    corrupt: float
    effects: dict[str, np.ndarray]


def attribution_patching(
    model: Transformer, clean: Array, corrupt: Array, answers: tuple[int, int] | None = None,
    name: Callable[[int], str] = "token {}".format,
) -> Attribution:  # fmt: skip
    """Estimate the effect of patching each value at each token, from two forwards and one backward.

    Parameters
    ----------
    model : Transformer
        Of any family, without an adapter.
    clean, corrupt : integer arrays, shape (T,)
    answers : pair of int, optional
        Default: what the model says after each of the two texts, which must differ.
    name : callable
        A token's name, for the error if they do not.
    """
    runs = [forward(model, _as_row(clean)), forward(model, _as_row(corrupt))]
    if runs[0].tokens.shape != runs[1].tokens.shape:
        lengths = [run.tokens.shape[1] for run in runs]
        raise ValueError(f"the clean text has {lengths[0]} tokens and the corrupt one {lengths[1]}, but both must have as many")
    answers = _answers(model, runs, name) if answers is None else answers
    dlogits = np.zeros(runs[1].logits.shape, runs[1].logits.dtype)
    dlogits[0, -1, answers[0]] += 1
    dlogits[0, -1, answers[1]] -= 1
    gradients = runs[1].backward(model.xp.asarray(dlogits))
    effects = {
        name: ((runs[0].values[name] - value) * gradients[name])[0].sum(-1)
        for name, value in runs[1].values.items()
    }
    before, after = (float(_metric(run, answers)[0]) for run in runs)
    return Attribution(answers, before, after, effects)


def activation_patching(
    model: Transformer, clean: Array, corrupt: Array, names: Sequence[str], answers: tuple[int, int]
) -> dict[str, np.ndarray]:
    """The true effect of patching these values at each token, or each head and token: one row of a forward for each place.

    Parameters
    ----------
    model, clean, corrupt, answers
        As in :func:`attribution_patching`.
    names : sequence of str
        The values: ``["layer 1: head_outputs"]``.

    Returns
    -------
    dict of str to array, shape (T,) or (heads, T)
    """
    run = forward(model, _as_row(clean), only=lambda name: name in names)
    if unknown := [name for name in names if name not in run.values]:
        raise ValueError(f"{shown(unknown[0])} is no value of this model")
    before = _metric(forward(model, _as_row(corrupt), only=_nothing), answers)
    effects = {}
    for name in names:
        value = run.values[name][0]                                    # (T, C) or (heads, T, D)
        places, rises = list(np.ndindex(value.shape[:-1])), []
        for i in range(0, len(places), PLACES):
            chosen = places[i : i + PLACES]
            tokens = _as_row(corrupt).repeat(len(chosen), axis=0)
            patched = forward(model, tokens, only=_nothing, edits={name: _putting(value, chosen)})
            rises.append(_metric(patched, answers) - before)
        effects[name] = np.concatenate(rises).reshape(value.shape[:-1])
    return effects


def _as_row(ids: Array) -> np.ndarray:
    return np.asarray(ids).reshape(1, -1)


def _nothing(name: str) -> bool:
    return False


def _answers(model: Transformer, runs: list[Run], name: Callable[[int], str]) -> tuple[int, int]:
    """The likeliest next token after each text."""
    first, second = (int(to_numpy(run.logits[0, -1]).argmax()) for run in runs)
    if first == second:
        raise ValueError(f"the model says the same after both texts, {name(first)}: the corrupt text must change the answer")
    return first, second


def _metric(run: Run, answers: tuple[int, int]) -> np.ndarray:
    """How much larger the logit of the first answer is, after the last token: (B,)."""
    logits = to_numpy(run.logits[:, -1])
    return logits[:, answers[0]] - logits[:, answers[1]]


def _putting(value: np.ndarray, places: list[tuple[int, ...]]) -> Callable[[np.ndarray], np.ndarray]:
    """An edit: row b of the batch gets this value in places[b]."""

    def edit(batch: np.ndarray) -> np.ndarray:
        for row, place in zip(batch, places, strict=True):
            row[place] = value[place]
        return batch

    return edit
