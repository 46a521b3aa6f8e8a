"""@accelerated: the one place where an op finds a faster way to run.

An op states its math once, for whole arrays. Its arguments are checked here by their names (see `checks.RULES`), and how it is
run is decided here:

- **By a kernel.** Arrays on a GPU are given to the function of the same file and name in :mod:`numllama.cuda`, if there is one
  and it takes them. It says NotImplemented if it does not, and the op itself runs, on CuPy.
- **In float32.** Numbers in two bytes (bfloat16, float16) are for memory and for kernels. An op that is given some computes in
  float32 and rounds what it returns, as a kernel does; statistics in its cache and gradients of vectors stay float32.
- **Row by row.** An op marked ``by_rows`` treats each row (the last axis) alone. On a CPU its large arrays are cut into
  blocks of rows that stay in the core's cache from one elementwise step to the next. Which values are rows follows from
  shapes alone: an array that agrees with the first argument in all axes but the last is cut; anything else is shared.
  Results that have a row for each row are joined; results that have not are gradients of shared weights, and add up.
- **Output by output.** A weight may be kept in bfloat16 to save memory. An op marked ``by_outputs`` has a weight with a row for
  each of its outputs: it gets the weight a block of rows at a time, converted as it is used.
"""

from collections.abc import Callable, Iterator
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from numllama.backend import BFLOAT16, TWO_BYTES
from numllama.checks import argument_checks

# An array of up to 32 MiB of floats is left whole: blocks would save passes through main memory, but arrays of many sizes leave
# holes in the memory that is kept for the next, and more calls are more moments at which threads wait for each other.
WHOLE_ELEMENTS = 2**23
BLOCK_ELEMENTS = 192 * 1024
# An optimizer's pass over flat buffers: larger pieces, or its threads would spend their time handing the lock around.
PIECE_ELEMENTS = 192 * 1024
# Of a weight that is converted as it is used: 1 MiB, which the product then finds in the second-level cache.
WEIGHT_ELEMENTS = 256 * 1024


def accelerated(
    op: Callable | None = None, *, by_rows: bool = False, by_outputs: bool = False, of_ops: bool = False
) -> Callable:
    """Let an op be run in a faster way that gives the same result.

    Parameters
    ----------
    op : callable
        A forward or backward function of :mod:`numllama.ops`; kept as ``op.reference``.
    by_rows : bool
        The op treats each row of its arrays alone, and may be run on blocks of rows.
    by_outputs : bool
        The op takes x, a weight with a row for each output, and a bias; it may be run on blocks of outputs.
    of_ops : bool
        The op calls other ops, which see to numbers in two bytes themselves.
    """
    if op is None:
        return lambda op: accelerated(op, by_rows=by_rows, by_outputs=by_outputs, of_ops=of_ops)

    check = argument_checks(op)

    @wraps(op)
    def run(*args, **kwargs):
        args, kwargs = check(args, kwargs)
        if _kernels().runs_here(args) and (launcher := _launcher(op)):
            result = launcher(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if not of_ops and _may_be_in_two_bytes(args) and _first_dtype((*args, *kwargs.values())) in TWO_BYTES:
            return _in_float32(run, op.__name__.endswith("_forward"), args, kwargs)
        if by_rows and not kwargs and _has_many_rows(args):
            return _in_row_blocks(op, args)
        if by_outputs and len(args) > 1 and args[1].dtype == BFLOAT16:
            return _in_output_blocks(op, *args, **kwargs)
        return op(*args, **kwargs)

    run.reference = op
    return run


@cache
def _kernels() -> Any:
    """numllama.cuda.launch. As the launchers, it is found by its name: nothing here depends on a kernel."""
    return import_module("numllama.cuda.launch")


@cache
def _launcher(op: Callable) -> Callable | None:
    """The function of the same file and name in numllama.cuda, if there is one."""
    module = f"numllama.cuda.{op.__module__.rpartition('.')[2]}"
    return getattr(import_module(module), op.__name__, None) if find_spec(module) else None


def _may_be_in_two_bytes(args: tuple) -> bool:
    """The quick answer, which most calls on a CPU end with."""
    first = args[0] if args else None
    return not (isinstance(first, np.ndarray) and first.ndim and first.dtype.itemsize > 2)


def _first_dtype(values: tuple) -> np.dtype | None:
    """Of the first array with axes, in nested tuples."""
    for value in values:
        dtype = _first_dtype(value) if isinstance(value, tuple) else value.dtype if getattr(value, "ndim", 0) else None
        if dtype is not None:
            return dtype
    return None


def _in_float32(run: Callable, is_forward: bool, args: tuple, kwargs: dict) -> Any:
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


def _has_many_rows(args: tuple) -> bool:
    """Whether all arrays are large, have the same rows, or are shared vectors; anything else is for the op's own checks."""
    first = args[0] if args else None
    if not isinstance(first, np.ndarray) or first.ndim < 2 or first.size <= WHOLE_ELEMENTS:
        return False
    return all(a.ndim == 1 or a.shape[:-1] == first.shape[:-1] for a in _arrays(args))


def _in_row_blocks(op: Callable, args: tuple) -> Any:
    """Call `op` on one block of rows after another, and put the results together."""
    lead, width = args[0].shape[:-1], args[0].shape[-1]
    n_rows, step = prod(lead), max(1, BLOCK_ELEMENTS // width)
    tables = {id(a): a.reshape(n_rows, -1) for a in _arrays(args) if a.ndim > 1}  # one row a row, whatever the axes
    joined = None
    for rows in slices(0, n_rows, step):
        whole = {id(a): a for a in _arrays(args)}  # id of what the op is given -> what we were given

        def cut(value, rows=rows, whole=whole):
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            if id(value) not in tables:
                return value
            piece = tables[id(value)][rows]
            whole[id(piece)] = value
            return piece

        pieces = cut(args)
        joined = _join(joined, op(*pieces), rows, lead, whole)
    return joined


def _in_output_blocks(op: Callable, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> tuple:
    """Call `op` on one block of the weight's rows after another, each in x's dtype, and put the outputs side by side."""
    out = np.empty((*x.shape[:-1], len(weight)), x.dtype)
    step = min(len(weight), max(1, WEIGHT_ELEMENTS // weight.shape[-1]))
    block = np.empty((step, weight.shape[-1]), x.dtype)  # one for all: new memory costs more than the conversion
    for rows in slices(0, len(weight), step):
        converted = block[: rows.stop - rows.start]
        converted[...] = weight[rows]
        out[..., rows], _ = op(x, converted, None if bias is None else bias[rows])
    return out, (x, weight, bias)


def _join(value: Any, result: Any, rows: slice, lead: tuple, whole: dict) -> Any:
    """Put one block's result in its place."""
    if isinstance(result, tuple):
        values = value or (None,) * len(result)
        return tuple(_join(v, r, rows, lead, whole) for v, r in zip(values, result, strict=True))
    if not isinstance(result, np.ndarray):
        return result
    if id(result) in whole:  # an input that is handed on in a cache
        return whole[id(result)]
    if result.ndim == 2:  # a row for each row
        value = np.empty((*lead, result.shape[-1]), result.dtype) if value is None else value
        value.reshape(prod(lead), -1)[rows] = result
        return value
    return result if value is None else value + result  # the gradient of a shared vector


def _arrays(value: Any) -> list[np.ndarray]:
    """The arrays in nested tuples."""
    if isinstance(value, tuple):
        return [array for part in value for array in _arrays(part)]
    return [value] if isinstance(value, np.ndarray) else []


def piece_size(flat: Any) -> int:
    """How much of a flat buffer an elementwise pass does at a time: what fits a core's cache, or all of it on a GPU."""
    return PIECE_ELEMENTS if isinstance(flat, np.ndarray) else max(1, flat.size)


def slices(start: int, stop: int, step: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Cut start..stop into slices of at most `step`: what one elementwise pass over a flat buffer does at a time."""
    for begin in range(start, stop, step):
        yield slice(begin, min(begin + step, stop))
