"""Clipping by global norm:  g ← g · min(1, max_norm / |g|),   |g| over all parameters        Pascanu et al. 2013, alg. 1"""

from collections.abc import Callable
from functools import partial
from math import sqrt

import numpy as np

from numllama.backend import Array
from numllama.blocks import piece_size, slices
from numllama.dispatch import accelerated
from numllama.model.parameters import FlatTensors


def grad_norm(grads: FlatTensors) -> float:
    """The Euclidean norm of all gradients taken as one vector."""
    return euclidean_norm(grads.flat)


def clip_grad_norm(grads: FlatTensors, max_norm: float) -> float:
    """Scale gradients in place so that their norm is at most `max_norm`.

    Parameters
    ----------
    grads : FlatTensors
    max_norm : float

    Returns
    -------
    float
        The norm before clipping. If it is not finite, the gradients are unchanged.
    """
    return clip_in_pieces(grads, max_norm)


def clip_in_pieces(
    grads: FlatTensors, max_norm: float, norm: float | None = None, map_fn: Callable = map
) -> float:
    """:func:`clip_grad_norm` in independent pieces, which workers can share with their own `map_fn`.

    Pass `norm` if `grads` is only a part of the gradients.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}, but must be positive")
    norm = euclidean_norm(grads.flat, map_fn) if norm is None else norm
    if max_norm < norm < float("inf"):
        flat, scale = grads.flat, max_norm / (norm + 1e-6)             # 1e-6 as in PyTorch
        list(map_fn(partial(shrink, flat, scale), slices(0, flat.size, piece_size(flat))))
    return norm


@accelerated
def euclidean_norm(flat: Array, map_fn: Callable = map) -> float:
    """The root of the sum of squares; pieces are summed in float64, in a fixed order."""
    return sqrt(sum(squares(flat, map_fn)))


def squares(flat: Array, map_fn: Callable = map) -> list[float]:
    """The sum of squares of each piece."""
    return list(map_fn(partial(square_sum, flat), slices(0, flat.size, piece_size(flat))))


def square_sum(flat: Array, part: slice) -> float:
    """The sum of squares of one piece."""
    with np.errstate(over="ignore", invalid="ignore"):  # the sum is then infinite
        return float(flat[part] @ flat[part])


def shrink(flat: Array, scale: float, part: slice) -> None:
    """Scale a piece in place."""
    flat[part] *= scale
