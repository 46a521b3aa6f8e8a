"""Products of a weight with one or a few columns, on the same arrays for every token, as fast as NumPy's BLAS allows."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, INT8, Array
from numllama.cpu import onednn, products
from numllama.cpu.int8 import Int8Matrix, quantize
from numllama.system.blas import blas

# Multiplications from which OpenBLAS uses several threads for a product with one column: complex products much earlier than real.
REAL_PRODUCTS, COMPLEX_PRODUCTS = 460_800, 50_000
# OpenBLAS multiplies matrices without copying them up to a million multiplications, and rows by the dozen.
SMALL_PRODUCT, FEWEST_ROWS, MOST_ROWS = 10**6, 16, 200


def gemv(weight: Array, x: Array, out: Array) -> Callable[[], object]:
    """A function that computes out = weight @ x: weight (O, I), x (I, B), out (O, B)."""
    B = x.shape[1]
    if B > 1:
        weight = blocks(weight, B)
        return partial(np.matmul, weight, x, out.reshape(*weight.shape[:2], B))
    if COMPLEX_PRODUCTS <= weight.size < REAL_PRODUCTS and weight.shape[1] % 2 == 0 and openblas_threads() > 1:
        return complex_gemv(weight, x, out)
    return partial(np.matmul, weight, x[:, 0], out[:, 0])


def bfloat16_gemv(weights: list[Array], x: Array, out: Array) -> Callable[[], object]:
    """The same for one weight in bfloat16, by oneDNN, which reads half the bytes; x is rounded. out.T is in one piece."""
    (weight,) = weights
    rounded = np.empty(x.shape[::-1], BFLOAT16)                            # (B, I)
    product = onednn.packed_product(rounded, weight, out.T)

    def run() -> None:
        rounded[...] = x.T
        product()

    return run


def int8_gemv(weights: list[Int8Matrix], x: Array, out: Array) -> Callable[[], object]:
    """The same for one weight in int8; each column of x is rounded to int8 too."""
    (weight,), (I, B) = weights, x.shape  # noqa: E741
    shape = () if B == 1 else (B,)                                         # NumPy is faster without an axis of length 1
    rows, result = x.T.reshape(*shape, I), out.T.reshape(*shape, -1)
    values, scratch, scales = np.empty_like(rows, INT8), np.empty_like(rows), np.empty(shape and (B, 1), np.float32)
    # oneDNN packs a weight ten times faster for unsigned x:  Σ values·w = Σ (values + 128)·w − 128 Σ w
    unsigned, shift = np.empty((B, I), np.uint8), np.array(128, np.uint8)
    row_scales = weight.scales.ravel()
    biases = -128 * row_scales * products.product(np.ones((1, I), INT8), weight.values.T)      # (1, O)
    product = onednn.packed_product(unsigned, weight.values, out.T, row_scales, biases)
    signed, unsigned = values.view(np.uint8), unsigned.reshape(rows.shape)

    def run() -> None:
        quantize(rows, values, scales, scratch)
        np.bitwise_xor(signed, shift, unsigned)                            # values + 128
        product()
        np.multiply(result, scales, result)

    return run


def gemvs(weights: list[Array], x: Array, out: Array) -> Callable[[], object]:
    """The same for several weights, whose outputs follow one another in `out`."""
    bounds = [0, *accumulate(map(len, weights))]
    each = [gemv(weight, x, out[slice(*span)]) for weight, span in zip(weights, pairwise(bounds), strict=True)]
    if len(each) == 1:
        return each[0]

    def run() -> None:
        for one in each:
            one()

    return run


def blocks(weight: Array, B: int) -> Array:
    """A view of a weight (O, I) as blocks of rows (n, O/n, I), small enough for BLAS to multiply by B columns without a copy."""
    O, I = weight.shape  # noqa: E741
    most = min(MOST_ROWS, SMALL_PRODUCT // (I * B))
    rows = max((rows for rows in range(FEWEST_ROWS, most + 1) if O % rows == 0), default=O)
    return weight.reshape(-1, rows, I)


def complex_gemv(weight: Array, x: Array, out: Array) -> Callable[[], None]:
    """The same for one column, in complex numbers: two neighbours are one number, and Re (a + ib)(c − id) = ac + bd.

    It reads the same memory for the same sum, but BLAS uses several threads; for a real product of this size it uses one.
    """
    dtype = np.result_type(weight, np.complex64)
    pairs, x = weight.view(dtype), x[:, 0].view(dtype)                     # (O, I/2), (I/2,)
    conjugate, sums = np.empty_like(x), np.empty(len(weight), dtype)
    real = np.real(sums)[:, None]

    def run() -> None:
        np.conjugate(x, conjugate)
        np.matmul(pairs, conjugate, sums)
        np.copyto(out, real)

    return run


class Packed(NamedTuple):
    """A product with a weight in the order of oneDNN's kernel, and whether this CPU is fast at it."""

    product: Callable[[list, Array, Array], Callable[[], object]]
    is_fast: Callable[[], bool]


PACKED = {
    BFLOAT16: Packed(bfloat16_gemv, products.multiplies_bfloat16),
    INT8: Packed(int8_gemv, products.multiplies_int8),
}


def openblas_threads() -> int:
    """The number of threads of NumPy's products if NumPy uses OpenBLAS, else 0."""
    return max((library["num_threads"] for library in blas().info() if library["internal_api"] == "openblas"), default=0)
