"""Clipping by global norm:  g ← g · min(1, max_norm / |g|),   |g| over all parameters        Pascanu et al. 2013, alg. 1"""

from math import sqrt

import numpy as np

from numllama.backend import Array
from numllama.dispatch import accelerated, piece_size, slices
from numllama.model.parameters import Parameters


def grad_norm(grads: Parameters) -> float:
    """The Euclidean norm of all gradients taken as one vector."""
    return euclidean_norm(grads.flat)


@accelerated
def euclidean_norm(flat: Array) -> float:
    """The root of the sum of squares; pieces are summed in float64, in a fixed order."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinity is the answer then
        return sqrt(sum(float(flat[part] @ flat[part]) for part in slices(0, flat.size, piece_size(flat))))


def clip_grad_norm(grads: Parameters, max_norm: float) -> float:
    """Scale gradients in place so that their norm is at most `max_norm`.

    Parameters
    ----------
    grads : Parameters
    max_norm : float

    Returns
    -------
    float
        The norm before clipping. If it is not finite, the gradients are left as they are.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}, but must be positive")
    norm = grad_norm(grads)
    if max_norm < norm < float("inf"):
        scale = max_norm / (norm + 1e-6)  # the guard of PyTorch's clip_grad_norm_
        grads.flat *= scale
    return norm
