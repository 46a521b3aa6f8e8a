"""Is a hand-written backward right?  A numerical check for any pair of forward and backward.

For a random unit direction u of one argument and a random cotangent dout, the chain rule says
    d/dh  sum(forward(x + h·u) · dout)  at h = 0   =   sum(backward(dout) · u)
The left side is measured with fourth-order central differences, whose error falls as h⁴ until rounding takes over:
    f'(0) ≈ (8·(f(h) − f(−h)) − (f(2h) − f(−2h))) / (12·h)
The best of several steps h counts. Cotangents are random, never all ones: under a sum, a wrong softmax gradient passes.

Checking an op of your own:

>>> import numpy as np
>>> from numllama.gradcheck import gradcheck
>>> def square_forward(x):
...     return x * x, (x,)
>>> def square_backward(dout, cache):
...     return 2 * cache[0] * dout
>>> results = gradcheck(square_forward, square_backward, [np.array([1.0, -2.0, 3.0])])
>>> [(result.argument, result.passed) for result in results]  # two random directions
[(0, True), (0, True)]
>>> gradcheck(square_forward, lambda dout, cache: cache[0] * dout, [np.array([1.0, -2.0, 3.0])])
Traceback (most recent call last):
...
numllama.gradcheck.GradientError: the gradient of argument 0 is wrong: ...
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from numllama.backend import to_numpy, xp_of

STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)


class GradientError(AssertionError):
    """A backward does not match its forward."""


@dataclass(frozen=True)
class GradcheckResult:
    """One argument along one direction: the error, and the bound that rounding allows."""

    argument: int
    numeric: float
    analytic: float
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound < np.inf


def gradcheck(
    forward: Callable[..., tuple[Any, Any]],
    backward: Callable[..., Any],
    args: Sequence[Any],
    *,
    wrt: Sequence[int] | None = None,
    directions: int = 2,
    tolerance: float = 1e-10,
    steps: Sequence[float] = STEPS,
    seed: int = 0,
) -> list[GradcheckResult]:
    """Compare a backward with numerical derivatives of its forward, in float64.

    Parameters
    ----------
    forward : callable
        ``out, cache = forward(*args)``; `out` is an array, a scalar or a tuple of them.
    backward : callable
        ``gradients = backward(dout, cache)``, one for each differentiable argument; an array if there is only one.
    args : sequence
        Arguments of `forward`. Arrays of floats must be float64.
    wrt : sequence of int, optional
        Indices of the arguments that `backward` differentiates, in its order; default: every array of floats.
    directions : int
        Number of random directions per argument.
    tolerance : float
        The check requires ``|numeric - analytic| <= tolerance * (|gradient| + sum |out · dout|)``.
    steps : sequence of float
        Steps h of the differences; the best one counts.
    seed : int

    Returns
    -------
    list of GradcheckResult
        One for each argument and direction; all have passed.

    Raises
    ------
    GradientError
        If a gradient is wrong, missing, or of another shape or dtype than its argument, or if an input was written to.
    TypeError
        If an array of floats is not float64.
    """
    rng = np.random.default_rng([seed, 1])  # not the stream of a caller's own arguments
    args = list(args)
    if wrt is None:
        wrt = [i for i, arg in enumerate(args) if hasattr(arg, "dtype") and arg.dtype.kind == "f"]
    for i in wrt:
        if args[i].dtype != np.float64:
            raise TypeError(f"argument {i} is {args[i].dtype}, but a gradient is checked in float64")
    xp = xp_of(*args)
    before = [arg.copy() if hasattr(arg, "copy") else arg for arg in args]

    out, cache = forward(*args)
    dout = _map(lambda o: xp.asarray(rng.standard_normal(np.shape(o))), out)
    gradients = backward(dout, cache)
    gradients = tuple(gradients) if isinstance(gradients, tuple | list) else (gradients,)
    _check_form(args, before, wrt, gradients)

    def loss(i, x):
        return _dot(forward(*args[:i], x, *args[i + 1 :])[0], dout)

    results = []
    magnitude = float(sum(abs(o * d).sum() for o, d in zip(_tuple(out), _tuple(dout), strict=True)))
    for i, gradient in zip(wrt, gradients, strict=True):
        for _ in range(directions):
            u = rng.standard_normal(args[i].shape)
            u = xp.asarray(u / max(np.linalg.norm(u), 1e-300))
            analytic = float((gradient * u).sum())
            x = args[i]
            numeric = min(
                (
                    (8 * (loss(i, x + h * u) - loss(i, x - h * u)) - (loss(i, x + 2 * h * u) - loss(i, x - 2 * h * u)))
                    / (12 * h)
                    for h in steps
                ),
                key=lambda value: abs(value - analytic) if value == value else np.inf,
            )
            bound = tolerance * (float(xp.linalg.norm(gradient.ravel())) + magnitude)
            results.append(GradcheckResult(i, numeric, analytic, abs(numeric - analytic), bound))
            if not results[-1].passed:
                raise GradientError(
                    f"the gradient of argument {i} is wrong: along a random direction it gives {analytic:.12g}, "
                    f"but differences give {numeric:.12g} (error {results[-1].error:.1e}, allowed {bound:.1e})"
                )
    return results


def _check_form(args: list, before: list, wrt: Sequence[int], gradients: tuple) -> None:
    """Require one gradient per argument, of its shape and dtype, and unmodified inputs."""
    if len(gradients) != len(wrt):
        raise GradientError(f"backward returns {len(gradients)} gradients for {len(wrt)} differentiable arguments")
    for i, gradient in zip(wrt, gradients, strict=True):
        if not hasattr(gradient, "dtype"):
            raise GradientError(f"the gradient of argument {i} is a {type(gradient).__name__}, not an array")
        if gradient.shape != args[i].shape or gradient.dtype != args[i].dtype:
            raise GradientError(
                f"the gradient of argument {i} is {gradient.dtype}{gradient.shape}, "
                f"but the argument is {args[i].dtype}{args[i].shape}"
            )
    for i, (arg, old) in enumerate(zip(args, before, strict=True)):
        if hasattr(arg, "dtype") and not np.array_equal(to_numpy(arg), to_numpy(old), equal_nan=arg.dtype.kind == "f"):
            raise GradientError(f"argument {i} was written to")


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _map(function: Callable, value: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _dot(out: Any, dout: Any) -> float:
    return float(sum((o * d).sum() for o, d in zip(_tuple(out), _tuple(dout), strict=True)))
