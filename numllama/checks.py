"""Checks when an op is called: an error names the argument, its value and what is allowed.

Each op checks its own shapes and ids. The kind of an argument (real numbers, integers, a number, a cache) follows from its
name, so :func:`argument_checks` checks it for every op in one place.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ContextDecorator, contextmanager
from contextvars import ContextVar
from functools import wraps
from numbers import Integral, Real
from types import NoneType
from typing import Any

import numpy as np

from numllama.backend import BFLOAT16, Array, xp_of
from numllama.errors import shown
from numllama.rope_types import ROPE_LISTS, ROPE_SCALING

PLAIN = frozenset(map(np.dtype, ("float32", "float64")))  # dtypes that need no further look
LARGEST = float(np.finfo(np.float32).max)  # largest scalar: it must fit float32 arrays

_ids_are_good = ContextVar("ids_are_good", default=False)
_arguments_are_good = ContextVar("arguments_are_good", default=False)


def check_shape(name: str, array: Array, shape: Sequence[int | None]) -> None:
    """Raise ValueError unless `array` has this shape; None stands for any length."""
    if array.shape == shape:
        return
    if len(array.shape) == len(shape) and all(n is None or n == length for n, length in zip(shape, array.shape, strict=True)):
        return
    expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
    raise ValueError(f"{name} has shape {tuple(array.shape)}, but {expected} is needed")


def check_ids(name: str, ids: Array, size: int, ignore_index: int | None = None) -> None:
    """Raise unless `ids` are integers in [0, size), or equal to `ignore_index`."""
    if _ids_are_good.get():
        return
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {ids.dtype}")
    wrong = (ids < 0) | (ids >= size)
    if ignore_index is not None:
        wrong &= ids != ignore_index
    if wrong.any():
        value = int(ids[xp_of(ids).nonzero(wrong)][0])
        also = "" if ignore_index is None else f" or {ignore_index}, which is ignored"
        raise ValueError(f"{name} holds {value}, but must lie in 0..{size - 1}{also}")


@contextmanager
def _set(flag: ContextVar[bool]) -> Iterator[None]:
    before = flag.set(True)
    try:
        yield
    finally:
        flag.reset(before)


def checked_ids() -> AbstractContextManager[None]:
    """Skip id checks inside: they were done on the host, and reading ids from a GPU would synchronise."""
    return _set(_ids_are_good)


def checked_arguments() -> ContextDecorator:
    """Skip the checks of arguments by name in all ops that a function calls; a decorator. Ops still check shapes."""
    return _set(_arguments_are_good)


# ------------------------------------------------------------------------------------------------ arguments by name


def _is_plain(value: Any) -> bool:
    """Whether this is an array as most are: NumPy's, of real numbers, with axes of which none is empty."""
    return type(value) is np.ndarray and value.dtype in PLAIN and value.size > 1


def _floats_of_any_shape(name: str, value: Any) -> Any:
    dtype = _array_dtype(name, value)
    if dtype.kind != "f" and dtype != BFLOAT16:
        raise TypeError(f"{name} must be real floating-point numbers, not {dtype}")
    return value


def _floats(name: str, value: Any) -> Any:
    _floats_of_any_shape(name, value)
    if not value.ndim or not value.shape[-1]:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but it must have axes, and the last must not be empty")
    return value


def _weight(name: str, value: Any) -> Any:
    """An array, or a matrix in int8."""
    return value if hasattr(value, "scales") else _floats(name, value)


def _buffer(name: str, value: Any) -> Any:
    """An array, or an object that `+=` adds an array to; `+=` of a list would append."""
    is_adder = hasattr(type(value), "__iadd__") and not hasattr(value, "__len__")
    return value if is_adder else _floats(name, value)


def _integers(name: str, value: Any) -> Any:
    if isinstance(value, np.integer) or (name in ("first", "last") and isinstance(value, list | tuple)):
        value = np.asarray(value)
    dtype = _array_dtype(name, value)
    if dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {dtype}")
    return value


def _array_dtype(name: str, value: Any) -> np.dtype:
    dtype = getattr(value, "dtype", None)
    if not isinstance(dtype, np.dtype) or not isinstance(value, xp_of(value).ndarray):
        raise TypeError(f"{name} is {shown(value)}, but a NumPy or CuPy array is needed")
    return dtype


def _boolean(name: str, value: Any) -> Any:
    if _array_dtype(name, value).kind != "b":
        raise TypeError(f"{name} is {value.dtype}, but must be boolean: True where a query may attend")
    return value


def _number(name: str, value: Any) -> float:
    if type(value) is not float:  # NumPy's float64 is a number, but turns float32 arrays into float64
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} is {shown(value)}, but must be a number")
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} is {value}, but must be finite in float32")
    return value


def _not_negative(name: str, value: Any) -> float:
    value = _number(name, value)
    if value < 0:
        raise ValueError(f"{name} is {value}, but must not be negative")
    return value


def _probability(name: str, value: Any) -> Any:
    number: Any = value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} is {shown(value)}, but must be a number")
    if not 0 <= number < 1:
        raise ValueError(f"{name} is {value}, but must lie in [0, 1)")
    return value


def _positive(name: str, value: Any) -> Any:
    if _is_scalar_array(value):  # unread: it may be on a GPU
        return value
    if _number(name, value) <= 0:
        raise ValueError(f"{name} is {value}, but must be positive")
    return value


def _cap(name: str, value: Any) -> float:
    return _number(name, _positive(name, value))


def _scalar(name: str, value: Any) -> Any:
    return value if _is_scalar_array(value) else _number(name, value)


def _is_scalar_array(value: Any) -> bool:
    """Whether this is an array without axes, perhaps on a GPU; NumPy's scalars are numbers instead."""
    return isinstance(value, xp_of(value).ndarray) and value.shape == () and value.dtype.kind in "fiu"


def _integer(name: str, value: Any) -> int:
    if type(value) is not int and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise TypeError(f"{name} is {shown(value)}, but must be an integer")
    return int(value)


def _cache(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} is {shown(value)}, but must be what the forward function returned")
    return value


def _pair_or_first(name: str, value: Any) -> tuple:
    """A pair of arrays, the second of which may be None."""
    if not isinstance(value, tuple) or len(value) != 2 or value[1] is not None:
        return _float_pair(name, value)
    _floats(f"{name}[0]", value[0])
    return value


def _float_pair(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} is {shown(value)}, but must be a pair of arrays")
    return _each(_floats, name, value)


def _each(rule: Callable, name: str, values: tuple) -> tuple:
    for i, value in enumerate(values):
        if not _is_plain(value):
            rule(f"{name}[{i}]", value)
    return values


def _several(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple) or not value:
        raise TypeError(f"{name} is {shown(value)}, but must be a tuple of arrays")
    return _each(_floats, name, value)


def _buffers(name: str, value: Any) -> tuple:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} is {shown(value)}, but must be a tuple of arrays")
    return _each(_buffer, name, value)


def _pair_or_second(name: str, value: Any) -> tuple:
    """A pair of arrays, the first of which may be None."""
    if not isinstance(value, tuple) or len(value) != 2 or value[0] is not None:
        return _float_pair(name, value)
    _floats(f"{name}[1]", value[1])
    return value


def _floats_or_none(name: str, value: Any) -> Any:
    return None if value is None else _floats(name, value)


def _key(name: str, value: Any) -> Any:
    if not hasattr(value, "dtype"):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} is {shown(value)}, but must be a sequence of integers")
        for part in value:
            _integer(f"a part of {name}", part)
    return value


def _as_it_is(_: str, value: Any) -> Any:
    return value


def _rope_scaling(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {shown(value)}, but must be a mapping")
    kind = value.get("rope_type", "llama3")
    if kind not in ROPE_SCALING or kind == "default":
        raise ValueError(f"{name} is of type {shown(kind)}, but must be one of {', '.join([*ROPE_SCALING][1:])}")
    for key in ROPE_SCALING[kind][0]:
        if key not in value:
            raise ValueError(f"{name} lacks {key}")
        for part in value[key] if isinstance(value[key], list | tuple) and key in ROPE_LISTS else (value[key],):
            _positive(f"{name}'s {key}", part)
    if not value.get("original_max_position_embeddings", 2) > 1:       # its logarithm divides
        raise ValueError(f"{name}'s original_max_position_embeddings must be larger than 1")
    if kind == "llama3" and not value["low_freq_factor"] < value["high_freq_factor"]:
        raise ValueError(f"{name}'s high_freq_factor must be larger than its low_freq_factor")
    return value


# The check of each argument, by its name; an argument whose default is None may be None.
RULES: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(("x", "branch", "q", "k", "v", "gate", "up", "logits", "dout"), _floats),
    **dict.fromkeys(("bias", "a", "b", "cos", "sin", "probs", "router", "down"), _floats),
    "weight": _weight,
    **dict.fromkeys(("into", "dx", "out"), _buffer),
    **dict.fromkeys(("tokens", "targets", "positions", "first", "last", "chosen"), _integers),
    "p": _probability,
    "scale": _number,
    "mask": _boolean,
    "eps": _not_negative,
    "theta": _positive,
    **dict.fromkeys(("cap", "softcap"), _cap),
    "scaling": _rope_scaling,
    **dict.fromkeys(("D", "top_k"), _integer),
    "count": _positive,
    "ignore_index": _integer,
    "key": _key,
    "cache": _cache,
    "douts": _several,
    **dict.fromkeys(("xs", "weights", "biases", "outs"), _several),
}
OWN_RULES = {
    "cross_entropy_backward": {"dout": _scalar},  # the gradient of a loss is a number
    "add_rmsnorm_forward": {"x": _floats_or_none},
    "add_rmsnorm_backward": {"douts": _pair_or_second},
    "linears_backward": {"into": _buffers},
    "router_backward": {"douts": _pair_or_first},
    "mixture_of_experts_backward": {"douts": _pair_or_first, "into": _buffers},
    "load_balancing_backward": {"dout": _scalar},
    "dropout_forward": {"x": _floats_of_any_shape},
    "dropout_backward": {"dout": _floats_of_any_shape},
}


def argument_checks(function: Callable) -> Callable[[tuple, Mapping[str, Any]], tuple[tuple, Mapping[str, Any]]]:
    """A function that checks the arguments of an op and returns them.

    Parameters
    ----------
    function : callable
        Its parameters are checked by name: see `RULES`; other names are not checked.

    Returns
    -------
    callable
        Called with ``(args, kwargs)``. Returns numbers as Python's, so that a NumPy scalar does not widen float32 arrays.
        Raises TypeError for a value of the wrong kind, ValueError for one out of range.
    """
    rules = RULES | OWN_RULES.get(function.__name__, {})
    named = {name: _Place(name, rules.get(name), parameter) for name, parameter in inspect.signature(function).parameters.items()}
    places = tuple(named.values())

    # Every call pays for these loops, and most of their turns end at the first test; zip's `strict` costs as much as a turn.
    def check(args: tuple, kwargs: Mapping[str, Any]) -> tuple[tuple, Mapping[str, Any]]:
        if _arguments_are_good.get():
            return args, kwargs
        for place, value in zip(places, args):  # noqa: B905
            if place.is_array and _is_plain(value):
                continue
            if place.checked(value) is not value:
                args = (*map(_Place.checked, places, args), *args[len(places) :])
                break
        for name, value in kwargs.items():
            if (place := named.get(name)) is None:  # the op itself says so
                continue
            if place.is_array and _is_plain(value):
                continue
            if (checked := place.checked(value)) is not value:
                kwargs = {**kwargs, name: checked}
        return args, kwargs

    return check


class _Place:
    """A parameter and its rule, if it has one."""

    __slots__ = ("is_array", "name", "passing", "rule")

    def __init__(self, name: str, rule: Callable | None, parameter: inspect.Parameter) -> None:
        self.name, self.rule = name, rule or _as_it_is
        self.is_array = rule in (_floats, _floats_of_any_shape, _floats_or_none, _weight, _buffer)
        self.passing: tuple[type, ...] = (tuple,) if rule is _cache else ()  # its rule need not look at these
        if parameter.default is None:
            self.passing += (NoneType,)

    def checked(self, value: Any) -> Any:
        return value if isinstance(value, self.passing) else self.rule(self.name, value)


def checked(function: Callable) -> Callable:
    """Wrap a function so that its arguments are checked by name."""
    check = argument_checks(function)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        args, named = check(args, kwargs)
        return function(*args, **named)

    return run
