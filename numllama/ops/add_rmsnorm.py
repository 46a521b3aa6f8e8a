"""A residual sum and the norm of it:  total = x + dropout(branch),   out = rmsnorm(total)

A branch is added to the residual stream, and a norm of the stream follows. Two results, so two gradients come back: dtotal along
the stream, and dout through the norm.
    dx = dtotal + (gradient of rmsnorm with respect to its input)(dout)        dweight as in rmsnorm
    dbranch = dx · m / (1 − p)                                                 m is dropout's mask; nothing dropped: dbranch = dx
The first branch begins the stream: there is no x. After the last norm nothing else reads the sum: there is no dtotal.
Fused, a GPU reads and writes the stream once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from numllama.backend import Array, add_to
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.dropout import DropoutCache, dropout_backward, dropout_forward
from numllama.ops.rmsnorm import RMSNormCache, rmsnorm_backward, rmsnorm_forward


class AddRMSNormCache(NamedTuple):
    """What backward needs: the caches of the sum's norm and of the branch's dropout."""

    norm: RMSNormCache
    dropout: DropoutCache | None


@accelerated(of_ops=True)
def add_rmsnorm_forward(
    x: Array | None, branch: Array, weight: Array, eps: float, p: float = 0.0, key: Sequence[int] | None = None
) -> tuple[tuple[Array, Array], AddRMSNormCache]:
    """Add a branch to the residual stream, and normalise the sum.

    Parameters
    ----------
    x : array, shape (..., C), or None
        The stream so far; None if the branch begins it.
    branch : array, shape (..., C)
    weight : array, shape (C,)
    eps : float
        As in :func:`numllama.ops.rmsnorm_forward`.
    p, key
        Dropout of the branch, as in :func:`numllama.ops.dropout_forward`; without a key there is none.

    Returns
    -------
    (total, out) : arrays, shape (..., C)
    cache : AddRMSNormCache
    """
    if x is not None:
        check_shape("branch", branch, x.shape)
    dropout_cache = None
    if key is not None:
        branch, dropout_cache = dropout_forward(branch, p, key)
    total = branch if x is None else x + branch                        # (..., C)
    out, norm_cache = rmsnorm_forward(total, weight, eps)
    return (total, out), AddRMSNormCache(norm_cache, dropout_cache)


@accelerated(of_ops=True)
def add_rmsnorm_backward(
    douts: tuple[Array | None, Array], cache: AddRMSNormCache, into: Array | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of :func:`add_rmsnorm_forward`: ``dx`` and ``dbranch`` (one array, if nothing was dropped) and ``dweight``.

    Parameters
    ----------
    douts : (dtotal, dout)
        Arrays, shape (..., C); dtotal is None if nothing else reads the sum.
    cache : AddRMSNormCache
    into : array, shape (C,), optional
        A buffer that the weight's gradient is added to, and that is then returned as ``dweight``.
    """
    dtotal, dout = douts                                               # (..., C)
    dx, dweight = rmsnorm_backward(dout, cache.norm)
    if dtotal is not None:
        check_shape("dtotal", dtotal, dx.shape)
        dx += dtotal
    dbranch = dx if cache.dropout is None else dropout_backward(dx, cache.dropout)
    return dx, dbranch, add_to(into, dweight)
