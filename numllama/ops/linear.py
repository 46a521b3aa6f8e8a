"""Linear map:  out = x · weightᵀ + bias

With the leading axes of x flattened to N rows, out[n, o] = Σᵢ x[n, i] · weight[o, i] + bias[o], so
    dx[n, i]      = Σₒ dout[n, o] · weight[o, i]      dx      = dout · weight
    dweight[o, i] = Σₙ dout[n, o] · x[n, i]           dweight = doutᵀ · x
    dbias[o]      = Σₙ dout[n, o]
Every product is one large matrix product (GEMM), whatever the number of axes.

Several maps of one input (queries, keys and values, say) have a pair of their own. Their gradients of x add up:
    outs[m] = x · weights[m]ᵀ + biases[m]             dx      = Σₘ douts[m] · weights[m]
"""

from typing import Any

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.dispatch import accelerated


@accelerated(by_outputs=True)
def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, tuple]:
    """Multiply rows by a weight matrix.

    Parameters
    ----------
    x : array, shape (..., I)
    weight : array, shape (O, I)
        One row for each output, as in PyTorch and in Hugging Face checkpoints.
    bias : array, shape (O,), optional

    Returns
    -------
    out : array, shape (..., O)
    cache : tuple
    """
    check_shape("weight", weight, (None, None))
    O, I = weight.shape  # noqa: E741
    check_shape("x", x, (*x.shape[:-1], I))
    if bias is not None:
        check_shape("bias", bias, (O,))
    out = x.reshape(-1, I) @ weight.T                                  # (N, O)
    if bias is not None:
        out += bias
    return out.reshape(*x.shape[:-1], O), (x, weight, bias)


@accelerated
def linear_backward(dout: Array, cache: tuple, into: Array | None = None, dx: Array | None = None) -> tuple[Array, ...]:
    """Gradients of :func:`linear_forward`: ``dx, dweight``, and ``dbias`` if there was a bias.

    Parameters
    ----------
    dout : array, shape (..., O)
    cache : tuple
    into : array, shape (O, I), optional
        A buffer that the weight's gradient is added to, and that is then returned as ``dweight``.
    dx : array, shape (..., I), optional
        A buffer that x's gradient is added to, where x fed several maps; it is then returned.
    """
    x, weight, bias = cache
    O, I = weight.shape  # noqa: E741
    dx = linear_backward_input.reference(dout, cache, dx)              # (..., I)
    dout = dout.reshape(-1, O)                                         # (N, O)
    dweight = dout.T @ x.reshape(-1, I)                                # (O, I)
    if into is not None:
        into += dweight
        dweight = into
    return (dx, dweight) if bias is None else (dx, dweight, dout.sum(0))


@accelerated
def linear_backward_input(dout: Array, cache: tuple, dx: Array | None = None) -> Array:
    """``dx`` of :func:`linear_backward` alone, for a map that is frozen: its weight and bias are constants."""
    x, weight, _ = cache
    check_shape("dout", dout, (*x.shape[:-1], len(weight)))
    product = dout.reshape(-1, len(weight)) @ weight.astype(dout.dtype, copy=False)    # (N, I); a weight may be kept in two bytes
    if dx is None:
        return product.reshape(x.shape)                                # (..., I)
    dx += product.reshape(x.shape)
    return dx


@accelerated(of_ops=True)
def linears_forward(
    x: Array, weights: tuple[Array, ...], biases: tuple[Array, ...] | None = None
) -> tuple[tuple[Array, ...], tuple]:
    """Several maps of one input. On a GPU they are one product, where the weights lie next to each other in memory.

    Parameters
    ----------
    x : array, shape (..., I)
    weights : tuple of arrays, shapes (Oₘ, I)
    biases : tuple of arrays, shapes (Oₘ,), optional

    Returns
    -------
    outs : tuple of arrays, shapes (..., Oₘ)
    cache : tuple
    """
    biases = (None,) * len(weights) if biases is None else biases
    results = [linear_forward(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    return tuple(out for out, _ in results), tuple(cache for _, cache in results)


@accelerated(of_ops=True)
def linears_backward(
    douts: tuple[Array, ...], cache: tuple, into: tuple[Array, ...] | None = None, dx: Array | None = None
) -> tuple[Any, ...]:
    """Gradients of :func:`linears_forward`: ``dx, dweights``, and ``dbiases`` if there were biases.

    Parameters
    ----------
    douts : tuple of arrays, shapes (..., Oₘ)
    cache : tuple
    into : tuple of arrays, shapes (Oₘ, I), optional
        Buffers that the weights' gradients are added to, and that are then returned as ``dweights``.
    dx : array, shape (..., I), optional
        A buffer that x's gradient is added to; it is then returned.
    """
    into = (None,) * len(douts) if into is None else into
    gradients = []
    for dout, of_map, buffer in zip(douts, cache, into, strict=True):
        dx, *rest = linear_backward(dout, of_map, into=buffer, dx=dx)  # dweight, and dbias
        gradients.append(rest)
    return dx, *zip(*gradients, strict=True)


@accelerated(of_ops=True)
def linears_backward_input(douts: tuple[Array, ...], cache: tuple, dx: Array | None = None) -> Array:
    """``dx`` of :func:`linears_backward` alone, for maps that are frozen."""
    for dout, of_map in zip(douts, cache, strict=True):
        dx = linear_backward_input(dout, of_map, dx=dx)
    return dx
