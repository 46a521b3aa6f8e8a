"""Products with a weight that is stored in bfloat16, to save memory: converted a block at a time, as it is used."""

import numpy as np

from numllama.backend import BFLOAT16
from numllama.blocks import slices
from numllama.ops import linear
from numllama.ops.linear import LinearCache

BLOCK_ELEMENTS = 256 * 1024  # of the weight, 1 MiB in float32: the product finds it in the second-level cache


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, LinearCache]:
    if weight.dtype != BFLOAT16 or weight.shape[1:] != x.shape[-1:]:
        return linear.linear_forward.reference(x, weight, bias)
    out = np.empty((*x.shape[:-1], len(weight)), x.dtype)
    step = min(len(weight), max(1, BLOCK_ELEMENTS // weight.shape[-1]))
    block = np.empty((step, weight.shape[-1]), x.dtype)  # one for all: new memory costs more than the conversion
    for rows in slices(0, len(weight), step):
        converted = block[: rows.stop - rows.start]
        converted[...] = weight[rows]
        out[..., rows], _ = linear.linear_forward.reference(x, converted, None if bias is None else bias[rows])
    return out, LinearCache(x, weight, bias)


def linear_backward_input(dout: np.ndarray, cache: LinearCache, dx: np.ndarray | None = None) -> np.ndarray:
    x, weight, bias = cache
    return linear.linear_backward_input.reference(dout, LinearCache(x, weight.astype(dout.dtype, copy=False), bias), dx)
