"""Fields: a table of the allowed values in a configuration or a file; any other value is refused by name.

    require(values, ("r", "lora_alpha"), "the configuration")
    refuse_unknown(values, ("r", "lora_alpha", "bias", "base"), "unknown configuration key(s)")
    check(values, {"r": whole(1), "lora_alpha": POSITIVE, "bias": only("none"), "base": optional(TEXT)})

A value from a file may have any JSON type, and an integer may have 400 digits: a kind must cope with both.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from numbers import Integral, Real
from typing import Any, NamedTuple

from numllama.errors import listed, shown

MOST = 2**63 - 1  # the largest count or size


class Kind(NamedTuple):
    """The kind of values allowed in a field.

    Attributes
    ----------
    fits : function
        Whether a value, of any type, is of this kind.
    words : str
        Ends the error message: "... but {words}".
    """

    fits: Callable[[Any], bool]
    words: str


def whole(least: int = 0, most: float = MOST) -> Kind:
    """A whole number."""
    bounds = f"of at least {least}" if most == MOST else f"in {least}..{most:,}" if least > -MOST else "of at most 63 bits"
    return Kind(lambda value: _is(Integral, value) and least <= value <= most, f"must be a whole number {bounds}")


def number(fits: Callable[[Any], bool] = lambda value: True, words: str = "must be a number") -> Kind:
    """A finite number for which `fits` holds."""
    return Kind(lambda value: is_number(value) and bool(fits(value)), words)


def one_of(*choices: Any) -> Kind:
    """One of some values."""
    return Kind(lambda value: _among(value, choices), f"must be one of {', '.join(map(repr, choices))}")


def only(*values: Any) -> Kind:
    """The first value, or another with the same meaning."""
    return Kind(lambda value: _among(value, values), f"only {as_json(values[0])} is supported")


def optional(kind: Kind) -> Kind:
    """A kind of value, or None."""
    return Kind(lambda value: value is None or kind.fits(value), kind.words)


def is_number(value: Any) -> bool:
    """A finite number that a float can hold."""
    try:
        return _is(Real, value) and isfinite(float(value))
    except OverflowError:
        return False


FLAG = Kind(lambda value: isinstance(value, bool), "must be true or false")
LIST = Kind(lambda value: isinstance(value, list), "must be a list")
TEXT = Kind(lambda value: isinstance(value, str), "must be a text")
OBJECT = Kind(lambda value: isinstance(value, Mapping), "must be a mapping")
ANYTHING = Kind(lambda value: True, "")
POSITIVE = number(lambda value: value > 0, "must be a positive number")


def check(values: Mapping[str, Any], kinds: Mapping[str, Kind], spell: Callable[[Any], str] = shown, prefix: str = "") -> None:
    """Raise ValueError for the first value that is not of its kind. Absent fields pass: see :func:`require`.

    Parameters
    ----------
    values, kinds : mapping
    spell : function
        Formats a value for the error message; :func:`as_json` for a file's values.
    prefix : str
        Precedes the field's name in the error message.
    """
    for name, kind in kinds.items():
        if name in values and not kind.fits(values[name]):
            words = "no number here may be so large" if _is(Integral, values[name]) and abs(values[name]) > MOST else kind.words
            raise ValueError(f"{prefix}{name} is {spell(values[name])}, but {words}")


def require(values: Mapping[str, Any], names: Iterable[str], whose: str = "it") -> None:
    """Raise ValueError if any of these fields is absent."""
    if missing := [name for name in names if name not in values]:
        raise ValueError(f"{whose} lacks {listed(missing)}")


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], what: str) -> None:
    """Raise ValueError for fields that are not known; `what` precedes their names."""
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{what} {listed(unknown)}")


def as_json(value: Any) -> str:
    """A value as JSON, shortened if it is long."""
    try:
        return shown(json.dumps(value), quote=False)
    except (TypeError, ValueError, RecursionError):
        return shown(value)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _among(value: Any, choices: tuple) -> bool:
    """Whether the value is one of these; 1.0 equals 1, but True does not."""
    return any(isinstance(value, bool) == isinstance(choice, bool) and value == choice for choice in choices)
