"""@accelerated: the one place where an op finds a faster way to run.

An op states its math once, for whole arrays. Its arguments are checked by their names (see `checks.RULES`). Arrays on a GPU are
then given to the function of the same file and name in :mod:`numllama.cuda`; if there is none, or it says NotImplemented, the op
itself runs, on CuPy. Numbers in bfloat16 and float16 are computed with in float32 (:mod:`numllama.two_bytes`), and large arrays
on a CPU in blocks (:mod:`numllama.blocks`).
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from numllama.backend import BFLOAT16
from numllama.blocks import has_many_rows, in_output_blocks, in_row_blocks
from numllama.checks import argument_checks
from numllama.two_bytes import are_in_two_bytes, in_float32


def accelerated(op: Callable | None = None, *, by_rows: bool = False, by_outputs: bool = False, of_ops: bool = False) -> Callable:
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
        if not of_ops and are_in_two_bytes(args, kwargs):
            return in_float32(run, op.__name__.endswith("_forward"), args, kwargs)
        if by_rows and not kwargs and has_many_rows(args):
            return in_row_blocks(op, args)
        if by_outputs and len(args) > 1 and args[1].dtype == BFLOAT16:
            return in_output_blocks(op, *args, **kwargs)
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
