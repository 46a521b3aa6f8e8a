"""An op on bfloat16 or float16, which are formats for memory and for kernels.

It computes in float32 and rounds its results, as a kernel does. Statistics in its cache and gradients of vectors stay float32.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES
from numllama.blocks import leaves, map_leaves

WRITABLE = ("into", "dx", "out")  # the buffers that an op may be given


def is_low_precision(args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Whether an op's first array is bfloat16 or float16."""
    first = args[0] if args else None
    if isinstance(first, np.ndarray) and first.ndim and first.dtype.itemsize > 2:  # most calls on a CPU
        return False
    return _first_dtype((*args, *kwargs.values())) in TWO_BYTES


def in_float32(run: Callable, op: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """Call `run`, which is `op` or stands for it, on float32 copies, and round its results."""
    given = dict(zip(_names(op), args, strict=False)) | dict(kwargs)
    dtype = _first_dtype(tuple(given.values()))
    assert dtype is not None  # is_low_precision has looked
    known: dict[int, tuple] = {}  # id of an array of the call -> the caller's array for it, and itself, to keep the id alive

    def widen(array):
        wide = array.astype(np.float32) if array.dtype in TWO_BYTES else array
        known[id(wide)] = array, wide
        return wide

    def narrow(array):
        if id(array) not in known:
            rounds = is_forward or array.ndim > 1 or array.shape == first_shape
            known[id(array)] = _rounded(array, dtype) if rounds and array.ndim and array.dtype == np.float32 else array, array
        return known[id(array)][0]

    def as_given(array):
        return known.get(id(array), (array,))[0]

    is_forward, first_shape = op.__name__.endswith("_forward"), getattr(args[0] if args else None, "shape", None)
    wide = {name: _each_array(widen, value) for name, value in given.items()}
    result = run(**wide)
    for name in WRITABLE:
        if given.get(name) is not wide.get(name):
            given[name][...] = _rounded(wide[name], dtype)
    if not is_forward:
        return _each_array(narrow, result)
    out, kept = result
    return _each_array(narrow, out), _each_array(as_given, kept)


@cache
def _names(op: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(op).parameters)


def _rounded(array: Any, dtype: np.dtype) -> Any:
    with np.errstate(over="ignore"):  # infinity, where float16 overflows
        return array.astype(dtype)


def _each_array(function: Callable, value: Any) -> Any:
    """The same nested tuples, with `function` of each array in them."""
    return map_leaves(lambda leaf: function(leaf) if hasattr(leaf, "dtype") else leaf, value)


def _first_dtype(values: tuple) -> np.dtype | None:
    """The dtype of the first array with axes, in nested tuples."""
    return next((value.dtype for value in leaves(values) if getattr(value, "ndim", 0)), None)
