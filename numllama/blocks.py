"""Run an op block by block, so that each block stays in a core's cache; and cut flat buffers into pieces.

An op marked ``by_rows`` treats each row (the last axis) independently. On a CPU its large arrays are cut into blocks of rows that
stay in the core's cache from one elementwise step to the next. Shapes decide what has rows: an array that agrees with the first
argument in all axes but the last is cut; anything else is shared. Results with one row per input row are joined; the others are
gradients of shared weights, and are added.
"""

from collections.abc import Callable, Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

# Arrays of up to 32 MiB of floats are not cut: blocks would save passes through main memory, but arrays of many sizes fragment
# the memory that is kept for reuse, and with more calls threads wait for each other more often.
WHOLE_ELEMENTS = 2**23
BLOCK_ELEMENTS = 192 * 1024
# An optimizer's pass over flat buffers: smaller pieces would make its threads spend their time exchanging the GIL.
PIECE_ELEMENTS = 192 * 1024
TILE = 64  # queries or keys per tile of the plain flash attention


def has_many_rows(args: tuple) -> bool:
    """Whether all arrays are large, have the same rows, or are shared vectors; the op itself checks anything else."""
    first = args[0] if args else None
    if not isinstance(first, np.ndarray) or first.ndim < 2 or first.size <= WHOLE_ELEMENTS:
        return False
    return all(a.ndim == 1 or a.shape[:-1] == first.shape[:-1] for a in _arrays(args))


def in_row_blocks(op: Callable, args: tuple) -> Any:
    """Call `op` on one block of rows after another, and join the results."""
    lead, width = args[0].shape[:-1], args[0].shape[-1]
    n_rows, step = prod(lead), max(1, BLOCK_ELEMENTS // width)
    tables = {id(a): a.reshape(n_rows, -1) for a in _arrays(args) if a.ndim > 1}  # (rows, width)
    joined = None
    for rows in slices(0, n_rows, step):
        whole = {id(a): a for a in _arrays(args)}  # id of an argument of the op -> the array it was cut from

        def cut(value, rows=rows, whole=whole):
            if id(value) not in tables:
                return value
            piece = tables[id(value)][rows]
            whole[id(piece)] = value
            return piece

        joined = _join(joined, op(*map_leaves(cut, args)), rows, lead, whole)
    return joined


def _join(value: Any, result: Any, rows: slice, lead: tuple, whole: dict) -> Any:
    """Write one block's result into the joined one."""
    if isinstance(result, tuple):
        values = value or (None,) * len(result)
        return same_tuple(result, (_join(v, r, rows, lead, whole) for v, r in zip(values, result, strict=True)))
    if not isinstance(result, np.ndarray):
        return result
    if id(result) in whole:  # an input, returned in a cache
        return whole[id(result)]
    if result.ndim == 2:  # one row per input row
        value = np.empty((*lead, result.shape[-1]), result.dtype) if value is None else value
        value.reshape(prod(lead), -1)[rows] = result
        return value
    return result if value is None else value + result  # the gradient of a shared vector


def same_tuple(like: Any, values: Iterable) -> tuple:
    """A tuple of the same class: caches are named tuples."""
    return like._make(values) if hasattr(like, "_make") else tuple(values)


def map_leaves(function: Callable, value: Any) -> Any:
    """The same nested tuples, with `function` of each value in them."""
    return same_tuple(value, (map_leaves(function, part) for part in value)) if isinstance(value, tuple) else function(value)


def leaves(value: Any) -> Iterator[Any]:
    """The values in nested tuples."""
    if isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def _arrays(args: tuple) -> list[np.ndarray]:
    return [value for value in leaves(args) if isinstance(value, np.ndarray)]


def piece_size(flat: Any) -> int:
    """Elements of a flat buffer per elementwise pass: as many as fit a core's cache, or all of them on a GPU."""
    return PIECE_ELEMENTS if isinstance(flat, np.ndarray) else max(1, flat.size)


def slices(start: int, stop: int, step: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Cut start..stop into slices of at most `step`, one for each elementwise pass over a flat buffer."""
    for begin in range(start, stop, step):
        yield slice(begin, min(begin + step, stop))


def tiles(stop: int) -> Iterator[slice]:
    """Cut 0..stop into tiles."""
    return slices(0, stop, TILE)
