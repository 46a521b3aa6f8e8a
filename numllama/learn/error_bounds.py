"""Running error analysis: an op's own lines, run in float64 on numbers that carry a bound on their rounding error.

A kernel stores results with unit roundoff u and adds with unit roundoff u₊ (Higham 2002, eqs. 2.4, 2.8 and 3.4):
    a ∘ b             is off by  u·|a ∘ b| + η,  where η is what underflow may lose
    a sum of n terms  is off by  n·u₊·Σ|term| on top, in whatever order it is taken
    exp, log, ...     are off by 16·u₊·|result| on top, which is 8 units in the last place
Errors of the operands pass through each step: |b|·δa + |a|·δb + δa·δb for a product, eᵃ·(e^δa − 1) for exp, and so on. These are
the rules of running error analysis (Higham 2002, section 3.3), with exact values in place of the computed ones.

For bfloat16 and float16, u₊ is that of float32: rows and matrix products are summed in float32. Only sums over rows, such as a
bias's gradient, may be kept in the result's own memory, and are off by n·u·Σ|term|.

Inputs count as off by 2·u₊: another formula than the op's own may give the exact result for inputs that are that close, which is
mixed forward-backward stability (section 1.5). They count as off by u more where the op has a factor: a kernel may multiply an
input by it, and store that, instead of the result.

Higham 2002: Accuracy and Stability of Numerical Algorithms, second edition.
"""

import math
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import TWO_BYTES, erf, finfo

FUNCTION_UNITS = 16  # u₊ of an elementary function: PyTorch's vectorised erf is off by up to 10
INPUT_UNITS = 2  # u₊ of an input


class Format(NamedTuple):
    """What a kernel computes in: the dtype of results, their unit roundoff, that of sums, and what underflow may lose."""

    dtype: np.dtype
    u: float
    u_sum: float
    underflow: float

    @classmethod
    def of(cls, dtype: np.dtype) -> "Format":
        stored, summed = finfo(dtype), finfo(np.float32 if dtype in TWO_BYTES else dtype)
        float64s_own = np.finfo(np.float64).eps / 2  # the expected value is rounded too
        # Subnormal results are kept, but intermediate ones may be flushed to zero, as GPUs and -ffast-math do.
        underflow = max(float(stored.smallest_subnormal), float(summed.tiny))
        return cls(dtype, float(stored.eps) / 2 + float64s_own, float(summed.eps) / 2 + float64s_own, underflow)


class Bounded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array in float64 with a bound on the error that each element has in a kernel of some format."""

    def __init__(self, value: np.ndarray, error: np.ndarray, format: Format) -> None:
        self.value, self.error, self.format = value, error, format

    @classmethod
    def input(cls, array: np.ndarray, format: Format, *, is_scaled: bool = False) -> "Bounded":
        """An argument; `is_scaled` where a kernel may multiply it by a factor first."""
        value = array.astype(np.float64)
        u = INPUT_UNITS * format.u_sum + (format.u if is_scaled else 0)
        return cls(value, _finite(u * abs(value)), format)

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    T = property(lambda self: self._both(np.transpose))

    def __len__(self) -> int:
        return len(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.ndim:
            raise TypeError("an array of numbers with error bounds would lose them")
        return np.asarray(self.value, dtype)  # a scalar's own error is that of an input

    def _both(self, function: Callable) -> "Bounded":
        """A function that only moves elements, of the values and of their errors."""
        return Bounded(function(self.value), function(self.error), self.format)

    def __getitem__(self, index: Any) -> "Bounded":
        return self._both(lambda a: a[index])

    def __setitem__(self, index: Any, new: Any) -> None:
        self.value[index], self.error[index] = _parts(new, self.format)

    def reshape(self, *shape: Any) -> "Bounded":
        return self._both(lambda a: a.reshape(*shape))

    def swapaxes(self, i: int, j: int) -> "Bounded":
        return self._both(lambda a: a.swapaxes(i, j))

    def astype(self, dtype: Any, copy: bool = True) -> "Bounded":
        return self

    def max(self, axis: int, keepdims: bool = False) -> "Bounded":
        """Exact: the ops subtract a maximum only where it cancels."""
        value = self.value.max(axis, keepdims=keepdims)
        return Bounded(value, np.zeros_like(value), self.format)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> "Bounded":
        value = np.asarray(self.value.sum(axis, keepdims=keepdims))
        n = self.size // max(1, value.size)
        magnitude = abs(self.value).sum(axis, keepdims=keepdims)
        u = self.format.u if axis == 0 else self.format.u_sum
        error = self.error.sum(axis, keepdims=keepdims) + n * (u * magnitude + self.format.underflow)
        return _stored(value, error, self.format)

    def mean(self, axis: int, keepdims: bool = False) -> "Bounded":
        return self.sum(axis, keepdims) / self.shape[axis]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: tuple | None = None, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            if (ufunc, method) == (np.add, "at"):
                return self._add_at(*inputs[1:])
            values, errors = zip(*(_parts(a, self.format) for a in inputs), strict=True)
            value = np.asarray(ufunc(*values))
            if value.dtype == bool:
                return value
            if ufunc is np.matmul:
                errors = (*errors, self.format)
            error = PROPAGATION[ufunc](value, *values, *errors)
            if ufunc in FUNCTIONS:
                error = error + FUNCTION_UNITS * self.format.u_sum * abs(value)
            result = Bounded(value, error, self.format) if ufunc is np.negative else _stored(value, error, self.format)
        if out is None:
            return result
        out[0].value[...], out[0].error[...] = result.value, result.error
        return out[0]

    def _add_at(self, index: np.ndarray, new: "Bounded") -> None:
        """Repeated additions to the same elements, each of them stored, as atomic additions are."""
        counts, magnitude = np.zeros(self.shape), abs(self.value)
        np.add.at(counts, index, 1)
        np.add.at(magnitude, index, abs(new.value))
        np.add.at(self.value, index, new.value)
        np.add.at(self.error, index, new.error)
        self.error += counts * (self.format.u * magnitude + self.format.underflow)

    def __array_function__(self, function: Callable, types: Any, args: tuple, kwargs: dict) -> Any:
        if function is np.argsort:  # a choice of places has no error
            return np.argsort(args[0].value, *args[1:], **kwargs)
        if function not in MOVES:
            return NotImplemented
        values = function(*(a.value if isinstance(a, Bounded) else a for a in args), **kwargs)
        choices = args[1:] if function is np.where else ()  # a plain number among them has no error
        errors = function(
            *(a.error if isinstance(a, Bounded) else 0 if any(a is each for each in choices) else a for a in args), **kwargs
        )
        return None if values is None else Bounded(values, errors, self.format)


# Functions that only move elements.
MOVES = {np.where, np.take_along_axis, np.put_along_axis, np.zeros_like, np.empty_like, np.broadcast_to}


def _matmul(r: Any, a: Any, b: Any, da: Any, db: Any, format: Format) -> Any:
    n, A, B = a.shape[-1], abs(a), abs(b)
    return (A + da) @ db + da @ B + n * (format.u_sum * (A @ B) + format.underflow)


def _tanh(r: Any, a: Any, d: Any) -> Any:
    """tanh(a + d) − tanh a = tanh d · (1 − tanh² a) / (1 + tanh a · tanh d), largest towards zero."""
    t = np.tanh(d)
    return np.where(t == 0, 0, t * (1 - r * r) / np.maximum(1 - abs(r) * t, 1e-300))


# What the errors δa and δb of the operands make of the result r.
PROPAGATION: dict[Any, Callable] = {
    np.add: lambda r, a, b, da, db: da + db,
    np.subtract: lambda r, a, b, da, db: da + db,
    np.multiply: lambda r, a, b, da, db: abs(a) * db + abs(b) * da + da * db,
    np.divide: lambda r, a, b, da, db: np.where(db < abs(b), (da + abs(r) * db) / (abs(b) - db), np.inf),
    np.matmul: _matmul,
    np.negative: lambda r, a, d: d,
    np.sqrt: lambda r, a, d: np.where(d == 0, 0, d / (r + np.sqrt(np.maximum(a - d, 0)))),
    np.exp: lambda r, a, d: r * np.expm1(d),
    np.log: lambda r, a, d: np.where(d < a, -np.log1p(-d / a), np.inf),
    np.tanh: _tanh,
}
FUNCTIONS = (np.sqrt, np.exp, np.log, np.tanh)


def _parts(a: Any, format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Value and error. A plain number is a constant of the formula, such as 0.044715, which the format may not hold exactly."""
    if isinstance(a, Bounded):
        return a.value, a.error
    value = np.asarray(a)
    if value.dtype.kind != "f":
        return value, np.zeros(value.shape)
    with np.errstate(all="ignore"):
        return value, _finite(abs(value - value.astype(format.dtype).astype(np.float64)))


def _stored(value: np.ndarray, error: np.ndarray, format: Format) -> Bounded:
    return Bounded(value, np.where(np.isinf(value), 0, error + format.u * abs(value) + format.underflow), format)


def _finite(error: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(error), error, 0)


def bounded_erf(x: Bounded) -> Bounded:
    """The error function: its slope is 2/√π·exp(−x²), largest towards zero. Fast versions are off by a part of its limit, 1."""
    slope = 2 / math.sqrt(math.pi) * np.exp(-(np.maximum(abs(x.value) - x.error, 0) ** 2))
    value = erf(x.value)
    return _stored(value, slope * x.error + FUNCTION_UNITS * x.format.u_sum, x.format)


@cache
def own_lines(op: Callable) -> Callable:
    """An op as it is written, with no faster function in its place or in that of the ops that it calls."""
    lines: Any = vars(op)["reference"]
    called = {name: lines.__globals__.get(name) for name in _names(lines.__code__)}
    ops = {name: own_lines(value) for name, value in called.items() if "reference" in getattr(value, "__dict__", ())}
    run = FunctionType(lines.__code__, {**lines.__globals__, **ops, "erf": bounded_erf}, None, lines.__defaults__)
    run.__kwdefaults__ = lines.__kwdefaults__
    return run


def _names(code: CodeType) -> set[str]:
    """Every name that a function looks up, in its comprehensions too."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
