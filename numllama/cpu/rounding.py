"""Rounding by oneDNN, at the speed of memory; NumPy rounds to bfloat16 one number at a time."""

from collections.abc import Callable

import numpy as np

from numllama.cpu import onednn


def takes_two_bytes(twin: Callable) -> Callable:
    """Mark a twin that reads and writes bfloat16 and float16 itself, and needs no float32 copies of its arguments."""
    vars(twin)["takes_two_bytes"] = True
    return twin


def rounded(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return x if x.dtype == dtype else write_rounded(x, np.empty(x.shape, dtype))


def write_rounded(x: np.ndarray, out: np.ndarray) -> np.ndarray:
    """x, rounded and written to `out`."""
    if onednn.can_convert(x, out.dtype):
        return onednn.convert(x, out)
    out[...] = x
    return out
