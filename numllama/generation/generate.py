"""Sampling: one token after another, each drawn from the model's distribution for the next."""

from collections.abc import Sequence

import numpy as np

from numllama.backend import to_numpy
from numllama.model import Transformer


def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> list[int]:
    """Continue a prompt.

    Parameters
    ----------
    model : Transformer
    prompt_ids : sequence of int
        At least one.
    max_new_tokens : int
    temperature : float
        Divides the logits: below 1 bolder on what is likely, 0 always the likeliest.
    top_k : int, optional
        Draw from the k likeliest tokens only.
    seed : int, optional

    Returns
    -------
    list of int
        The new ids only. The model sees the last ``max_seq_len`` tokens.
    """
    if len(prompt_ids) == 0:
        raise ValueError("prompt_ids is empty, but at least one token is needed to begin with")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}, but must be a number that is not negative")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, but must not be negative")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1")
    rng = np.random.default_rng(seed)
    ids = list(prompt_ids)
    for _ in range(max_new_tokens):
        window = np.array([ids[-model.config.max_seq_len :]])
        logits = to_numpy(model.forward(window))[0, -1].astype(np.float64)              # (V,)
        ids.append(_draw(logits, temperature, top_k, rng))
    return ids[len(prompt_ids) :]


def _draw(logits: np.ndarray, temperature: float, top_k: int | None, rng: np.random.Generator) -> int:
    if temperature < 1e-6 or top_k == 1:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = np.where(logits < np.sort(logits)[-top_k], -np.inf, logits)
    p = np.exp((logits - logits.max()) / temperature)
    return int(rng.choice(len(p), p=p / p.sum()))
