"""@accelerated: the one place where an op finds a faster way to run.

A faster op is a function of the same file and name in :mod:`numllama.cuda`, for arrays on a GPU, or in :mod:`numllama.cpu`.
If there is none, or a launcher returns NotImplemented, the op itself runs. Arguments are checked by name (`checks.RULES`), but
not inside a layer, whose arguments are the model's own. bfloat16 and float16 are computed in float32 (`low_precision`), and
large arrays on a CPU in blocks of rows (`blocks`). An observer sees and runs each op (`observing`).
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from numllama.blocks import has_many_rows, in_row_blocks
from numllama.checks import argument_checks
from numllama.low_precision import in_float32, is_low_precision
from numllama.observing import current


def accelerated(op: Callable | None = None, *, by_rows: bool = False, of_ops: bool = False) -> Callable:
    """Let an op run in a faster way that gives the same result.

    Parameters
    ----------
    op : callable
        A forward or backward function of :mod:`numllama.ops`; kept as ``op.reference``.
    by_rows : bool
        Each row of the op's arrays is independent of the others, so it may run on blocks of rows.
    of_ops : bool
        The op calls other ops, which handle low precision themselves.
    """
    if op is None:
        return lambda op: accelerated(op, by_rows=by_rows, of_ops=of_ops)
    check = argument_checks(op)

    @wraps(op)
    def run(*args: Any, **kwargs: Any) -> Any:
        if (observer := current()) is not None:
            return observer(run, args, kwargs)
        args, named = check(args, kwargs)
        kernels = _kernels()
        if kernels.backend.is_ready() and kernels.runs_here((*args, *named.values())):
            faster, math = _twin("cuda", op), op
            if faster and (result := faster(*args, **named)) is not NotImplemented:
                return result
        else:
            math = _twin("cpu", op) or op
        if not (of_ops or hasattr(math, "takes_two_bytes")) and is_low_precision(args, named):
            return in_float32(run, op, args, named)
        if by_rows and not named and has_many_rows(args):
            return in_row_blocks(math, args)
        return math(*args, **named)
    vars(run)["reference"] = op
    return run


@cache
def _kernels() -> Any:
    """numllama.cuda.launch, imported by name: nothing here depends on a kernel."""
    return import_module("numllama.cuda.launch")


@cache
def _twin(package: str, op: Callable) -> Callable | None:
    """The function of the same file and name in numllama.cuda or numllama.cpu, if there is one."""
    module = f"numllama.{package}.{op.__module__.rpartition('.')[2]}"
    return getattr(import_module(module), op.__name__, None) if find_spec(module) else None
