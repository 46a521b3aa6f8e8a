"""Launcher of the gradient norm's kernels."""

from collections.abc import Callable

import numpy as np

from numllama.backend import Array
from numllama.cuda import launch

PER_BLOCK = 256 * 16  # vectors of 16 bytes


def euclidean_norm(flat: Array, run: Callable = map) -> float:
    return float(_norm(flat)) if launch.is_plain(flat) else NotImplemented


def clip_factor(flat: Array, losses: Array, max_norm: float) -> Array:
    """On the device: the sum of some losses, the norm of all gradients, and what to multiply them by (0: they are not finite)."""
    result = launch.empty(flat, (3,), np.float64)
    args = [result, _norm(flat), losses, launch.int32(losses.size), np.float64(max_norm)]
    launch.launch("clip", "clip_factor", 1, 1, args, DTYPE=flat.dtype, WIDTH=launch.width(flat.dtype, arrays=(flat,)))
    return result


def _norm(flat: Array) -> Array:
    width = launch.width(flat.dtype, arrays=(flat,))
    n = launch.blocks(flat.size, PER_BLOCK * width)
    sums, norm = launch.empty(flat, (n,), np.float64), launch.empty(flat, (), np.float64)
    defines = {"DTYPE": flat.dtype, "WIDTH": width}
    launch.launch("clip", "square_sums", n, 256, [sums, flat, launch.int64(flat.size)], **defines)
    launch.launch("clip", "root_of_sums", 1, 1024, [norm, sums, launch.int32(n)], **defines)
    return norm
