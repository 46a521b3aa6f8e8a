"""A verdict on somebody's kernel:  any callable, against an op's forward and backward in float64.

What is compared, in each case of `judge_ops.CASES`:
    the candidate's results, for random arguments that nobody has seen before
    the op's own lines in float64, run after the candidate has returned, with a bound on the rounding error of each element that
    follows from the dtype and the sizes (`error_bounds`)
and how the candidate behaves from one call to the next (`judge_bench`), while the package's own ops refuse to run
(`judge_guard`).
"""

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any

import numpy as np

from numllama.backend import known_dtype
from numllama.errors import shown
from numllama.learn.error_bounds import Format
from numllama.learn.judge_bench import Bench, Wrong
from numllama.learn.judge_memory import framework_of
from numllama.learn.judge_ops import CASES, JUDGED

STYLES = ("return", "out")


@dataclass(frozen=True)
class CaseVerdict:
    """The verdict in one case.

    Attributes
    ----------
    case : str
    passed : bool
    problem : str or None
        What is wrong, in one sentence.
    result : str or None
        The result that is wrong, or that came closest to its bound: ``"out"``, ``"dx"``, ...
    index : tuple of int or None
        Its element.
    error, bound : float or None
        How far that element is off, and how far rounding may put it. None where that is not a number.
    """

    case: str
    passed: bool
    _: KW_ONLY
    problem: str | None = None
    result: str | None = None
    index: tuple[int, ...] | None = None
    error: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on a candidate; true if it passed.

    Attributes
    ----------
    op, dtype : str
    passed : bool
        In all cases.
    seed : int
        With it, :func:`judge` repeats the same arguments.
    directions : tuple of str
        What was judged: ``"forward"``, ``"backward"``.
    cases : tuple of CaseVerdict
    """

    op: str
    dtype: str
    passed: bool
    seed: int
    directions: tuple[str, ...]
    cases: tuple[CaseVerdict, ...]

    def __bool__(self) -> bool:
        return self.passed

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return json.loads(json.dumps(asdict(self)))

    def to_json(self) -> str:
        """The verdict as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{self.op} in {self.dtype}: {'passed' if self.passed else 'FAILED'} (seed {self.seed})"]
        for each in self.cases:
            of_bound = each.error / each.bound if each.error and each.bound else 0
            lines.append(f"  {each.case:<11} {each.problem or f'{each.result} at {of_bound:.3f} of its bound'}")
        return "\n".join(lines)


def judge(
    op: str,
    candidate: Any = None,
    *,
    forward: Callable | None = None,
    backward: Callable | None = None,
    seed: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    framework: str = "numpy",
    style: str = "return",
    cases: Sequence[str] | None = None,
    same_bits: bool = True,
) -> Verdict:
    """Judge a kernel: its results against an op in float64, its errors against what rounding explains, and its manners.

    Parameters
    ----------
    op : str
        A name of ``numllama.learn.judge_ops.JUDGED``, such as ``"rmsnorm"``; docs/judge.md lists each with its arguments.
    candidate : optional
        What has a `forward` or a `backward`, or both; a pair of them; or one function, the forward.
    forward : callable, optional
        ``forward(*arguments)`` returns the output (a tuple, where there are several), or a pair of it and a cache.
    backward : callable, optional
        ``backward(dout, cache)`` returns the gradients in the order of the op's. Without a forward it is called as
        ``backward(dout, *arguments)``. `dout` is a tuple for an op with several outputs.
    seed : int, optional
        To repeat a verdict. By default arguments are new each time.
    device : str
        Where arrays are, for PyTorch and CuPy.
    dtype : str
        Of arguments and results: ``"float32"``, ``"float64"``, ``"bfloat16"`` or ``"float16"``. With the last two, gradients and
        losses may be float32.
    framework : str
        The library of the arrays that are passed: ``"numpy"``, ``"torch"`` or ``"cupy"``. JAX's functions accept NumPy's. Any
        library's arrays may be returned.
    style : str
        ``"return"``; or ``"out"``, for kernels that are given what to write to as the last argument: an array that holds NaN, or
        a tuple of them. What forward returns is the cache; what backward returns is ignored.
    cases : sequence of str, optional
        Names of ``numllama.learn.judge_ops.CASES``; by default all that say something of the op.
    same_bits : bool
        Whether the same arguments must give the same bits again. False for kernels that add in any order, as atomic additions do.

    Returns
    -------
    Verdict

    Raises
    ------
    ValueError
        If an argument is not one of those above.

    Notes
    -----
    While the candidate runs, :mod:`numllama.ops` and the faster versions refuse to be called, in all threads. This does not stop
    a candidate that edits the memory of the process, or that asks another process.
    """
    if op not in JUDGED:
        raise ValueError(f"op is {shown(op)}, but must be one of {', '.join(JUDGED)}")
    if style not in STYLES:
        raise ValueError(f"style is {shown(style)}, but must be one of {', '.join(STYLES)}")
    row, format = JUDGED[op], Format.of(known_dtype(dtype))
    known = [name for name in CASES if name not in row.skip]
    if unknown := [name for name in cases or () if name not in known]:
        raise ValueError(f"cases holds {shown(unknown[0])}, but those of {op} are {', '.join(known)}")
    functions = _functions(candidate, forward, backward)
    seed = secrets.randbits(63) if seed is None else seed
    bench = Bench(row, *functions, framework_of(framework, device), format, writes=style == "out", same_bits=same_bits)
    verdicts = tuple(_verdict(bench, name, seed) for name in (known if cases is None else cases))
    directions = tuple(name for name, function in zip(("forward", "backward"), functions, strict=True) if function is not None)
    return Verdict(op, format.dtype.name, all(each.passed for each in verdicts), seed, directions, verdicts)


def _functions(candidate: Any, forward: Callable | None, backward: Callable | None) -> tuple[Callable | None, Callable | None]:
    """Forward and backward, of which one may be None."""
    if candidate is not None:
        if forward is not None or backward is not None:
            raise ValueError("candidate is given, so forward and backward must not be")
        if isinstance(candidate, tuple | list) and len(candidate) == 2:
            forward, backward = candidate
        elif hasattr(candidate, "forward") or hasattr(candidate, "backward"):
            forward, backward = getattr(candidate, "forward", None), getattr(candidate, "backward", None)
        else:
            forward = candidate  # type: ignore[assignment]
    for name, function in (("forward", forward), ("backward", backward)):
        if function is not None and not callable(function):
            raise ValueError(f"{name} is {shown(function)}, but must be a function")
    if forward is backward is None:
        raise ValueError("nothing to judge: give a candidate, a forward or a backward")
    return forward, backward


def _verdict(bench: Bench, case: str, seed: int) -> CaseVerdict:
    try:
        return CaseVerdict(case, True, **bench.run(CASES[case], np.random.default_rng([seed, *case.encode()])))
    except Wrong as wrong:
        return CaseVerdict(case, False, problem=str(wrong), **wrong.where)
