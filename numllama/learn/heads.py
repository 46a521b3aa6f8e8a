"""What each attention head attends to: scores that name a head's habit.                    Elhage et al. 2021, Olsson et al. 2022

With a[t, s], how much query t attends to key s:
    previous token      mean over t ≥ 1 of a[t, t − 1]
    first token         mean over t ≥ 1 of a[t, 0]                    a place to rest: an attention sink (Xiao et al. 2023b)
    induction           mean over t ≥ n of a[t, t − n + 1]            in a text of n random tokens that are then repeated
In the repeated half, token t occurred before, at t − n. An induction head looks at the token after that one, which is the right
guess of what comes next. Nothing else in random tokens leads there, so the score measures only that.
"""

from typing import NamedTuple

import numpy as np

from numllama.backend import Array
from numllama.learn.intermediates import forward
from numllama.model.transformer import Transformer


class HeadScores(NamedTuple):
    """Scores between 0 and 1 of all heads, each of shape (layers, heads); see the module."""

    previous: np.ndarray
    first: np.ndarray
    induction: np.ndarray


def attention_of_heads(model: Transformer, ids: Array) -> np.ndarray:
    """How much each token attends to each earlier one, in every layer and head.

    Parameters
    ----------
    model : Transformer
        Of any family, without an adapter.
    ids : integer array, shape (T,) or (B, T)

    Returns
    -------
    array, shape (L, H, T, T) or (L, B, H, T, T)
        Each row sums to 1.
    """
    ids = np.asarray(ids)
    run = forward(model, np.atleast_2d(ids), only=lambda name: name.endswith(": attention"))
    maps = np.stack(list(run.values.values()))                         # (L, B, H, T, T)
    return maps if ids.ndim == 2 else maps[:, 0]


def previous_token_scores(attention: np.ndarray) -> np.ndarray:
    """How much each token attends to the one before it: (..., T, T) -> (...)."""
    return np.diagonal(attention, -1, -2, -1).mean(-1)


def first_token_scores(attention: np.ndarray) -> np.ndarray:
    """How much each token but the first attends to the first: (..., T, T) -> (...)."""
    return attention[..., 1:, 0].mean(-1)


def induction_scores(attention: np.ndarray, period: int) -> np.ndarray:
    """How much each repeated token attends to the token after its earlier occurrence: (..., T, T) -> (...).

    Parameters
    ----------
    attention : array, shape (..., T, T)
        Of a text whose token t is that of t - `period`; T may be larger than 2 `period` by tokens in front.
    period : int
    """
    T = attention.shape[-1]
    if not 2 <= period <= T // 2:
        raise ValueError(f"period is {period}, but must lie in 2..{T // 2} for {T} tokens")
    return np.diagonal(attention, 1 - period, -2, -1)[..., -period:].mean(-1)


def repeated_tokens(vocab_size: int, n: int, batch: int = 1, seed: int = 0) -> np.ndarray:
    """Random tokens, no two alike in a row, each row twice over: (batch, 2n)."""
    if not 2 <= n <= vocab_size:
        raise ValueError(f"n is {n}, but must lie in 2..{vocab_size}: the tokens of a row differ from each other")
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(vocab_size, n, replace=False) for _ in range(batch)])          # (batch, n)
    return np.concatenate((rows, rows), axis=1)


def head_scores(model: Transformer, n: int = 32, batch: int = 4, seed: int = 0) -> HeadScores:
    """Each head's scores on random tokens that are repeated.

    Parameters
    ----------
    model : Transformer
        Of any family, without an adapter.
    n : int
        Tokens before they repeat; fewer, if the model's vocabulary or max_seq_len is smaller.
    batch : int
        Rows, over which the scores are averaged.
    seed : int
    """
    c = model.config
    n = min(n, c.vocab_size, c.max_seq_len // 2)
    attention = attention_of_heads(model, repeated_tokens(c.vocab_size, n, batch, seed))       # (L, B, H, 2n, 2n)
    scores = (previous_token_scores(attention), first_token_scores(attention), induction_scores(attention, n))
    return HeadScores(*(each.mean(1) for each in scores))              # over the batch: (L, H)
