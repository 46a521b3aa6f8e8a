"""Launcher of the gradient norm's kernel."""

from collections.abc import Callable

import numpy as np

from numllama.backend import Array
from numllama.cuda import launch

PER_BLOCK = 256 * 16  # vectors of 16 bytes


def euclidean_norm(flat: Array, map_fn: Callable = map) -> float:
    return float(_launch(flat, None, 0.0)[1]) if launch.is_plain(flat) else NotImplemented


def clip_factor(flat: Array, losses: Array, max_norm: float) -> Array:
    """On the device: the sum of the losses, the norm of all gradients, and the factor that clips them (0: not finite)."""
    return _launch(flat, losses, max_norm)


def _launch(flat: Array, losses: Array | None, max_norm: float) -> Array:
    width = launch.width(flat.dtype, arrays=(flat,))
    n = launch.blocks(flat.size, PER_BLOCK * width)
    result, sums = launch.empty(flat, (3,), np.float64), launch.empty(flat, (n,), np.float64)
    n_losses = launch.int32(0 if losses is None else losses.size)
    args = [result, sums, launch.backend.counters(), flat, launch.int64(flat.size), losses, n_losses, np.float64(max_norm)]
    launch.launch("clip", "gradient_norm", n, 256, args, DTYPE=flat.dtype, WIDTH=width)
    return result
