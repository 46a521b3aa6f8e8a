"""SamplingConfig: how the next token is sampled from a model's logits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from numllama.errors import CheckpointError, shown
from numllama.storage.fields import POSITIVE, Kind, check, number, whole

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is sampled. Validated on construction.

    Attributes
    ----------
    temperature : float
        Divides the logits: below 1 favours likely tokens; 0 always takes the likeliest.
    top_k : int
        Sample from the k likeliest tokens only. Default all; 0, -1 or a k beyond the vocabulary mean all too.
    top_p : float
        Sample from the smallest set of likeliest tokens with this total probability (Holtzman et al. 2020); 0 leaves only the
        likeliest. Default all.
    min_p : float
        Exclude tokens less likely than this fraction of the likeliest (Nguyen et al. 2024). Default none.
    repetition_penalty : float
        Above 1, makes tokens that occur in the prompt or the new text less likely (Keskar et al. 2019, section 4.1).
    seed : int or sequence of int
        The same seed gives the same text. Row r of a batch has seed ``seed + r``, as if it were generated separately; or the
        r-th seed of a sequence. Default random.
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
        object.__setattr__(self, "seed", seed[0] if seed and isinstance(self.seed, Integral) else seed)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken; dividing by so low a temperature could overflow."""
        return self.temperature < 1e-6

    def check(self, vocab_size: int) -> None:
        """Raise ValueError if a stop id is not in a vocabulary of this size."""
        outside = [i for i in self.stop_ids if not 0 <= i < vocab_size]
        if outside:
            raise ValueError(f"stop_ids holds {shown(outside[0])}, but must lie in 0..{vocab_size - 1}")

    def generators(self, rows: int) -> list["np.random.Generator"]:
        """A random number generator for each row."""
        import numpy as np  # the settings need no NumPy

        if isinstance(self.seed, int):
            return [np.random.default_rng(self.seed + row) for row in range(rows)]
        seeds = (None,) * rows if self.seed is None else self.seed
        if len(seeds) != rows:
            raise ValueError(f"seed has {len(seeds)} numbers, but there are {rows} rows to draw")
        return [np.random.default_rng(seed) for seed in seeds]


def checkpoint_settings(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings in a checkpoint's generation_config.json, as fields of :class:`SamplingConfig`.

    As in transformers, ``do_sample: false`` means greedy for any temperature, and ``do_sample: true`` without a temperature
    samples at 1. Settings that the file does not contain are left out.
    """
    found: dict[str, Any] = {name: generation_config[name] for name in FIELDS if generation_config.get(name) is not None}
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


def settings_line(settings: Mapping[str, Any]) -> str:
    """The settings of a checkpoint as one line to print."""
    return f"from generation_config.json: {', '.join(f'{name} {value:g}' for name, value in settings.items())}"


def is_number(value: Any, kind: type = Real) -> bool:
    """Whether `value` is a number of this kind; True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)


def whole_numbers(values: Any) -> tuple[int, ...] | None:
    """One or several whole numbers as a tuple; None for any other value."""
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
