"""Sampling: from logits to the next token.

Each filter is a pure function of logits (B, V) that sets to −inf what must not be drawn. Their meaning and order are those of
`transformers`' logits processors:

    repetition penalty  ->  (greedy ends here)  ->  temperature  ->  top-k  ->  top-p  ->  min-p  ->  draw
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from numllama.backend import Array, real_dtype, xp_of


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. Checked when it is made.

    Attributes
    ----------
    temperature : float
        Divides the logits: below 1 bolder on what is likely; 0 takes the likeliest token always.
    top_k : int
        Draw from the k likeliest tokens only. Default all.
    top_p : float
        Draw from the likeliest tokens that together have this probability (Holtzman et al. 2020). Default all.
    min_p : float
        Leave out tokens less likely than this fraction of the likeliest (Nguyen et al. 2024). Default none.
    repetition_penalty : float
        Above 1, makes tokens of the prompt and of the text so far less likely (Keskar et al. 2019, section 4.1).
    seed : int or sequence of int
        The same seed gives the same text. Row r of a batch is drawn with ``seed + r``, as it would be alone; or with its own
        seed of a sequence. Default a new one each time.
    stop_ids : int or sequence of int
        Tokens that end a text; they are not part of it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | Sequence[int] | None = None
    stop_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, kind, allowed, words in RULES:
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or not allowed(value):
                raise ValueError(f"{name} is {value!r}, but must be {words}")
        stop_ids, seed = whole_numbers(self.stop_ids), whole_numbers(self.seed)
        if stop_ids is None:
            raise ValueError(f"stop_ids is {self.stop_ids!r}, but must be token ids")
        if self.seed is not None and (seed is None or min(seed, default=0) < 0):
            raise ValueError(f"seed is {self.seed!r}, but must be a whole number that is not negative, or one for each row")
        object.__setattr__(self, "stop_ids", stop_ids)
        object.__setattr__(self, "seed", seed[0] if isinstance(self.seed, Integral) else seed)

    def check(self, vocab_size: int) -> None:
        """Raise ValueError for what a model with so many tokens cannot do."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise ValueError(f"top_k is {self.top_k}, but the vocabulary has only {vocab_size} tokens")
        outside = [i for i in self.stop_ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"stop_ids holds {outside[0]}, but must lie in 0..{vocab_size - 1}")

    def generators(self, rows: int) -> list[np.random.Generator]:
        """A source of random numbers for each row."""
        if isinstance(self.seed, tuple) and len(self.seed) != rows:
            raise ValueError(f"seed has {len(self.seed)} numbers, but there are {rows} rows to draw")
        if not isinstance(self.seed, tuple):
            return [np.random.default_rng(None if self.seed is None else self.seed + row) for row in range(rows)]
        return [np.random.default_rng(seed) for seed in self.seed]


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """One whole number, or some, as a tuple; None if they are anything else."""
    values = (values,) if isinstance(values, Integral) else tuple(values) if isinstance(values, Iterable) else (None,)
    return tuple(map(int, values)) if all(isinstance(value, Integral) for value in values) else None


OPTIONAL = ("top_k", "top_p", "min_p")
RULES = (
    ("temperature", Real, lambda value: 0 <= value < math.inf, "a number that is not negative"),
    ("top_k", Integral, lambda value: value >= 1, "a whole number of at least 1"),
    ("top_p", Real, lambda value: 0 < value <= 1, "a number in (0, 1]"),
    ("min_p", Real, lambda value: 0 <= value <= 1, "a number in [0, 1]"),
    ("repetition_penalty", Real, lambda value: 0 < value < math.inf, "a positive number"),
)


# ------------------------------------------------------------------------------------------------ filters


def penalise_repetition(logits: Array, seen: Array, penalty: float) -> Array:
    """Divide the logits of tokens that were `seen`, boolean (B, V), by the penalty; negative ones are multiplied."""
    xp = xp_of(logits)
    return xp.where(seen, xp.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Array, k: int) -> Array:
    """Keep the k largest of each row, and whatever equals the last of them."""
    xp, V = xp_of(logits), logits.shape[-1]
    if not 1 <= k <= V:
        raise ValueError(f"k is {k}, but must be a whole number in 1..{V}")
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
    if config.temperature < 1e-6:                                          # dividing by less may overflow
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
