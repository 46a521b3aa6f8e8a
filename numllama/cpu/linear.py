"""Linear maps by the faster library's products, which add into a buffer themselves; in bfloat16, if the weight is."""

import numpy as np

from numllama.backend import TWO_BYTES, Array
from numllama.checks import check_shape
from numllama.cpu.products import add_product, as_operand, product
from numllama.cpu.rounding import rounded, takes_two_bytes
from numllama.ops.linear import LinearCache


@takes_two_bytes
def linear_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, dtype: np.dtype | None = None
) -> tuple[np.ndarray, LinearCache]:
    check_shape("weight", weight, (None, None))
    O, I = weight.shape  # noqa: E741
    check_shape("x", x, (*x.shape[:-1], I))
    if bias is not None:
        check_shape("bias", bias, (O,))
    in_two_bytes, operand = x.dtype in TWO_BYTES, as_operand(x, weight)
    if dtype is None and in_two_bytes:
        dtype = x.dtype
    out = product(operand.reshape(-1, I), weight.T, dtype if bias is None else None)     # (N, O)
    if bias is not None:
        out += bias
    if dtype is not None:
        out = rounded(out, dtype)
    kept = x if in_two_bytes else operand                              # converted once, and kept so for backward
    return out.reshape(*x.shape[:-1], O), LinearCache(kept, weight, bias)


def linear_backward(
    dout: np.ndarray, cache: LinearCache, into: Array | None = None, dx: Array | None = None
) -> tuple[Array, ...]:
    x, weight, bias = cache
    rows = operand_rows(dout, x, weight)                               # (N, O)
    dx = input_gradient(rows, x, weight, dx)                           # (..., I)
    dweight = add_product(into, rows.T, x.reshape(-1, x.shape[-1]))    # (O, I)
    return (dx, dweight) if bias is None else (dx, dweight, dout.reshape(rows.shape).sum(0))


def linear_backward_input(dout: np.ndarray, cache: LinearCache, dx: Array | None = None) -> Array:
    x, weight, _ = cache
    return input_gradient(operand_rows(dout, x, weight), x, weight, dx)


def operand_rows(dout: np.ndarray, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """dout as an operand, (N, O)."""
    check_shape("dout", dout, (*x.shape[:-1], len(weight)))
    return as_operand(dout, weight).reshape(-1, len(weight))


def input_gradient(rows: np.ndarray, x: np.ndarray, weight: np.ndarray, dx: Array | None) -> Array:
    """dx (..., I), added to if it is given."""
    if dx is None:
        return product(rows, weight).reshape(x.shape)
    return add_product(dx, rows, weight)
