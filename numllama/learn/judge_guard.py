"""While somebody's kernel runs, the package's own ops refuse to.

Two mechanisms, because each has a gap. The code of every function from these files is replaced, for all threads and wherever a
reference to the function is kept; this misses a function that is made later, from a stored code object or a file loaded again.
And the interpreter reports every call to a function from these files; this misses threads that ran before.

This stops a kernel that takes the answer from the package. It does not stop one that edits the memory of the process, or that
asks another process.
"""

import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType

PACKAGE = Path(__file__).parents[1]
REFUSED = (*(f"{PACKAGE / name}{os.sep}" for name in ("ops", "cpu", "cuda")), str(PACKAGE / "dispatch.py"))


class RefusedCall(RuntimeError):
    """An op of numllama was called while a candidate for it was being judged."""


class Guard:
    """The functions that are refused, found once; `with guard.on():` refuses them and notes who was called.

    Attributes
    ----------
    calls : list of str
        Files and names of the functions that were called.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        functions = [each for each in gc.get_objects() if type(each) is FunctionType and _is_refused(each.__code__.co_filename)]
        self._codes = [(each, each.__code__, _refusing(each)) for each in functions]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Refuse the ops, in all threads."""
        before, before_in_threads, report = sys.getprofile(), threading.getprofile(), self._report
        for function, _, refusing in self._codes:
            function.__code__ = refusing
        threading.setprofile(report)
        sys.setprofile(report)
        try:
            yield
            if sys.getprofile() is not report:
                self.calls.append("sys.setprofile")
        finally:
            sys.setprofile(before)
            threading.setprofile(before_in_threads)  # type: ignore[arg-type]
            for function, code, _ in self._codes:
                function.__code__ = code

    def _report(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and _is_refused(code.co_filename):
            self.calls.append(f"{Path(code.co_filename).relative_to(PACKAGE.parent).as_posix()}: {code.co_name}")


def _is_refused(filename: str) -> bool:
    return filename.startswith(REFUSED)


def _refuse(*args: object, **kwargs: object) -> None:
    from numllama.learn.judge_guard import RefusedCall  # by name: this code runs with another function's globals

    raise RefusedCall("numllama's own ops cannot be called while a candidate for one is judged")


def _refusing(function: FunctionType):
    """The code of `_refuse`, in the place of a function's own."""
    code = function.__code__
    return _refuse.__code__.replace(
        co_name=function.__name__, co_qualname=code.co_qualname, co_filename=code.co_filename, co_freevars=code.co_freevars
    )
