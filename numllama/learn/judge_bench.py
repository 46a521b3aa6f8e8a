"""How a candidate is called, in each case, and what its results are compared with.

With two sets of arguments, a and b, at two places in memory:
    forward(a)  forward(b)  backward(b)  backward(a)    two layers of a network: finds a cache that is global or used again
    new values in a, forward(a)  backward(a)            finds results kept by address, and results that are views of arguments
    forward(b)  backward(b)                             must give the same bits as before
No call may write to its arguments, or around them. Results are copied at once, and the expected ones computed afterwards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES, finfo, quiet
from numllama.errors import shown
from numllama.learn.error_bounds import Bounded, Format, own_lines
from numllama.learn.judge_guard import Guard, RefusedCall
from numllama.learn.judge_memory import Framework, Placed, as_numpy
from numllama.learn.judge_ops import Case, Draw, JudgedOp


class Wrong(Exception):
    """What is wrong with a candidate, in a sentence; `where` holds fields of the verdict."""

    def __init__(self, problem: str, **where: Any) -> None:
        super().__init__(problem)
        self.where = where


class Call:
    """A set of arguments and cotangents, the memory that they are in, and what the candidate made of them."""

    def __init__(self, arguments: tuple, douts: tuple[np.ndarray, ...], layout: str, framework: Framework) -> None:
        self.arguments, self.douts = arguments, douts
        self.placed = [Placed(each, layout, framework) if is_array(each) else None for each in (*arguments, *douts)]
        self.results: dict[str, tuple[Any, np.ndarray]] = {}  # what was returned, and a copy
        self.cache: Any = None

    def overwritten(self, arguments: tuple, douts: tuple[np.ndarray, ...]) -> "Call":
        """Another call, in the same memory."""
        call = object.__new__(Call)
        call.arguments, call.douts, call.placed, call.results, call.cache = arguments, douts, self.placed, {}, None
        for place, value in zip(self.placed, (*arguments, *douts), strict=True):
            if place is not None:
                place.write(value)
        return call

    def given(self) -> tuple[list, Any]:
        """The arguments, and the cotangent or a tuple of them, as a candidate is given them."""
        n = len(self.arguments)
        values = zip((*self.arguments, *self.douts), self.placed, strict=True)
        given = [value if place is None else place.array for value, place in values]
        return given[:n], one_or_all(given[n:])

    def is_intact(self) -> bool:
        return all(place is None or place.is_intact() for place in self.placed)


class Bench:
    """A candidate, and the op that it is compared with."""

    def __init__(
        self, row: JudgedOp, forward: Callable | None, backward: Callable | None,
        framework: Framework, format: Format, *, writes: bool, same_bits: bool,
    ) -> None:  # fmt: skip
        self.row, self.forward, self.backward, self.framework = row, forward, backward, framework
        self.format, self.writes, self.same_bits = format, writes, same_bits
        self.own_forward, self.own_backward = own_lines(row.forward), own_lines(row.backward)
        self.guard = Guard()

    def run(self, case: Case, rng: np.random.Generator) -> dict[str, Any]:
        """Make all calls of a case; where a result came closest to its bound. Raises Wrong."""
        a, b = (Call(*self._draw(case, rng), case.layout, self.framework) for _ in range(2))
        self._run_forward(a)
        self._run_forward(b)
        self._run_backward(b)
        self._run_backward(a)
        closest = [self._compare(a), self._compare(b)]
        self._check_unchanged(a, "is overwritten by a later call")
        c = a.overwritten(*self._draw(case, rng))
        self._check_unchanged(a, "changes when its arguments are overwritten: it is a view of them")
        self._run_forward(c)
        self._run_backward(c)
        closest.append(self._compare(c))
        b_again = b.overwritten(b.arguments, b.douts)
        self._run_forward(b_again)
        self._run_backward(b_again)
        closest.append(self._compare(b_again))
        self._check_unchanged(b, "is overwritten by a later call")
        for name, (_, copy) in b.results.items():
            if self.same_bits and not same_bits(copy, b_again.results[name][1]):
                raise Wrong(f"{name} has other bits when the same arguments come again", result=name)
        return max(closest, key=closeness)

    def _draw(self, case: Case, rng: np.random.Generator) -> tuple[tuple, tuple[np.ndarray, ...]]:
        """Arguments and cotangents in the candidate's dtype."""
        dtype = self.format.dtype
        with quiet():
            drawn = self.row.arguments(Draw(rng, case, self.row.large, dtype))
            arguments = tuple(each.astype(dtype) if is_array(each) and each.dtype.kind == "f" else each for each in drawn)
        outs, _ = self._expected_forward(arguments)
        return arguments, tuple(np.asarray(rng.standard_normal(out.shape)).astype(dtype) for out in outs)

    # ------------------------------------------------------------------------------------------ the candidate

    def _run_forward(self, call: Call) -> None:
        if self.forward is None:
            return
        n = len(self.row.results)

        def split(returned: Any, written: Any) -> tuple[Any, Any]:
            if self.writes:
                return written, returned
            is_pair = isinstance(returned, tuple | list) and len(returned) == 2
            if is_pair and (self.backward or n == 1 or isinstance(returned[0], tuple | list)):
                return returned[0], returned[1]
            if self.backward:
                raise Wrong(f"forward returns {shown(type(returned).__name__, quote=False)}, not a pair of output and cache")
            return returned, None

        self._call(self.forward, call, call.given()[0], self.row.results, [dout.shape for dout in call.douts], split)

    def _run_backward(self, call: Call) -> None:
        if self.backward is None:
            return
        arguments, dout = call.given()
        given = [dout, *(arguments if self.forward is None else [call.cache])]
        shapes = [each.shape for each in self._differentiable(call)]
        self._call(
            self.backward, call, given, self.row.gradients, shapes, lambda back, out: (out if self.writes else back, call.cache)
        )

    def _differentiable(self, call: Call) -> list[np.ndarray]:
        return [each for each in call.arguments if is_array(each) and each.dtype == self.format.dtype][: len(self.row.gradients)]

    def _call(
        self, function: Callable, call: Call, given: list, names: Sequence[str], shapes: list[tuple[int, ...]], split: Callable
    ) -> None:
        """Call a function of the candidate, check its manners, and keep its results."""
        places = [Placed(np.full(shape, np.nan, self.format.dtype), "contiguous", self.framework) for shape in shapes]
        written = one_or_all([place.array for place in places])
        self.guard.calls.clear()
        try:
            with quiet(), self.guard.on():
                returned, call.cache = split(function(*given, *([written] if self.writes else [])), written)
                several = isinstance(returned, tuple) or (len(names) > 1 and isinstance(returned, list))
                results = without_trailing_nones(returned) if several else [returned]
                copies = [as_numpy(each) for each in results]
            problem = None
        except Wrong:
            raise
        except RefusedCall:
            problem = "calls numllama itself, from another thread"
        except (Exception, SystemExit) as error:
            problem = f"raises {type(error).__name__}: {shown(error, quote=False, most=200)}"
        if self.guard.calls:
            problem = f"calls numllama itself: {self.guard.calls[0]}"
        if problem is None and not call.is_intact():
            problem = "writes to its arguments, or around them"
        if problem is None and not all(place.is_intact_around() for place in places):
            problem = "writes around its results"
        if problem is None and len(copies) != len(names):
            problem = f"returns {len(copies)} results, not {len(names)}: {', '.join(names)}"
        if problem is not None:
            raise Wrong(problem)
        call.results |= {name: (result, copy) for name, result, copy in zip(names, results, copies, strict=True)}

    def _check_unchanged(self, call: Call, problem: str) -> None:
        for name, (returned, copy) in call.results.items():
            if not same_bits(as_numpy(returned), copy):
                raise Wrong(f"{name} {problem}", result=name)

    # ------------------------------------------------------------------------------------------ the op

    def _expected_forward(self, arguments: tuple) -> tuple[tuple[Bounded, ...], Any]:
        given = [self._bounded(each) for each in arguments]
        with np.errstate(all="ignore"):
            out, cache = self.own_forward(*given, **self.row.options)
        return as_tuple(out), cache

    def _bounded(self, value: Any) -> Any:
        if not is_array(value) or value.dtype != self.format.dtype:
            return value
        return Bounded.input(value, self.format, is_scaled=self.row.has_factor)

    def _compare(self, call: Call) -> dict[str, Any]:
        """Compare results with the op's; where they come closest to their bounds. Raises Wrong."""
        outs, cache = self._expected_forward(call.arguments)
        expected = dict(zip(self.row.results, outs, strict=True))
        if self.backward:
            with np.errstate(all="ignore"):
                gradients = self.own_backward(one_or_all([self._bounded(dout) for dout in call.douts]), cache)
            expected |= dict(zip(self.row.gradients, as_tuple(gradients), strict=True))
        closest = [self._compared(name, copy, expected[name]) for name, (_, copy) in call.results.items()]
        return max(closest, key=closeness)

    def _compared(self, name: str, copy: np.ndarray, expected: Bounded) -> dict[str, Any]:
        may_be_wide = self.format.dtype in TWO_BYTES and (name in self.row.gradients or not expected.ndim)
        if copy.dtype != self.format.dtype and not (may_be_wide and copy.dtype == np.float32):
            raise Wrong(f"{name} is {copy.dtype}, not {self.format.dtype}", result=name)
        if copy.shape != expected.shape:
            raise Wrong(f"{name} has shape {copy.shape}, not {expected.shape}", result=name)
        error, bound = errors(copy, expected)
        of_bound = error / np.where(bound > 0, bound, 1e-300)
        at = tuple(map(int, np.unravel_index(np.nan_to_num(of_bound, nan=0, posinf=np.inf).argmax(), of_bound.shape)))
        where = dict(result=name, index=at, error=finite(error[at]), bound=finite(bound[at]))
        if error[at] > bound[at]:
            off = f"off by {error[at]:.2g}, and rounding explains {bound[at]:.2g}"
            value, right = float(copy[at]), float(expected.value[at])
            raise Wrong(f"{name}{list(at)} is {value:.7g}, not {right:.7g}: {off}", **where)
        return where


def errors(copy: np.ndarray, expected: Bounded) -> tuple[np.ndarray, np.ndarray]:
    """How far each element is off, and how far it may be; infinitely far, where one is not a number and the other is."""
    got, value = copy.astype(np.float64), expected.value
    bound = np.where(np.isnan(expected.error), np.inf, expected.error)
    largest = float(finfo(copy.dtype).max)
    with np.errstate(all="ignore"):
        overflows = np.isinf(got) & (np.sign(got) == np.sign(value)) & (abs(value) + bound > largest)
        same = (got == value) | (np.isnan(got) & np.isnan(value)) | overflows
        error = np.where(same, 0, abs(got - value))
    return np.where(np.isnan(error), np.inf, error), np.where(np.isnan(value), 0, bound)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes()


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def as_tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def one_or_all(values: list) -> Any:
    """A tuple of several, or the one that there is."""
    return values[0] if len(values) == 1 else tuple(values)


def without_trailing_nones(values: Sequence) -> list:
    """Gradients; PyTorch's functions return None for what has none, such as eps."""
    n = len(values)
    while n and values[n - 1] is None:
        n -= 1
    return list(values[:n])


def closeness(where: dict[str, Any]) -> float:
    """The error as a part of its bound; 0 where either is infinite."""
    return where["error"] / where["bound"] if where["error"] and where["bound"] else 0.0


def finite(number: Any) -> float | None:
    """As JSON may hold it."""
    return float(number) if np.isfinite(number) else None
