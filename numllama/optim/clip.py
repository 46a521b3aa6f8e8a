"""Clipping by global norm:  g ← g · min(1, max_norm / |g|),   |g| over all parameters        Pascanu et al. 2013, alg. 1"""

from collections.abc import Callable
from functools import partial
from math import sqrt

import numpy as np

from numllama.backend import Array
from numllama.blocks import piece_size, slices
from numllama.dispatch import accelerated
from numllama.model.parameters import Parameters


def grad_norm(grads: Parameters, run: Callable = map) -> float:
    """The Euclidean norm of all gradients taken as one vector."""
    return euclidean_norm(grads.flat, run)


@accelerated
def euclidean_norm(flat: Array, run: Callable = map) -> float:
    """The root of the sum of squares; pieces are summed in float64, in a fixed order."""
    return sqrt(sum(squares(flat, run)))


def squares(flat: Array, run: Callable = map) -> list[float]:
    """The sum of squares of each piece."""
    return list(run(partial(square_sum, flat), slices(0, flat.size, piece_size(flat))))


def clip_grad_norm(grads: Parameters, max_norm: float, *, run: Callable = map, norm: float | None = None) -> float:
    """Scale gradients in place so that their norm is at most `max_norm`.

    Parameters
    ----------
    grads : Parameters
    max_norm : float
    run : callable
        ``map``, or the workers': the pieces are independent of each other.
    norm : float, optional
        Where it is known already: of gradients of which `grads` is a part.

    Returns
    -------
    float
        The norm before clipping. If it is not finite, the gradients are left as they are.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}, but must be positive")
    norm = grad_norm(grads, run) if norm is None else norm
    if max_norm < norm < float("inf"):
        flat, scale = grads.flat, max_norm / (norm + 1e-6)  # the guard of PyTorch's clip_grad_norm_
        list(run(partial(shrink, flat, scale), slices(0, flat.size, piece_size(flat))))
    return norm


def square_sum(flat: Array, part: slice) -> float:
    """The sum of squares of one piece."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is the answer then
        return float(flat[part] @ flat[part])


def shrink(flat: Array, scale: float, part: slice) -> None:
    """Scale a piece in place."""
    flat[part] *= scale
