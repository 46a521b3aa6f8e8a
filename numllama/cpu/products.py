"""Products of matrices by whichever library is the faster: oneDNN where it is installed, NumPy's BLAS, or blocks of a weight.

A weight may be in bfloat16: as the copy that mixed precision computes with, or to save memory. Then the other operand is rounded
to bfloat16 too, if oneDNN can multiply them; the sums and the result are float32. Otherwise the weight is converted a block at a
time, as it is used. A weight in int8 knows its own product (:mod:`numllama.cpu.int8`).
"""

import numpy as np

from numllama.backend import BFLOAT16, INT8, TWO_BYTES, Array, add_to, real_dtype
from numllama.blocks import slices
from numllama.cpu import onednn
from numllama.cpu.rounding import rounded

BLOCK_ELEMENTS = 256 * 1024  # of a weight, 1 MiB in float32: the product finds it in the second-level cache
SMALL_PRODUCT = 2**17  # multiplications; below, a call of oneDNN takes longer than NumPy's product


def as_operand(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """x as it is multiplied with `weight`: in bfloat16, if both libraries and dtypes call for it, else in float32 or more."""
    if weight.dtype == BFLOAT16 and x.dtype in onednn.DTYPES and multiplies_bfloat16():
        return rounded(x, BFLOAT16)
    return rounded(x, real_dtype(x.dtype))


def multiplies_bfloat16() -> bool:
    """Whether there is a product of bfloat16 that is faster than one of float32."""
    lib = onednn.library()
    return lib is not None and lib.has_bfloat16


def multiplies_int8() -> bool:
    """The same of int8."""
    lib = onednn.library()
    return lib is not None and lib.has_int8


def product(a: np.ndarray, b: Array, dtype: np.dtype | None = None) -> np.ndarray:
    """a @ b for matrices (M, K) and (K, N); of two in bfloat16 or int8 in float32, unless `dtype` is bfloat16."""
    if not isinstance(b, np.ndarray):  # an Int8Matrix
        return a @ b
    if _is_for_onednn(a, b):
        return onednn.matmul(a, b, np.empty((len(a), b.shape[1]), BFLOAT16 if dtype == BFLOAT16 else np.float32))
    return _in_blocks(a, b) if b.dtype in (*TWO_BYTES, INT8) and b.dtype != a.dtype else a @ b


def add_product(into: Array | None, a: np.ndarray, b: np.ndarray) -> Array:
    """into + a @ b, written to `into`, which has as many elements in any shape; a @ b itself if it is None."""
    if isinstance(into, np.ndarray) and into.dtype == np.float32 and into.flags.c_contiguous and _is_for_onednn(a, b):
        onednn.matmul(a, b, into.reshape(len(a), -1), add=True)
        return into
    result = product(a, b)
    return result if into is None else add_to(into, result.reshape(getattr(into, "shape", result.shape)))


def _is_for_onednn(a: np.ndarray, b: np.ndarray) -> bool:
    if onednn.library() is None or a.dtype != b.dtype or a.dtype not in onednn.DTYPES:
        return False
    multiplications = a.size * b.shape[1]
    return multiplications > SMALL_PRODUCT or (multiplications > 0 and a.dtype != np.float32)


def _in_blocks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b where b is in fewer bytes: a block of its columns at a time is converted to a's dtype."""
    if not b.flags.f_contiguous:  # a weight itself, in backward: its columns are far apart
        return a @ b.astype(a.dtype)
    out = np.empty((len(a), b.shape[1]), a.dtype)
    step = min(b.shape[1], max(1, BLOCK_ELEMENTS // len(b)))
    block = np.empty((step, len(b)), a.dtype).T  # one for all: new memory costs more than the conversion
    for columns in slices(0, b.shape[1], step):
        converted = block[:, : columns.stop - columns.start]
        converted[...] = b[:, columns]
        np.matmul(a, converted, out=out[:, columns])
    return out
