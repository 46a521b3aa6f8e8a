"""Linear map:  out = x · weightᵀ + bias

With the leading axes of x flattened to N rows, out[n, o] = Σᵢ x[n, i] · weight[o, i] + bias[o], so
    dx[n, i]      = Σₒ dout[n, o] · weight[o, i]      dx      = dout · weight
    dweight[o, i] = Σₙ dout[n, o] · x[n, i]           dweight = doutᵀ · x
    dbias[o]      = Σₙ dout[n, o]
Every product is one large matrix product (GEMM), whatever the number of axes.
"""

from typing import NamedTuple

import numpy as np

from numllama.backend import Array, add_to
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class LinearCache(NamedTuple):
    """What backward needs: the inputs."""

    x: Array                                                           # (..., I)
    weight: Array                                                      # (O, I)
    bias: Array | None = None                                          # (O,)


@accelerated
def linear_forward(
    x: Array, weight: Array, bias: Array | None = None, dtype: np.dtype | None = None
) -> tuple[Array, LinearCache]:
    """Multiply rows by a weight matrix.

    Parameters
    ----------
    x : array, shape (..., I)
    weight : array, shape (O, I)
        One row for each output, as in PyTorch and in Hugging Face checkpoints.
    bias : array, shape (O,), optional
    dtype : dtype, optional
        What the result is rounded to; by default it has x's dtype.

    Returns
    -------
    out : array, shape (..., O)
    cache : LinearCache
    """
    check_shape("weight", weight, (None, None))
    O, I = weight.shape  # noqa: E741
    check_shape("x", x, (*x.shape[:-1], I))
    if bias is not None:
        check_shape("bias", bias, (O,))
    out = x.reshape(-1, I) @ weight.T                                  # (N, O)
    if bias is not None:
        out += bias
    if dtype is not None:
        out = out.astype(dtype, copy=False)
    return out.reshape(*x.shape[:-1], O), LinearCache(x, weight, bias)


@accelerated
def linear_backward(
    dout: Array, cache: LinearCache, into: Array | None = None, dx: Array | None = None
) -> tuple[Array, ...]:
    """Gradients of :func:`linear_forward`: ``dx, dweight``, and ``dbias`` if there was a bias.

    Parameters
    ----------
    dout : array, shape (..., O)
    cache : LinearCache
    into : array, shape (O, I), optional
        A buffer that the weight's gradient is added to, and that is then returned as ``dweight``.
    dx : array, shape (..., I), optional
        A buffer that x's gradient is added to, where x fed several maps; it is then returned.
    """
    x, weight, bias = cache
    O, I = weight.shape  # noqa: E741
    dx = linear_backward_input(dout, cache, dx)                        # (..., I)
    dout = dout.reshape(-1, O)                                         # (N, O)
    dweight = add_to(into, dout.T @ x.reshape(-1, I))                  # (O, I)
    return (dx, dweight) if bias is None else (dx, dweight, dout.sum(0))


@accelerated
def linear_backward_input(dout: Array, cache: LinearCache, dx: Array | None = None) -> Array:
    """``dx`` of :func:`linear_backward` only, for a frozen map, whose weight and bias are constants."""
    x, weight, _ = cache
    check_shape("dout", dout, (*x.shape[:-1], len(weight)))
    product = dout.reshape(-1, len(weight)) @ weight                   # (N, I)
    return add_to(dx, product.reshape(x.shape))                        # (..., I)
