"""Products of a weight with a few columns: the same arrays, again and again, as fast as NumPy's BLAS can be asked for them."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate, pairwise

import numpy as np

from numllama.backend import Array
from numllama.system.blas import blas

# OpenBLAS's threads share a product with one column from so many real multiplications on; a complex one is worth it much earlier.
REAL_PRODUCTS, COMPLEX_PRODUCTS = 460_800, 50_000
# OpenBLAS multiplies matrices as they are up to a million multiplications, and rows by the dozen.
SMALL_PRODUCT, FEWEST_ROWS, MOST_ROWS = 10**6, 16, 200


def product(weight: Array, x: Array, out: Array) -> Callable[[], None]:
    """What computes out = weight @ x, whenever it is called: weight (O, I), x (I, B), out (O, B)."""
    B = x.shape[1]
    if B > 1:
        weight = blocks(weight, B)
        return partial(np.matmul, weight, x, out.reshape(*weight.shape[:2], B))
    if COMPLEX_PRODUCTS <= weight.size < REAL_PRODUCTS and weight.shape[1] % 2 == 0 and openblas_threads() > 1:
        return complex_product(weight, x, out)
    return partial(np.matmul, weight, x[:, 0], out[:, 0])


def products(weights: list[Array], x: Array, out: Array) -> Callable[[], None]:
    """The same for several weights, whose outputs lie one behind the other."""
    bounds = [0, *accumulate(map(len, weights))]
    each = [product(weight, x, out[slice(*span)]) for weight, span in zip(weights, pairwise(bounds), strict=True)]
    if len(each) == 1:
        return each[0]

    def run() -> None:
        for one in each:
            one()

    return run


def blocks(weight: Array, B: int) -> Array:
    """A weight (O, I) as blocks of rows (n, O/n, I), a view: small enough for products with B columns as they lie."""
    O, I = weight.shape  # noqa: E741
    most = min(MOST_ROWS, SMALL_PRODUCT // (I * B))
    rows = max((rows for rows in range(FEWEST_ROWS, most + 1) if O % rows == 0), default=O)
    return weight.reshape(-1, rows, I)


def complex_product(weight: Array, x: Array, out: Array) -> Callable[[], None]:
    """The same for one column, by complex numbers: two neighbours are one, and ac + bd is the real part of (a + ib)(c − id).

    It is the same sum over the same memory. But BLAS shares it among its threads, where a real product of this size has only one.
    """
    dtype = np.result_type(weight, np.complex64)
    pairs, x = weight.view(dtype), x[:, 0].view(dtype)                     # (O, I/2), (I/2,)
    conjugate, sums = np.empty_like(x), np.empty(len(weight), dtype)
    real = sums.real[:, None]

    def run() -> None:
        np.conjugate(x, conjugate)
        np.matmul(pairs, conjugate, sums)
        np.copyto(out, real)

    return run


def openblas_threads() -> int:
    """How many threads NumPy's products have, if they are OpenBLAS's."""
    return max((library["num_threads"] for library in blas().info() if library["internal_api"] == "openblas"), default=0)
