"""Matrices in int8 with a scale for each row: a quarter of float32's memory, for inference.

Row o of a matrix is scales[o] · values[o] with scales[o] = max |row o| / 127, so no element moves by more than half a scale.
Where the CPU multiplies int8 itself (VNNI), by oneDNN, the rows of x are rounded in the same way at each product, and

    x · weightᵀ  ≈  (values of x · values of weightᵀ) · scale of x's row · scale of weight's row

is a product of integers, whose sums are exact ("vector-wise quantization", Dettmers et al. 2022). Elsewhere x stays as it is, and
values are converted to float32 a block at a time.
"""

from typing import Any

import numpy as np

from numllama.backend import INT8, quiet
from numllama.blocks import slices
from numllama.cpu import products

SMALLEST = 1e-30  # the largest element of a row is taken to be no smaller, so no scale is zero
STEP = np.array(1 / 127, np.float32)
ROUNDED_ROWS = 256  # of a matrix at a time


def quantize(x: np.ndarray, values: np.ndarray, scales: np.ndarray, scratch: np.ndarray) -> None:
    """Write rows x (..., I) as int8 `values` (..., I) and `scales` (..., 1); a single row's, x (I,), is (), which is faster."""
    np.abs(x, scratch)
    np.maximum.reduce(scratch, -1, out=scales, keepdims=x.ndim > 1, initial=SMALLEST)
    np.multiply(scales, STEP, scales)
    np.divide(x, scales, scratch)
    np.rint(scratch, scratch)
    values[...] = scratch


class Int8Matrix:
    """A matrix (O, I) that gives rows in float32, ``matrix[tokens]``, and products of rows with it, ``x @ matrix.T``.

    Parameters
    ----------
    values : int8 array, shape (O, I)
    scales : array, shape (O, 1)
    """

    ndim, dtype = 2, np.dtype(np.float32)  # of the numbers that it stands for

    def __init__(self, values: np.ndarray, scales: np.ndarray) -> None:
        self.values, self.scales, self.shape = values, scales, values.shape

    @classmethod
    def quantized(cls, matrix: np.ndarray, values: np.ndarray) -> "Int8Matrix":
        """A matrix of any float dtype, rounded and written to `values`."""
        scales = np.empty((len(matrix), 1), np.float32)
        with quiet():  # a row that is not finite becomes NaN
            for rows in slices(0, len(matrix), ROUNDED_ROWS):
                x = matrix[rows].astype(np.float32)
                quantize(x, values[rows], scales[rows], np.empty_like(x))
        return cls(values, scales)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.values[rows] * self.scales[rows]

    def __setitem__(self, rows: Any, value: Any) -> None:
        raise ValueError("weights stored as int8 cannot be changed: load the model without store_as")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with quiet():
            return np.asarray(self[:], dtype)

    @property
    def T(self) -> "_Transposed":
        return _Transposed(self)


class _Transposed:
    """The right side of ``x @ matrix.T``."""

    __array_ufunc__ = None  # NumPy leaves the product to __rmatmul__

    def __init__(self, matrix: Int8Matrix) -> None:
        self.matrix = matrix

    def __rmatmul__(self, x: np.ndarray) -> np.ndarray:
        """x (N, I) times the transpose, (N, O)."""
        values, scales = self.matrix.values, self.matrix.scales
        if x.size and x.dtype == np.float32 and products.multiplies_int8():
            rounded, row_scales = np.empty(x.shape, INT8), np.empty((len(x), 1), np.float32)
            quantize(x, rounded, row_scales, np.empty_like(x))
            out = products.product(rounded, values.T)
            out *= row_scales
        else:
            out = products.product(x, values.T)
        out *= scales[:, 0]
        return out
