"""Linear maps by the faster library's products, which add into a buffer themselves; in bfloat16, if the weight is."""

import numpy as np

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.cpu.products import add_product, as_operand, product
from numllama.ops.linear import LinearCache


def linear_forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, LinearCache]:
    check_shape("weight", weight, (None, None))
    O, I = weight.shape  # noqa: E741
    check_shape("x", x, (*x.shape[:-1], I))
    if bias is not None:
        check_shape("bias", bias, (O,))
    x = as_operand(x, weight)                                          # converted once, and kept so for backward
    out = product(x.reshape(-1, I), weight.T)                          # (N, O)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], O), LinearCache(x, weight, bias)


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
