"""Cross-entropy of softmax(logits):  loss = Σₙ (lse[n] − logits[n, target[n]]) / count,   lse = log Σᵥ exp(logits[v])

    ∂lse/∂logits[v] = exp(logits[v] − lse) = p[v]
    dlogits = dout · (p − onehot(target)) / count
Rows whose target is `ignore_index` count for nothing and get no gradient. `count` may be given from outside: then the
losses and the gradients of the parts of a batch simply add up, however unequal the parts. (A mean of means would not.)
"""

from typing import NamedTuple

from numllama.backend import Array, write_to, xp_of
from numllama.checks import check_ids, check_shape
from numllama.dispatch import accelerated

IGNORE = -100  # as in PyTorch and in every fine-tuning script


class CrossEntropyCache(NamedTuple):
    """What backward needs."""

    logits: Array                                                      # (..., V)
    targets: Array                                                     # (...), -1 where ignored
    lse: Array                                                         # (...): log-sum-exp of each row
    count: Array                                                       # ()


@accelerated
def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = IGNORE, count: float | None = None
) -> tuple[Array, CrossEntropyCache]:
    """Mean negative log-likelihood of the targets, in nats.

    Parameters
    ----------
    logits : array, shape (..., V)
    targets : integer array, shape (...)
        Ids in [0, V), or `ignore_index`.
    ignore_index : int
        The target that does not count.
    count : number, optional
        Divisor of the sum; default, the number of targets that count.

    Returns
    -------
    loss : scalar array; 0 if no target counts
    cache : CrossEntropyCache
    """
    check_shape("targets", targets, logits.shape[:-1])
    check_ids("targets", targets, logits.shape[-1], ignore_index)
    xp = xp_of(logits)
    counted = targets != ignore_index                                  # (...)
    targets = xp.where(counted, targets, xp.int8(-1))                  # signed, as -1 is
    top = logits.max(-1, keepdims=True)                                # (..., 1)
    lse = (top + xp.log(xp.exp(logits - top).sum(-1, keepdims=True)))[..., 0]    # (...)
    if count is None:
        count = xp.maximum(counted.sum(), 1)                           # or 0 / 0
    count = xp.asarray(count, dtype=logits.dtype)                      # or the loss widens
    losses = lse - xp.take_along_axis(logits, targets[..., None], -1)[..., 0]    # (...)
    loss = xp.where(counted, losses, 0).sum() / count                  # ()
    return loss, CrossEntropyCache(logits, targets, lse, count)


@accelerated
def cross_entropy_backward(dout: Array | float, cache: CrossEntropyCache, *, out: Array | None = None) -> Array:
    """Gradient of :func:`cross_entropy_forward` with respect to ``logits``.

    Parameters
    ----------
    dout : float or scalar array
    cache : CrossEntropyCache
    out : array, shape (..., V), optional
        Receives the gradient. It may be the logits themselves, the largest array of a training step; the cache is then used up.
    """
    logits, targets, lse, count = cache
    if out is not None:
        check_shape("out", out, logits.shape)
    xp = xp_of(logits)
    p = xp.exp(logits - lse[..., None])                                # (..., V)
    onehot = targets[..., None] == xp.arange(logits.shape[-1])         # (..., V)
    scale = (targets >= 0) * (xp.asarray(dout, dtype=logits.dtype) / count)    # (...)
    dlogits = (p - onehot) * scale[..., None]                          # (..., V)
    return write_to(out, dlogits)
