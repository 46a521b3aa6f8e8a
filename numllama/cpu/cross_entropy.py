"""Cross-entropy in place: logits are the largest array of a step, so no second one of their size is made."""

import numpy as np

from numllama.checks import check_ids, check_shape
from numllama.ops.cross_entropy import IGNORE, CrossEntropyCache


def cross_entropy_forward(
    logits: np.ndarray, targets: np.ndarray, ignore_index: int = IGNORE, count: float | None = None
) -> tuple[np.ndarray, CrossEntropyCache]:
    check_shape("targets", targets, logits.shape[:-1])
    check_ids("targets", targets, logits.shape[-1], ignore_index)
    counted = targets != ignore_index                                  # (...)
    targets = np.where(counted, targets, np.int8(-1))
    top = logits.max(-1)                                               # (...)
    p = logits - top[..., None]
    lse = top + np.log(np.exp(p, out=p).sum(-1))                       # (...)
    divisor = np.asarray(np.maximum(counted.sum(), 1) if count is None else count, dtype=logits.dtype)
    losses = np.where(counted, lse - logits[at_targets(targets)].reshape(lse.shape), 0)
    return losses.sum() / divisor, CrossEntropyCache(logits, targets, lse, divisor)


def cross_entropy_backward(
    dout: np.ndarray | float, cache: CrossEntropyCache, *, out: np.ndarray | None = None
) -> np.ndarray:
    logits, targets, lse, count = cache
    if out is not None:
        check_shape("out", out, logits.shape)
    scale = (targets >= 0) * (np.asarray(dout, dtype=logits.dtype) / count)    # (...)
    dlogits = np.subtract(logits, lse[..., None], out=out)
    np.exp(dlogits, out=dlogits)
    dlogits *= scale[..., None]                                        # p · dout / count
    dlogits[at_targets(targets)] -= scale.reshape(-1)                  # each row once, so nothing is lost
    return dlogits


def at_targets(targets: np.ndarray) -> tuple:
    """The index of the target's element in every row of logits; an ignored row gets its last."""
    return *(axis.reshape(-1) for axis in np.indices(targets.shape)), targets.reshape(-1)
