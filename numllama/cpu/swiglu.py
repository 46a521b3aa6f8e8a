"""SwiGLU in place, a block of rows at a time: what one pass writes, the next finds in the core's cache.

silu(g) = h + h·tanh h and σ(g) = (1 + tanh h) / 2, with h = g/2; or oneDNN's, for large arrays.
"""

from collections.abc import Iterator

import numpy as np

from numllama.blocks import slices
from numllama.checks import check_shape
from numllama.cpu import onednn
from numllama.ops.swiglu import SwiGLUCache

BLOCK_ELEMENTS, SMALL_ELEMENTS = 64 * 1024, 192 * 1024
FEWEST = 2**16  # elements; NumPy needs less time for fewer


def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, SwiGLUCache]:
    check_shape("up", up, gate.shape)
    out = np.empty_like(up)                                            # (..., F)
    block_forward = forward_by_onednn if is_for_onednn(gate) else forward
    for block in row_blocks(gate, up, out):
        block_forward(*block)
    return out, SwiGLUCache(gate, up)


def swiglu_backward(dout: np.ndarray, cache: SwiGLUCache) -> tuple[np.ndarray, np.ndarray]:
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    dgate, dup = np.empty_like(gate), np.empty_like(up)                # (..., F)
    block_backward = backward_by_onednn if is_for_onednn(gate) else backward
    for block in row_blocks(gate, up, dout, dgate, dup):
        block_backward(*block)
    return dgate, dup


def forward(gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None:
    half = 0.5 * gate
    np.tanh(half, out=out)
    out *= half
    out += half                                                        # silu(gate)
    out *= up


def backward(gate: np.ndarray, up: np.ndarray, dout: np.ndarray, dgate: np.ndarray, dup: np.ndarray) -> None:
    half = np.multiply(0.5, gate, out=dgate)
    sigma = np.tanh(half)
    sigma += 1
    silu = np.multiply(half, sigma, out=dup)
    sigma *= 0.5
    np.subtract(1, sigma, out=dgate)
    dgate *= silu
    dgate += sigma                                                     # silu'(gate)
    dgate *= up
    dgate *= dout
    dup *= dout


def forward_by_onednn(gate: np.ndarray, up: np.ndarray, out: np.ndarray) -> None:
    onednn.silu(gate, out)
    out *= up


def backward_by_onednn(gate: np.ndarray, up: np.ndarray, dout: np.ndarray, dgate: np.ndarray, dup: np.ndarray) -> None:
    np.multiply(dout, up, out=dgate)
    onednn.silu_backward(dgate, gate, dgate)
    onednn.silu(gate, dup)
    dup *= dout


def is_for_onednn(gate: np.ndarray) -> bool:
    return gate.dtype == np.float32 and gate.size > FEWEST and onednn.library() is not None


def row_blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The same blocks of rows of arrays of one shape, as views; small arrays are one block."""
    if arrays[0].size <= SMALL_ELEMENTS or not all(array.flags.c_contiguous for array in arrays):
        yield arrays
        return
    width = arrays[0].shape[-1]
    tables = [array.reshape(-1, width) for array in arrays]
    for rows in slices(0, len(tables[0]), max(1, BLOCK_ELEMENTS // width)):
        yield tuple(table[rows] for table in tables)
