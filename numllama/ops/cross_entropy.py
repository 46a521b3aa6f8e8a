"""Cross-entropy of softmax(logits):  loss = Σₙ (lse[n] − logits[n, target[n]]) / count,   lse = log Σᵥ exp(logits[v])

    ∂lse/∂logits[v] = exp(logits[v] − lse) = p[v]
    dlogits = dout · (p − onehot(target)) / count
Rows whose target is `ignore_index` count for nothing and get no gradient. `count` may be given from outside: then the
losses and the gradients of the parts of a batch simply add up, however unequal the parts. (A mean of means would not.)
"""

from numllama.backend import Array, xp_of
from numllama.checks import check_ids, check_shape
from numllama.dispatch import accelerated

IGNORE = -100  # as in PyTorch and in every fine-tuning script


@accelerated
def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = IGNORE, count: float | None = None
) -> tuple[Array, tuple]:
    """Mean negative log-likelihood of the targets, in nats.

    Parameters
    ----------
    logits : array, shape (..., V)
    targets : integer array, shape (...)
        Ids in [0, V), or `ignore_index`.
    ignore_index : int
        The target that does not count.
    count : number, optional
        What the sum is divided by; default, how many targets count.

    Returns
    -------
    loss : scalar array; 0 if no target counts
    cache : tuple
        ``(logits, targets, lse, count)``, where ignored targets are -1 and lse has the shape of targets.
    """
    check_shape("targets", targets, logits.shape[:-1])
    check_ids("targets", targets, logits.shape[-1], ignore_index)
    xp = xp_of(logits)
    counted = targets != ignore_index                                  # (...)
    targets = xp.where(counted, targets, xp.int8(-1))                  # signed, where targets are not
    top = logits.max(-1)                                               # (...)
    p = logits - top[..., None]
    lse = top + xp.log(xp.exp(p, out=p).sum(-1))                       # (...)
    if count is None:
        count = xp.maximum(counted.sum(), 1)                           # nothing counted: 0 / 1
    count = xp.asarray(count, dtype=logits.dtype)                      # a count from NumPy must not widen float32
    losses = xp.where(counted, lse - logits[at_targets(targets)].reshape(lse.shape), 0)
    return losses.sum() / count, (logits, targets, lse, count)


@accelerated
def cross_entropy_backward(dout: Array | float, cache: tuple, *, out: Array | None = None) -> Array:
    """Gradient of :func:`cross_entropy_forward` with respect to ``logits``.

    Parameters
    ----------
    dout : float or scalar array
    cache : tuple
    out : array, shape (..., V), optional
        Where the gradient is written to. It may be the logits themselves, the largest array of a training step: the cache is
        then used up.
    """
    logits, targets, lse, count = cache
    if out is not None:
        check_shape("out", out, logits.shape)
    xp = xp_of(logits)
    scale = (targets >= 0) * (xp.asarray(dout, dtype=logits.dtype) / count)    # (...)
    dlogits = xp.subtract(logits, lse[..., None], out=out)
    xp.exp(dlogits, out=dlogits)
    dlogits *= scale[..., None]                                        # p · dout / count
    dlogits[at_targets(targets)] -= scale.reshape(-1)                  # each row once, so nothing is lost
    return dlogits


def at_targets(targets: Array) -> tuple:
    """The index that picks the target's element out of every row of logits; an ignored row picks its last."""
    xp = xp_of(targets)
    return *(axis.reshape(-1) for axis in xp.indices(targets.shape)), targets.reshape(-1)
