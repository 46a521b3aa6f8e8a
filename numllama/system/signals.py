"""Signals: what each of them ends, with which exit code, and quietly however often it comes.

The first signal that ends a command decides its exit code. Others that come after it are ignored, down to the interpreter's own
end, where Python would print a traceback or die of them.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # the exit code after Ctrl-C, as of any program that SIGINT ends
SCHEDULED = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # mpirun hands SIGUSR1 on
HANG_UP = [getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)]  # a terminal is gone
TO_END = [*SCHEDULED, *HANG_UP]
FOR_THE_PARENT = (signal.SIGINT, *TO_END)  # a terminal or a scheduler sends them to all, but a step needs its children to its end


def exit_code(number: int) -> int:
    """The exit code of a run that a signal ended in good order: 0 for a scheduler's, 129 for SIGHUP, 130 for SIGINT."""
    return 0 if number in SCHEDULED else 128 + number


@contextmanager
def handling(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Let `handler` take some signals, then whoever took them before.

    SIGHUP stays ignored where nohup has done so, and what :func:`ignore` was told meanwhile stays ignored.
    """
    numbers = [n for n in numbers if not (n in HANG_UP and signal.getsignal(n) is signal.SIG_IGN)]
    try:
        old = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        old = {}
    try:
        yield
    finally:
        for number, before in old.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, before)


def ignore(*numbers: int) -> None:
    """Let signals do nothing from now on, until :func:`restored` ends."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def restored() -> Iterator[None]:
    """Put back at the end whoever takes the signals now."""
    old = {number: signal.getsignal(number) for number in FOR_THE_PARENT}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, before in old.items():
                if before is not None:  # else it was not set by Python
                    signal.signal(number, before)


def _exit(number: int, frame: Any) -> None:
    ignore(*TO_END)
    raise SystemExit(exit_code(number))


ends_when_told = handling(_exit, *TO_END)  # where there is nothing to save


def quiet_program() -> None:
    """Let Ctrl-C end this process without a traceback, also where no code can catch it. For a process that runs one command."""
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def hook(kind: type, error: BaseException, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            os._exit(INTERRUPTED)
        uncaught(kind, error, trace)

    def hook_of_callbacks(what: Any) -> None:  # where Python would print the exception and go on
        if isinstance(what.exc_value, KeyboardInterrupt | SystemExit):
            os._exit(INTERRUPTED if isinstance(what.exc_value, KeyboardInterrupt) else what.exc_value.code or 0)
        unraisable(what)

    sys.excepthook, sys.unraisablehook = hook, hook_of_callbacks
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # until now see numllama.__main__
