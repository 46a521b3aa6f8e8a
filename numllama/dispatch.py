"""@accelerated: the one place where an op finds a faster way to run.

An op states its math once, for whole arrays. How it is run is decided here:

- **Row by row.** An op marked ``by_rows`` treats each row (the last axis) alone. On a CPU its large arrays are cut into
  blocks of rows that stay in the core's cache from one elementwise step to the next. Which values are rows follows from
  shapes alone: an array that agrees with the first argument in all axes but the last is cut; anything else is shared.
  Results that have a row for each row are joined; results that have not are gradients of shared weights, and add up.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from math import prod
from typing import Any

import numpy as np

# 48 K floats are 192 KiB: an op's three or four arrays of that size fit a core's second-level cache.
BLOCK_ELEMENTS = 48 * 1024


def accelerated(op: Callable | None = None, *, by_rows: bool = False) -> Callable:
    """Let an op be run in a faster way that gives the same result.

    Parameters
    ----------
    op : callable
        A forward or backward function of :mod:`numllama.ops`; kept as ``op.reference``.
    by_rows : bool
        The op treats each row of its arrays alone, and may be run on blocks of rows.
    """
    if op is None:
        return lambda op: accelerated(op, by_rows=by_rows)

    @wraps(op)
    def run(*args, **kwargs):
        if by_rows and isinstance(args[0], np.ndarray) and args[0].ndim > 1 and args[0].size >= 2 * BLOCK_ELEMENTS:
            return _in_row_blocks(op, args, kwargs)
        return op(*args, **kwargs)

    run.reference = op
    return run


def _in_row_blocks(op: Callable, args: tuple, kwargs: dict) -> Any:
    """Call `op` on one block of rows after another, and put the results together."""
    lead, width = args[0].shape[:-1], args[0].shape[-1]
    n_rows, step = prod(lead), max(1, BLOCK_ELEMENTS // width)
    whole = {}  # id of a piece -> the array that it was cut from
    joined = None

    def cut(value, rows):
        if isinstance(value, tuple):
            return tuple(cut(part, rows) for part in value)
        if not isinstance(value, np.ndarray) or value.shape[:-1] != lead:
            return value
        piece = value.reshape(n_rows, -1)[rows]
        whole[id(piece)] = value
        return piece

    def join(value, result, rows):
        if isinstance(result, tuple):
            return tuple(join(v, r, rows) for v, r in zip(value or (None,) * len(result), result, strict=True))
        if not isinstance(result, np.ndarray) or any(result is shared for shared in shared_arrays):
            return result
        if id(result) in whole:  # an input that is handed on in a cache
            return whole[id(result)]
        if result.ndim == 2 and len(result) == rows.stop - rows.start:
            value = np.empty((*lead, result.shape[-1]), result.dtype) if value is None else value
            value.reshape(n_rows, -1)[rows] = result
            return value
        return result if value is None else value + result

    shared_arrays = [v for v in _flat((args, tuple(kwargs.values()))) if isinstance(v, np.ndarray) and v.shape[:-1] != lead]
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        whole.clear()
        pieces = cut(args, rows)
        joined = join(joined, op(*pieces, **kwargs), rows)
    return joined


def _flat(value: Any) -> list:
    """The leaves of nested tuples, in order."""
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, tuple) else [value]


def slices(start: int, stop: int, step: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Cut start..stop into slices of at most `step`: what one elementwise pass over a flat buffer does at a time."""
    for begin in range(start, stop, step):
        yield slice(begin, min(begin + step, stop))
