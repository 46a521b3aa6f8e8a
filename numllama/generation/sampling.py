"""Sampling: from logits to the next token.

Each filter is a pure function of logits (B, V) that sets to −inf what must not be drawn. Their meaning and order are those of
`transformers`' logits processors:

    repetition penalty  ->  (greedy ends here)  ->  temperature  ->  top-k  ->  top-p  ->  min-p  ->  draw
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from numllama.backend import Array, real_dtype, to_numpy, xp_of
from numllama.generation.config import SamplingConfig

# ------------------------------------------------------------------------------------------------ filters


def penalise_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Divide the logits of tokens that were `seen`, boolean (B, V), by the penalty; negative ones are multiplied."""
    xp = xp_of(logits)
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k largest of each row, and whatever equals the last of them; all where there are no more than k."""
    xp, V = xp_of(logits), logits.shape[-1]
    if k < 1:
        raise ValueError(f"k is {k}, but must be a whole number of at least 1")
    k = min(k, V)
    least = xp.partition(logits, V - k, axis=-1)[..., V - k, None]         # (B, 1)
    return xp.where(logits < least, -math.inf, logits)


def keep_top_p(logits: Array, p: float) -> Array:
    """Keep the fewest largest of each row whose probabilities sum to p or more; at least one."""
    xp = xp_of(logits)
    order = xp.argsort(logits, axis=-1)                                    # ascending
    below = softmax(xp.take_along_axis(logits, order, -1)).cumsum(-1, dtype="float64")  # of this token and all less likely ones
    dropped = below <= 1 - p
    dropped[..., -1] = False
    hidden = xp.empty_like(dropped)
    xp.put_along_axis(hidden, order, dropped, axis=-1)
    return xp.where(hidden, -math.inf, logits)


def keep_min_p(logits: Array, p: float) -> Array:
    """Keep what is at least `p` times as probable as the most probable token of its row."""
    probabilities = softmax(logits)
    least = probabilities.max(-1, keepdims=True) * p
    return xp_of(logits).where(probabilities < least, -math.inf, logits)


def softmax(logits: Array) -> Array:
    """Probabilities of each row."""
    xp = xp_of(logits)
    p = xp.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def log_softmax(logits: Array) -> Array:
    """Their logarithms."""
    xp, logits = xp_of(logits), widened(logits)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def widened(logits: Array) -> Array:
    """Two-byte numbers as float32: CuPy cannot sort them, and probabilities need more digits."""
    return logits.astype(real_dtype(logits.dtype), copy=False)


# ------------------------------------------------------------------------------------------------ the next token


def filtered(logits: Array, config: SamplingConfig) -> Array:
    """What is drawn from: the filters for sampling, one after another."""
    logits = logits / config.temperature
    for value, keep in ((config.top_k, keep_top_k), (config.top_p, keep_top_p), (config.min_p, keep_min_p)):
        if value is not None:
            logits = keep(logits, value)
    return logits


def next_tokens(logits: Array, config: SamplingConfig, generators: Sequence[np.random.Generator], seen: Array | None) -> Array:
    """A token for each row of logits (B, V).

    Parameters
    ----------
    logits : array, shape (B, V)
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
        Each gives one number for its row, unless the temperature is 0.
    seen : boolean array, shape (B, V), or None
        What the repetition penalty is for.

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
    """A token for each row of weights (B, V), drawn in proportion to them by numbers u that are uniform in [0, 1)."""
    xp = xp_of(weights)
    cumulated = xp.cumsum(weights, axis=-1, dtype="float64")               # (B, V)
    # u of the sum itself: of rounded probabilities it could lie beyond all of them, where tokens may have weight 0
    return xp.stack([xp.searchsorted(row, row[-1] * part, side="right") for row, part in zip(cumulated, u, strict=True)])


class Sampler:
    """Draws a token for each row of logits, step after step.

    Parameters
    ----------
    logits : array, shape (B, V)
        Like those that will be drawn from.
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
    seen : boolean array, shape (B, V), or None
        What the repetition penalty is for; drawn tokens are added to it.
    logprobs : bool
        Say each token's log-probability as well.
    check : callable
        Raises for logits that cannot be drawn from.
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

    def draw(self, logits: Array) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens (B,), and their log-probabilities if those are asked for."""
        self.check(logits)
        chosen = next_tokens(logits, self.config, self.generators, self.seen)
        if self.seen is not None:
            self.seen[self.rows, chosen] = True
        return to_numpy(chosen), to_numpy(log_softmax(logits)[self.rows, chosen]) if self.logprobs else None

    def take(self, rows: np.ndarray, logits: Array) -> "Sampler":
        """A sampler of these rows, for logits of as many."""
        seen = None if self.seen is None else self.seen[xp_of(logits).asarray(rows)]
        return Sampler(logits, self.config, [self.generators[row] for row in rows], seen, self.logprobs, self.check)
