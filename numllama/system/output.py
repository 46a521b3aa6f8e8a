"""Standard output and error, which may be a pipe that nobody reads, a full disk, or closed.

Whether somebody can read what a command prints must never decide what becomes of its work. What is printed about the work is
printed if it can be. Only a command whose result is its output ends when that cannot be written, and then never with 0.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from numllama.errors import NumllamaError

BROKEN_PIPE = 141  # the exit code of any program that SIGPIPE ends


class OutputError(Exception):
    """The output of a command, which is its result, cannot be written; `error` says why."""

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}")
        self.error = error

    @property
    def exit_code(self) -> int:
        """141 if its reader has gone, which is nothing to be told; else 2."""
        return BROKEN_PIPE if isinstance(self.error, BrokenPipeError) else 2


class OutputStream:
    """A text stream that never fails, unless it is needed.

    Parameters
    ----------
    stream : text stream
    needed : bool
        Raise OutputError where it cannot be written. Otherwise what cannot be written is left out.

    Attributes
    ----------
    error : OSError or ValueError, optional
        What was the first to go wrong.
    """

    def __init__(self, stream: TextIO, needed: bool = False) -> None:
        self._stream, self.needed, self.error = stream, needed, None

    def write(self, text: str) -> int:
        """Write a text, if it can be written."""
        with self._failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered, if it can be written."""
        with self._failing():
            self._stream.flush()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: it is closed
            if isinstance(error, UnicodeError):
                raise
            self.error = self.error or error
            if self.needed:
                raise OutputError(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ClosedInput(io.TextIOBase):
    """Standard input where there is none."""

    def readable(self) -> bool:
        return True

    def readline(self, size: int = -1) -> str:
        raise NumllamaError("standard input is closed, so there is nothing to read")

    read = readline

    @property
    def buffer(self) -> "ClosedInput":
        """Its bytes, which are not there either."""
        return self


@contextmanager
def standard_streams() -> Iterator[tuple[OutputStream, OutputStream]]:
    """Let output and error be streams that may fail, and closed ones be like /dev/null; returns when all is written."""
    before = sys.stdin, sys.stdout, sys.stderr
    with ExitStack() as opened:
        _open_the_closed()
        out, err = (
            OutputStream(stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")), needed)
            for stream, needed in ((sys.stdout, True), (sys.stderr, False))
        )
        for stream in (out, err):  # a terminal that lacks a character shows its code instead
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        sys.stdin, sys.stdout, sys.stderr = sys.stdin or ClosedInput(), out, err
        try:
            yield out, err
        finally:
            for stream in (out, err):
                stream.needed = False
                stream.flush()
                if stream.error:
                    _forget(stream)
            sys.stdin, sys.stdout, sys.stderr = before


def _open_the_closed() -> None:
    """Nothing else may become file 0, 1 or 2: what a child or a library prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it takes the lowest number that is free


def _forget(stream: OutputStream) -> None:
    """What is still buffered goes nowhere: Python would try once more when it ends, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())
        stream.flush()


@contextmanager
def output_is_optional() -> Iterator[None]:
    """Within it a command goes on where its output cannot be written: its result is what it leaves on the disk."""
    out = sys.stdout
    if not isinstance(out, OutputStream):
        yield
        return
    needed, out.needed = out.needed, False
    try:
        yield
    finally:
        out.flush()
        out.needed = needed
        if out.error and not isinstance(out.error, BrokenPipeError):
            print(OutputError(out.error), file=sys.stderr)
