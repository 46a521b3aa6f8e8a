"""SwiGLU in place, a block of rows at a time: what one pass writes, the next finds in the core's cache.

silu(g) = g·σ(g) and silu'(g) = σ(g)·(1 + g − silu(g)), with σ(g) = (1 + tanh(g/2)) / 2.
"""

from collections.abc import Iterator

import numpy as np

from numllama.blocks import slices
from numllama.checks import check_shape
from numllama.ops.swiglu import SwiGLUCache

BLOCK_ELEMENTS, SMALL_ELEMENTS = 64 * 1024, 192 * 1024


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, SwiGLUCache]:
    check_shape("up", up, gate.shape)
    out = np.empty_like(up)                                            # (..., F)
    for g, u, o in row_blocks(gate, up, out):
        half = 0.5 * g
        np.tanh(half, out=o)
        o *= half
        o += half                                                      # silu(gate)
        o *= u
    return out, SwiGLUCache(gate, up)


def swiglu_backward(dout: np.ndarray, cache: SwiGLUCache) -> tuple[np.ndarray, np.ndarray]:
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    dgate, dup = np.empty_like(gate), np.empty_like(up)                # (..., F)
    for g, u, d, dg, du in row_blocks(gate, up, dout, dgate, dup):
        sigma = 0.5 * g
        np.tanh(sigma, out=sigma)
        sigma += 1
        sigma *= 0.5
        silu = np.multiply(g, sigma, out=du)
        np.subtract(g, silu, out=dg)
        dg += 1
        dg *= sigma                                                    # silu'(gate)
        dg *= u
        dg *= d
        du *= d
    return dgate, dup


def row_blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The same blocks of rows of arrays of one shape, as views; small arrays are one block."""
    if arrays[0].size <= SMALL_ELEMENTS or not all(array.flags.c_contiguous for array in arrays):
        yield arrays
        return
    width = arrays[0].shape[-1]
    tables = [array.reshape(-1, width) for array in arrays]
    for rows in slices(0, len(tables[0]), max(1, BLOCK_ELEMENTS // width)):
        yield tuple(table[rows] for table in tables)
