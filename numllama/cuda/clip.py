"""Launcher of the gradient norm's kernels."""

import numpy as np

from numllama.backend import Array
from numllama.cuda import launch

PER_BLOCK = 256 * 16  # vectors of 16 bytes


def euclidean_norm(flat: Array) -> float:
    if not launch.is_plain(flat):
        return NotImplemented
    width = launch.width(flat.dtype, arrays=(flat,))
    n = launch.blocks(flat.size, PER_BLOCK * width)
    sums, norm = launch.empty(flat, (n,), np.float64), launch.empty(flat, (), np.float64)
    defines = {"DTYPE": flat.dtype, "WIDTH": width}
    launch.launch("clip", "square_sums", n, 256, [sums, flat, launch.int64(flat.size)], **defines)
    launch.launch("clip", "root_of_sums", 1, 1024, [norm, sums, launch.int32(n)], **defines)
    return float(norm)
