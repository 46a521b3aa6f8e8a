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
>>> [(result.name, result.passed) for result in results]  # two random directions
[('x', True), ('x', True)]
>>> gradcheck(square_forward, lambda dout, cache: cache[0] * dout, [np.array([1.0, -2.0, 3.0])])
Traceback (most recent call last):
...
numllama.gradcheck.GradientError: the gradient of x (argument 0) is wrong: ...

Functions of PyTorch and JAX become such a pair by `of_torch` and `of_jax`; docs/record.md shows one in C.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import to_numpy, xp_of
from numllama.errors import listed

STEPS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)


class GradientError(AssertionError):
    """A backward does not match its forward."""


@dataclass(frozen=True)
class GradcheckResult:
    """One argument along one direction: the error, the bound that rounding allows, and the argument's name, if it has one."""

    argument: int
    numeric: float
    analytic: float
    error: float
    bound: float
    name: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= self.bound < np.inf


class Pair(NamedTuple):
    """A forward and a backward, as :func:`gradcheck` takes them."""

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any]


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
    argument_names: Sequence[str] | None = None,
) -> list[GradcheckResult]:
    """Compare a backward with numerical derivatives of its forward, in float64.

    Arrays, in arguments and in results, may be NumPy's, CuPy's, or another library's that `np.asarray` takes; `forward` and
    `backward` get NumPy's in place of the latter.

    Parameters
    ----------
    forward : callable
        ``out, cache = forward(*args)``; `out` is an array, a scalar or a tuple of them.
    backward : callable
        ``gradients = backward(dout, cache)``, one for each differentiable argument; an array if there is only one. Or one for
        each argument, None for those that are not arrays of floats.
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
    argument_names : sequence of str, optional
        Default: the names in the signature of `forward`.

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
    args = [_as_array(arg) for arg in args]
    names = _names(forward, len(args), argument_names)
    floats = [i for i, arg in enumerate(args) if hasattr(arg, "dtype") and arg.dtype.kind == "f"]
    wrt = floats if wrt is None else wrt
    for i in wrt:
        args[i] = args[i] if hasattr(args[i], "dtype") else np.asarray(args[i])
        if args[i].dtype != np.float64:
            raise TypeError(f"{_called(i, names)} is {args[i].dtype}, but a gradient is checked in float64")
    xp = xp_of(*args)
    before = [arg.copy() if hasattr(arg, "copy") else arg for arg in args]

    out, cache = forward(*args)
    out = _map(_as_array, out)
    dout = _map(lambda o: xp.asarray(rng.standard_normal(np.shape(o))), out)
    gradients = backward(dout, cache)
    gradients = tuple(map(_as_array, gradients)) if isinstance(gradients, tuple | list) else (_as_array(gradients),)
    if len(gradients) == len(args) and all(g is None for i, g in enumerate(gradients) if i not in floats):
        gradients = tuple(gradients[i] for i in wrt)
    _check_form(args, before, wrt, gradients, names)

    def loss(i, x):
        return _dot(_map(_as_array, forward(*args[:i], x, *args[i + 1 :])[0]), dout)

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
            results.append(GradcheckResult(i, numeric, analytic, abs(numeric - analytic), bound, names[i]))
    _check_results(results, names)
    return results


def _check_results(results: Sequence[GradcheckResult], names: Sequence[str]) -> None:
    """Require that all have passed; the error shows the first that has not, and names all arguments."""
    failed = [result for result in results if not result.passed]
    if not failed:
        return
    first, wrong = failed[0], {result.argument for result in failed}
    also = [_called(i, names) for i in dict.fromkeys(result.argument for result in failed) if i != first.argument]
    right = [_called(i, names) for i in dict.fromkeys(result.argument for result in results) if i not in wrong]
    raise GradientError(
        f"the gradient of {_called(first.argument, names)} is wrong: along a random direction it gives {first.analytic:.12g}, "
        f"but differences give {first.numeric:.12g} (error {first.error:.1e}, allowed {first.bound:.1e})"
        + (f"; wrong too: {listed(also)}" if also else "") + (f"; right: {listed(right)}" if right else "")
    )  # fmt: skip


def _check_form(args: list, before: list, wrt: Sequence[int], gradients: tuple, names: Sequence[str]) -> None:
    """Require one gradient per argument, of its shape and dtype, and unmodified inputs."""
    if len(gradients) != len(wrt):
        raise GradientError(f"backward returns {len(gradients)} gradients for {len(wrt)} differentiable arguments")
    for i, gradient in zip(wrt, gradients, strict=True):
        if not hasattr(gradient, "dtype"):
            raise GradientError(f"the gradient of {_called(i, names)} is a {type(gradient).__name__}, not an array")
        if gradient.shape != args[i].shape or gradient.dtype != args[i].dtype:
            raise GradientError(
                f"the gradient of {_called(i, names)} is {gradient.dtype}{gradient.shape}, "
                f"but the argument is {args[i].dtype}{args[i].shape}"
            )
    for i, (arg, old) in enumerate(zip(args, before, strict=True)):
        if hasattr(arg, "dtype") and not np.array_equal(to_numpy(arg), to_numpy(old), equal_nan=arg.dtype.kind == "f"):
            raise GradientError(f"{_called(i, names)} was written to")


def _names(forward: Callable, n: int, given: Sequence[str] | None) -> list[str]:
    """The names of n arguments; empty where `forward` has none for them."""
    if given is not None:
        if len(given) != n:
            raise ValueError(f"argument_names has {len(given)} names, but there are {n} arguments")
        return list(given)
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):  # a function in C
        parameters = ()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return (names + [""] * n)[:n]


def _called(i: int, names: Sequence[str]) -> str:
    return f"{names[i]} (argument {i})" if names[i] else f"argument {i}"


def _as_array(value: Any) -> Any:
    """Another library's array as NumPy's; anything else as it is."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    known = not hasattr(value, "__array__") or isinstance(value, np.ndarray | np.generic) or xp_of(value) is not np
    return value if known else np.asarray(value)


def _tuple(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _map(function: Callable, value: Any) -> Any:
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _dot(out: Any, dout: Any) -> float:
    return float(sum((o * d).sum() for o, d in zip(_tuple(out), _tuple(dout), strict=True)))


# ------------------------------------------------------------------------------------------------ other libraries


def of_torch(function: Any, device: str = "cpu") -> Pair:
    """A `torch.autograd.Function`, or any other function of tensors, as a pair for :func:`gradcheck`.

    Parameters
    ----------
    function : type or callable
        It gets a tensor for each array of `args`.
    device : str
        The tensors' device.
    """
    import torch

    is_class = isinstance(function, type) and issubclass(function, torch.autograd.Function)
    apply = function.apply if is_class else function

    def forward(*args: Any) -> tuple[Any, Any]:
        given = [torch.as_tensor(arg, device=device) if isinstance(arg, np.ndarray) else arg for arg in args]
        floats = {i: each for i, each in enumerate(given) if torch.is_tensor(each) and each.is_floating_point()}
        for each in floats.values():
            each.requires_grad_()
        out = apply(*given)
        return out, (out, floats, len(args))

    def backward(dout: Any, cache: Any) -> tuple[Any, ...]:
        out, floats, n = cache
        douts = [torch.as_tensor(each, device=device) for each in _tuple(dout)]
        gradients = torch.autograd.grad(_tuple(out), list(floats.values()), douts, allow_unused=True)
        return _in_order(floats, gradients, n)

    has_context = is_class and function.setup_context is torch.autograd.Function.setup_context
    return Pair(_with_signature(forward, function.forward if is_class else function, skip=int(has_context)), backward)


def of_jax(function: Any) -> Pair:
    """A function of JAX, with a `custom_vjp` or without, as a pair for :func:`gradcheck`; JAX must compute in float64."""
    import jax

    if jax.numpy.ones(()).dtype != np.float64:
        raise ValueError('JAX computes in float32: call jax.config.update("jax_enable_x64", True) first')

    def forward(*args: Any) -> tuple[Any, Any]:
        floats = {i: arg for i, arg in enumerate(args) if isinstance(arg, np.ndarray) and arg.dtype.kind == "f"}

        def of_floats(*values: Any) -> Any:
            values_of = dict(zip(floats, values, strict=True))
            return function(*(values_of.get(i, arg) for i, arg in enumerate(args)))

        out, vjp = jax.vjp(of_floats, *floats.values())
        return out, (vjp, floats, len(args))

    def backward(dout: Any, cache: Any) -> tuple[Any, ...]:
        vjp, floats, n = cache
        return _in_order(floats, vjp(dout), n)

    return Pair(_with_signature(forward, function), backward)


def _in_order(floats: Any, gradients: Sequence[Any], n: int) -> tuple[Any, ...]:
    """One gradient for each of n arguments, None for those that are not arrays of floats."""
    gradient_of = dict(zip(floats, gradients, strict=True))
    return tuple(gradient_of.get(i) for i in range(n))


def _with_signature(forward: Any, function: Any, skip: int = 0) -> Any:
    """`forward` with the signature of `function`, whose first `skip` parameters are not arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return forward
    forward.__signature__ = signature.replace(parameters=list(signature.parameters.values())[skip:])
    return forward
