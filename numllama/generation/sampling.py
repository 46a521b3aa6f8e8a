"""Sampling: from logits to the next token.

Each filter is a pure function of logits (B, V) that sets tokens that must not be drawn to −inf. Meaning and order are those of
`transformers`' logits processors:

    repetition penalty  ->  (greedy ends here)  ->  temperature  ->  top-k  ->  top-p  ->  min-p  ->  draw
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from numllama import ops
from numllama.backend import Array, real_dtype, to_numpy, xp_of
from numllama.generation.config import SamplingConfig

# ------------------------------------------------------------------------------------------------ filters


def penalise_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Divide the logits of `seen` tokens, boolean (B, V), by the penalty; negative logits are multiplied by it."""
    xp = xp_of(logits)
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k largest logits of each row, and any that equal the smallest of them."""
    xp, V = xp_of(logits), logits.shape[-1]
    if k < 1:
        raise ValueError(f"k is {k}, but must be a whole number of at least 1")
    k = min(k, V)
    least = xp.partition(logits, V - k, axis=-1)[..., V - k, None]         # (B, 1)
    return xp.where(logits < least, -math.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the smallest set of most likely tokens whose probabilities sum to at least p; never none."""
    xp = xp_of(logits)
    order = xp.argsort(logits, axis=-1)                                    # ascending
    p_ascending, _ = ops.softmax_forward(xp.take_along_axis(logits, order, -1))
    below = p_ascending.cumsum(-1, dtype="float64")                        # with it
    dropped = below <= 1 - p
    dropped[..., -1] = False
    hidden = xp.empty_like(dropped)
    xp.put_along_axis(hidden, order, dropped, axis=-1)
    return xp.where(hidden, -math.inf, logits)


def keep_min_p(logits: Array, p: float) -> Array:
    """Keep the tokens that are at least `p` times as probable as the most likely one of their row."""
    probabilities, _ = ops.softmax_forward(logits)
    least = probabilities.max(-1, keepdims=True) * p
    return xp_of(logits).where(probabilities < least, -math.inf, logits)


def log_softmax(logits: Array) -> Array:
    """The log-probabilities of each row."""
    xp, logits = xp_of(logits), widened(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def widened(logits: Array) -> Array:
    """Convert two-byte logits to float32: CuPy cannot sort them, and probabilities need the digits."""
    return logits.astype(real_dtype(logits.dtype), copy=False)


# ------------------------------------------------------------------------------------------------ the next token


def filtered(logits: Array, config: SamplingConfig) -> Array:
    """The logits to draw from: temperature, then all filters."""
    logits = logits / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    return logits


def next_tokens(logits: Array, config: SamplingConfig, generators: Sequence[np.random.Generator], seen: Array | None) -> Array:
    """Draw a token for each row of logits (B, V).

    Parameters
    ----------
    logits : array, shape (B, V)
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
        One number is drawn from each, unless the temperature is 0.
    seen : boolean array, shape (B, V), or None
        Tokens that the repetition penalty applies to.

    Returns
    -------
    integer array, shape (B,)
    """
    logits = widened(logits)
    if config.repetition_penalty != 1 and seen is not None:
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.is_greedy:
        return logits.argmax(-1)
    logits = filtered(logits, config)
    weights = xp_of(logits).exp(logits - logits.max(-1, keepdims=True))
    return draw(weights, [rng.random() for rng in generators])


def draw(weights: Array, u: Sequence[float]) -> Array:
    """Draw a token for each row in proportion to its weights (B, V), by uniform numbers u in [0, 1)."""
    xp = xp_of(weights)
    cumulated = xp.cumsum(weights, axis=-1, dtype="float64")               # (B, V)
    # u times the computed sum: u itself could exceed the sum of rounded probabilities,
    # and choose a token of weight 0
    return xp.stack([
        xp.searchsorted(row, row[-1] * part, side="right")
        for row, part in zip(cumulated, u, strict=True)
    ])  # fmt: skip


class Draws(NamedTuple):
    """Tokens (B,), and their log-probabilities if requested."""

    ids: np.ndarray
    logprobs: np.ndarray | None


class Sampler:
    """Draws a token for each row of logits, step after step.

    Parameters
    ----------
    logits : array, shape (B, V)
        An example: shape and dtype of all later ones.
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
    seen : boolean array, shape (B, V), or None
        Tokens that the repetition penalty applies to; drawn tokens are added.
    logprobs : bool
        Also return each token's log-probability.
    check : callable
        Raises an error for logits with NaN or infinity.
    """

    def __init__(
        self,
        logits: Array,
        config: SamplingConfig,
        generators: Sequence[np.random.Generator],
        seen: Array | None,
        logprobs: bool,
        check: Callable[[Array], None],
    ) -> None:
        self.config, self.generators, self.seen, self.logprobs, self.check = config, list(generators), seen, logprobs, check
        self.rows = xp_of(logits).arange(len(logits))

    def draw(self, logits: Array) -> Draws:
        """Draw a token for each row."""
        self.check(logits)
        chosen = next_tokens(logits, self.config, self.generators, self.seen)
        if self.seen is not None:
            self.seen[self.rows, chosen] = True
        return Draws(to_numpy(chosen), to_numpy(log_softmax(logits)[self.rows, chosen]) if self.logprobs else None)

    def take(self, rows: np.ndarray, logits: Array) -> "Sampler":
        """A sampler for these rows only."""
        seen = None if self.seen is None else self.seen[xp_of(logits).asarray(rows)]
        return Sampler(logits, self.config, [self.generators[row] for row in rows], seen, self.logprobs, self.check)
