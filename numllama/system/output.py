"""Standard output and error, which may be closed, on a full disk, or pipes without a reader.

A command whose result is on disk must not fail because its messages cannot be printed: they are dropped. Only a command
whose result is its output ends if that cannot be written, and never with exit code 0.
"""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from numllama.errors import NumllamaError

BROKEN_PIPE = 141  # exit code of a program killed by SIGPIPE


class OutputError(Exception):
    """A command's result could not be printed; `error` says why."""

    def __init__(self, error: OSError | ValueError) -> None:
        super().__init__(f"standard output cannot be written: {getattr(error, 'strerror', None) or error}")
        self.error = error

    @property
    def exit_code(self) -> int:
        """141 if the reader closed the pipe, which needs no message; otherwise 2."""
        return BROKEN_PIPE if isinstance(self.error, BrokenPipeError) else 2


class OutputStream:
    """A text stream that drops text it cannot write.

    Parameters
    ----------
    stream : text stream
    needed : bool
        Raise OutputError instead of dropping anything.

    Attributes
    ----------
    error : OSError or ValueError, optional
        The first error, if any.
    """

    def __init__(self, stream: TextIO, needed: bool = False) -> None:
        self._stream, self.needed = stream, needed
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, if possible."""
        with self._failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Write the buffered text, if possible."""
        with self._failing():
            self._stream.flush()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            if isinstance(error, UnicodeError):
                raise
            self.error = self.error or error
            if self.needed:
                raise OutputError(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class ClosedInput(io.TextIOBase):
    """Standard input of a process that has none."""

    def readable(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        raise NumllamaError("standard input is closed, so there is nothing to read")

    read = readline

    @property
    def buffer(self) -> "ClosedInput":
        """The binary stream, which has nothing to read either."""
        return self


@contextmanager
def standard_streams() -> Iterator[tuple[OutputStream, OutputStream]]:
    """Make standard output and error tolerate failures, and closed ones act like /dev/null; flush them at the end."""
    before = sys.stdin, sys.stdout, sys.stderr
    with ExitStack() as opened:
        _open_the_closed()
        out, err = (
            OutputStream(stream or opened.enter_context(open(os.devnull, "w", encoding="utf-8")), needed)
            for stream, needed in ((sys.stdout, True), (sys.stderr, False))
        )
        for stream in (out, err):  # characters that the terminal cannot show become escapes
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
    """Open closed file descriptors 0 to 2, or the next opened file would get one and receive what libraries print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number


def _forget(stream: OutputStream) -> None:
    """Discard the buffered text. Otherwise Python would try to write it again at exit, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())
        stream.flush()


@contextmanager
def output_is_optional() -> Iterator[None]:
    """Let a command whose result is on disk continue when its output cannot be written."""
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
