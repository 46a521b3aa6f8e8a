"""A residual sum and the norm of it:  total = x + dropout(branch),   out = rmsnorm(total)

A branch is added to the residual stream, and the next thing that happens to the stream is a norm. Two results, so two gradients
come back: dtotal along the stream, and dout through the norm.
    dx = dtotal + (gradient of rmsnorm with respect to its input)(dout)        dweight as in rmsnorm
    dbranch = dx · m / (1 − p)                                                 m is dropout's mask; nothing dropped: dbranch = dx
The first branch begins the stream: then there is no x. Behind the last norm nothing else reads the sum: then there is no dtotal.
As one op they pass the stream through memory once, on a GPU; here it is the lines that it says.
"""

from collections.abc import Sequence

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.dropout import dropout_backward, dropout_forward
from numllama.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward


@accelerated(of_ops=True)
def add_rmsnorm_forward(
    x: Array | None, branch: Array, weight: Array, eps: float, p: float = 0.0, key: Sequence[int] | None = None
) -> tuple[tuple[Array, Array], tuple]:
    """Add a branch to the residual stream, and normalise the sum.

    Parameters
    ----------
    x : array, shape (..., C), or None
        The stream so far; None where the branch begins it.
    branch : array, shape (..., C)
    weight : array, shape (C,)
    eps : float
        As in :func:`numllama.ops.rmsnorm_forward`.
    p, key
        What of the branch is dropped, as in :func:`numllama.ops.dropout_forward`; without a key nothing is.

    Returns
    -------
    (total, out) : arrays, shape (..., C)
    cache : tuple
        What :func:`numllama.ops.rmsnorm_forward` keeps of the sum, and dropout's cache or None.
    """
    if x is not None:
        check_shape("branch", branch, x.shape)
    dropout_cache = None
    if key is not None:
        branch, dropout_cache = dropout_forward(branch, p, key)
    total = branch if x is None else x + branch                        # (..., C)
    out, norm_cache = rmsnorm_forward(total, weight, eps)
    return (total, out), (norm_cache, dropout_cache)


@accelerated(of_ops=True)
def add_rmsnorm_backward(
    douts: tuple[Array | None, Array], cache: tuple, into: Array | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`add_rmsnorm_forward`: ``dx`` and ``dbranch`` (one array, if nothing was dropped) and ``dweight``.

    Parameters
    ----------
    douts : (dtotal, dout)
        Arrays, shape (..., C); dtotal is None where nothing else reads the sum.
    cache : tuple
    into : array, shape (C,), optional
        A buffer that the weight's gradient is added to, and that is then returned as ``dweight``.
    """
    dtotal, dout = douts                                               # (..., C)
    norm_cache, dropout_cache = cache
    dx, dweight = rmsnorm_backward(dout, norm_cache)
    if dtotal is not None:
        check_shape("dtotal", dtotal, dx.shape)
        dx += dtotal
    dbranch = dx if dropout_cache is None else dropout_backward(dx, dropout_cache)
    if into is not None:
        into += dweight
        dweight = into
    return dx, dbranch, dweight
