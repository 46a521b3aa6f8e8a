"""A residual sum and the norm of it:  total = x + branch,   out = rmsnorm(total)

A branch is added to the residual stream, and the next thing that happens to the stream is a norm. Two results, so two gradients
come back: dtotal along the stream, and dout through the norm.
    dx = dbranch = dtotal + (gradient of rmsnorm with respect to its input)(dout)        dweight as in rmsnorm
As one op they pass the stream through memory once, on a GPU; here it is the two lines that it says.
"""

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward


@accelerated
def add_rmsnorm_forward(x: Array, branch: Array, weight: Array, eps: float) -> tuple[tuple[Array, Array], tuple]:
    """Add a branch to the residual stream, and normalise the sum.

    Parameters
    ----------
    x, branch : array, shape (..., C)
    weight : array, shape (C,)
    eps : float
        As in :func:`numllama.ops.rmsnorm_forward`.

    Returns
    -------
    (total, out) : arrays, shape (..., C)
    cache : tuple
        ``(total, weight, rstd)``: what :func:`numllama.ops.rmsnorm_forward` keeps.
    """
    check_shape("branch", branch, x.shape)
    total = x + branch                                                 # (..., C)
    out, cache = rmsnorm_forward(total, weight, eps)
    return (total, out), cache


@accelerated
def add_rmsnorm_backward(douts: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array]:
    """Gradients of :func:`add_rmsnorm_forward`: ``dx`` and ``dbranch``, which are one array, and ``dweight`` (C,)."""
    dtotal, dout = douts                                               # (..., C)
    check_shape("dtotal", dtotal, cache[0].shape)
    dx, dweight = rmsnorm_backward(dout, cache)
    dx += dtotal
    return dx, dx, dweight
