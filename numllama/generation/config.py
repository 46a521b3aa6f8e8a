"""SamplingConfig: how the next token is drawn from a model's logits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from numllama.errors import CheckpointError, shown
from numllama.storage.fields import POSITIVE, Kind, check, number, whole

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn. Checked when it is made.

    Attributes
    ----------
    temperature : float
        Divides the logits: below 1 bolder on what is likely; 0 takes the likeliest token always.
    top_k : int
        Draw from the k likeliest tokens only. Default all, as are 0, -1 and a k beyond the vocabulary.
    top_p : float
        Draw from the likeliest tokens that together have this probability (Holtzman et al. 2020); 0 leaves the likeliest one.
        Default all.
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
        given = {name: getattr(self, name) for name in FIELDS if getattr(self, name) is not None or name not in OPTIONAL}
        check(given, FIELDS)
        for name, value in given.items():  # as Python numbers: a float64 NumPy scalar would turn float32 logits into float64
            object.__setattr__(self, name, int(value) if name == "top_k" else float(value))
        if self.top_k is not None and self.top_k < 1:
            object.__setattr__(self, "top_k", None)
        stop_ids, seed = whole_numbers(self.stop_ids), whole_numbers(self.seed)
        if stop_ids is None:
            raise ValueError(f"stop_ids is {shown(self.stop_ids)}, but must be token ids")
        if self.seed is not None and (seed is None or min(seed, default=0) < 0):
            raise ValueError(f"seed is {shown(self.seed)}, but must be a whole number that is not negative, or one for each row")
        object.__setattr__(self, "stop_ids", stop_ids)
        object.__setattr__(self, "seed", seed[0] if isinstance(self.seed, Integral) else seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken; dividing by less may overflow."""
        return self.temperature < 1e-6

    def check(self, vocab_size: int) -> None:
        """Raise ValueError for what a model with so many tokens cannot do."""
        outside = [i for i in self.stop_ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"stop_ids holds {shown(outside[0])}, but must lie in 0..{vocab_size - 1}")

    def generators(self, rows: int) -> list["np.random.Generator"]:
        """A source of random numbers for each row."""
        import numpy as np  # settings alone need no NumPy

        if isinstance(self.seed, tuple) and len(self.seed) != rows:
            raise ValueError(f"seed has {len(self.seed)} numbers, but there are {rows} rows to draw")
        if not isinstance(self.seed, tuple):
            return [np.random.default_rng(None if self.seed is None else self.seed + row) for row in range(rows)]
        return [np.random.default_rng(seed) for seed in self.seed]


def checkpoint_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's generation_config.json says about sampling, as fields of :class:`SamplingConfig`.

    As in transformers, ``do_sample: false`` is greedy, whatever the temperature, and ``do_sample: true`` without a temperature
    samples at 1. What it says nothing about is left out.
    """
    found = {name: generation_config[name] for name in FIELDS if generation_config.get(name) is not None}
    do_sample = generation_config.get("do_sample")
    if do_sample is not None and not isinstance(do_sample, bool):
        raise CheckpointError(f"generation_config.json: do_sample is {shown(do_sample)}, but must be true or false")
    if do_sample is False:
        found = {"temperature": 0.0} | {name: value for name, value in found.items() if name != "temperature"}
    elif do_sample:
        found = {"temperature": 1.0} | found
    try:
        SamplingConfig(**found)
    except ValueError as error:
        raise CheckpointError(f"generation_config.json: {error}") from error
    return found


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether it is a number of this kind; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """One whole number, or some, as a tuple; None if they are anything else."""
    values = (values,) if isinstance(values, Integral) else tuple(values) if isinstance(values, Iterable) else (None,)
    return tuple(map(int, values)) if all(is_number(value, Integral) for value in values) else None


OPTIONAL = ("top_k", "top_p", "min_p")
FRACTION = number(lambda value: 0 <= value <= 1, "must be a number in [0, 1]")
FIELDS = {
    "temperature": number(lambda value: value >= 0, "must be a number that is not negative"),
    "top_k": Kind(whole(-1).fits, "must be a whole number of at least 1, or 0 or -1 for all"),
    "top_p": FRACTION,
    "min_p": FRACTION,
    "repetition_penalty": POSITIVE,
}
