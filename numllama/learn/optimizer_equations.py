"""AdamW with clipping by global norm as a table of equations, any of which can be replaced by a mistaken one.

An equation is a function whose parameters are names of values: those of other equations; a tensor's `weight`, `raw` gradient,
`name`, `is_matrix`; `step` (from 1) and `steps`; the settings `lr`, `beta1`, `beta2`, `eps`, `weight_decay` and `clip`.
`m_before` is m of the step before, 0 at first. `grads` is the `grad` of all tensors, by name; `grads_before` that of the step
before, empty at first.
"""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Weights = Mapping[str, np.ndarray]
Gradients = Callable[[Weights], tuple[float, Weights]]


def n_steps(steps):
    return steps


def rate(lr):
    return lr


def grad(raw):
    return raw


def norm(grads):
    """The norm of all gradients taken as one vector."""
    return math.sqrt(sum((g * g).sum() for g in grads.values()))


def clipped(grad, norm, clip):
    return grad * clip / (norm + 1e-6) if clip < norm < math.inf else grad


def m(m_before, clipped, beta1):
    return beta1 * m_before + (1 - beta1) * clipped


def v(v_before, clipped, beta2):
    return beta2 * v_before + (1 - beta2) * clipped**2


def m_hat(m, beta1, step):
    return m / (1 - beta1**step)


def v_hat(v, beta2, step):
    return v / (1 - beta2**step)


def update(m_hat, v_hat, eps):
    return m_hat / (np.sqrt(v_hat) + eps)


def decay(weight, rate, weight_decay, is_matrix):
    return rate * weight_decay * weight if is_matrix else 0.0 * weight


def new(weight, decay, rate, update):
    return weight - decay - rate * update


def reported(norm):
    """The norm that is reported: that before clipping."""
    return norm


EQUATIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each for each in (n_steps, rate, grad, norm, clipped, m, v, m_hat, v_hat, update, decay, new, reported)
}
OF_ALL = ("n_steps", "rate", "norm", "reported")  # one value for all tensors


class Step(NamedTuple):
    """The loss and the norm of the gradients before a step, and the weights after it."""

    loss: float
    norm: float
    weights: Weights


def trajectory(
    weights: Weights,
    gradients: Gradients,
    settings: Mapping[str, Any],
    steps: int,
    replaced: Mapping[str, Callable] | None = None,
    jitter: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Step]:
    """The steps of :func:`simulate`, one after the other."""
    equations = EQUATIONS | dict(replaced or {})
    beta1, beta2 = settings["betas"]
    constants = {name: settings[name] for name in ("lr", "eps", "weight_decay")}
    constants |= {"beta1": beta1, "beta2": beta2, "clip": settings.get("clip", math.inf), "steps": steps}
    total = _applied(equations["n_steps"], constants)
    weights = {name: np.asarray(weight, np.float64) for name, weight in weights.items()}
    tensors: dict[str, dict[str, Any]] = {name: {} for name in weights}
    every: dict[str, Any] = {}
    for step in range(1, max(steps, total) + 1):
        if jitter:
            weights = {name: jitter(weight) for name, weight in weights.items()}
        loss, raw = gradients(weights)
        every = {**constants, "step": step, **{f"{each}s_before": every.get(f"{each}s", {}) for each in EQUATIONS}}
        for name, weight in weights.items():
            before = {f"{each}_before": tensors[name].get(each, 0.0) for each in EQUATIONS}
            tensors[name] = {**before, "name": name, "weight": weight, "raw": raw[name], "is_matrix": weight.ndim > 1}
        for result, function in equations.items():
            if result in OF_ALL:
                every[result] = _applied(function, every)
                continue
            for values in tensors.values():
                values[result] = _applied(function, every | values)
            every[f"{result}s"] = {name: values[result] for name, values in tensors.items()}
        weights = every["news"] if step <= total else weights
        yield Step(float(loss), float(every["reported"]), weights)


def simulate(
    weights: Weights,
    gradients: Gradients,
    settings: Mapping[str, Any],
    steps: int,
    replaced: Mapping[str, Callable] | None = None,
    jitter: Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Steps of AdamW.

    Parameters
    ----------
    weights : mapping of str to array
    gradients : callable
        The loss and its gradients, from weights.
    settings : mapping
        As in golden vectors: `lr`, `betas`, `eps`, `weight_decay`, `clip`.
    steps : int
    replaced : mapping of str to callable, optional
        Other equations.
    jitter : callable, optional
        Changes the weights before each step, as rounding does.

    Returns
    -------
    weights : dict of str to array
        After the last step.
    losses, norms : array, shape (steps,)
        Before each step.
    """
    with np.errstate(all="ignore"):
        taken = list(trajectory(weights, gradients, settings, steps, replaced, jitter))
    losses, norms = np.array([each[:2] for each in taken[:steps]]).T
    return dict(taken[-1].weights), losses, norms


@functools.cache
def _parameters(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _applied(function: Callable, values: Mapping[str, Any]) -> Any:
    return function(**{name: values[name] for name in _parameters(function)})
