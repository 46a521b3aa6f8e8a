"""Launchers of dropout's kernel."""

from collections.abc import Sequence

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.hashing import fold_key
from numllama.ops.dropout import DropoutCache


def dropout_forward(x: Array, p: float, key: Sequence[int]) -> tuple[Array, DropoutCache]:
    out = _masked(x, p, key)
    return out if out is NotImplemented else (out, DropoutCache(p, key, x.shape))


def dropout_backward(dout: Array, cache: DropoutCache) -> Array:
    p, key, shape = cache
    return NotImplemented if dout.shape != shape else _masked(dout, p, key)


def _masked(x: Array, p: float, key: Sequence[int]) -> Array:
    if not supports_mask(p) or not launch.is_plain(x):
        return NotImplemented
    out = launch.empty(x, x.shape, x.dtype)
    launch.elementwise("dropout", "dropout", [out, x], mask_values(x, p, key))
    return out


def supports_mask(p: float) -> bool:
    """Whether the kernel supports this probability."""
    return 0 <= p < 1


def mask_values(x: Array, p: float, key: Sequence[int]) -> list:
    """A kernel's arguments for a mask: the key in memory or as two numbers, the threshold, and the scale."""
    on_device = launch.backend.owns(key)
    low, high = (0, 0) if on_device else fold_key(key)
    scale = real_dtype(x.dtype).type(1 / (1 - p))
    return [key if on_device else None, np.uint32(low), np.uint32(high), np.uint32(int(p * 2**32)), scale]
