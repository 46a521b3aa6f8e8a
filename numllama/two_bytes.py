"""An op on numbers in two bytes (bfloat16, float16), which are for memory and for kernels.

It computes in float32 and rounds what it returns, as a kernel does; statistics in its cache and gradients of vectors stay
float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES


def are_in_two_bytes(args: tuple, kwargs: dict) -> bool:
    """Whether an op is given numbers in two bytes: its first array says it."""
    first = args[0] if args else None
    if isinstance(first, np.ndarray) and first.ndim and first.dtype.itemsize > 2:  # most calls on a CPU
        return False
    return _first_dtype((*args, *kwargs.values())) in TWO_BYTES


def _first_dtype(values: tuple) -> np.dtype | None:
    """Of the first array with axes, in nested tuples."""
    for value in values:
        dtype = _first_dtype(value) if isinstance(value, tuple) else value.dtype if getattr(value, "ndim", 0) else None
        if dtype is not None:
            return dtype
    return None


def in_float32(run: Callable, is_forward: bool, args: tuple, kwargs: dict) -> Any:
    """Call an op on float32 copies of what is in two bytes, and round what belongs there."""
    dtype = _first_dtype((*args, *kwargs.values()))
    known = {}  # id of what the op is given, or makes -> what that is for the caller, and the former itself, to keep its id

    def widen(value):
        if isinstance(value, tuple):
            return tuple(map(widen, value))
        wide = value.astype(np.float32) if getattr(value, "dtype", None) in TWO_BYTES else value
        known[id(wide)] = value, wide
        return wide

    def rounded(value):
        with np.errstate(over="ignore"):  # what float16 cannot hold is infinite
            return value.astype(dtype)

    def belongs(value):
        if getattr(value, "dtype", None) != np.float32 or value.ndim == 0:
            return False
        return is_forward or value.ndim > 1 or value.shape == getattr(args[0], "shape", None)

    def narrow(value):
        if isinstance(value, tuple):
            return tuple(map(narrow, value))
        if id(value) not in known:
            known[id(value)] = rounded(value) if belongs(value) else value, value
        return known[id(value)][0]

    def as_kept(value):
        if isinstance(value, tuple):
            return tuple(map(as_kept, value))
        return known[id(value)][0] if id(value) in known else value

    wide_args, wide_kwargs = widen(args), {name: widen(value) for name, value in kwargs.items()}
    result = run(*wide_args, **wide_kwargs)
    buffers = [(kwargs["out"], wide_kwargs["out"])] if "out" in kwargs else []
    if not is_forward:  # what comes after dout and cache is written to
        buffers = zip((*args[2:], *kwargs.values()), (*wide_args[2:], *wide_kwargs.values()), strict=True)
    for buffer, wide in buffers:
        if wide is not buffer:
            buffer[...] = rounded(wide)
    if not is_forward:
        return narrow(result)
    out, kept = result
    return narrow(out), as_kept(kept)
