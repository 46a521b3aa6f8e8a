"""Signals: the exit code for each, and never a traceback, however often a signal arrives.

The first signal that ends a command decides its exit code. Later ones are ignored until the interpreter exits, where they would
kill Python or print a traceback.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 130  # exit code after Ctrl-C, as for any program ended by SIGINT
SCHEDULED = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # mpirun forwards SIGUSR1
HANG_UP = [getattr(signal, name) for name in ("SIGHUP",) if hasattr(signal, name)]  # a terminal was closed
TO_END = [*SCHEDULED, *HANG_UP]
FOR_THE_PARENT = (signal.SIGINT, *TO_END)  # sent to all processes, but children must live until the step is done


def exit_code(number: int) -> int:
    """Exit code of a run that saved after a signal: 0 for a scheduler's signals, 129 for SIGHUP, 130 for SIGINT."""
    return 0 if number in SCHEDULED else 128 + number


@contextmanager
def handling(handler: Callable[[int, Any], None], *numbers: int) -> Iterator[None]:
    """Install `handler` for some signals, and restore the previous handlers at the end.

    Signals that :func:`ignore` has disabled meanwhile stay ignored, and so does SIGHUP under nohup.
    """
    handled = [n for n in numbers if not (n in HANG_UP and signal.getsignal(n) is signal.SIG_IGN)]
    try:
        old = {number: signal.signal(number, handler) for number in handled}
    except ValueError:  # not in the main thread, so signals are the caller's business
        old = {}
    try:
        yield
    finally:
        for number, before in old.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, before)


def ignore(*numbers: int) -> None:
    """Ignore signals from now on, until :func:`restored` ends."""
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def restored() -> Iterator[None]:
    """Restore the current signal handlers at the end."""
    old = {number: signal.getsignal(number) for number in FOR_THE_PARENT}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, before in old.items():
                if before is not None:  # else the handler was not set by Python
                    signal.signal(number, before)


def _exit(number: int, frame: Any) -> None:
    ignore(*TO_END)
    raise SystemExit(exit_code(number))


exits_on_signals = handling(_exit, *TO_END)  # a decorator, for when there is nothing to save


def quiet_program() -> None:
    """End this process without a traceback on Ctrl-C, even if no code can catch it. For a process that runs one command."""
    uncaught, unraisable = sys.excepthook, sys.unraisablehook

    def hook(kind: type, error: BaseException, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            os._exit(INTERRUPTED)
        uncaught(kind, error, trace)

    def hook_of_callbacks(what: Any) -> None:  # where Python would print the exception and continue
        if isinstance(what.exc_value, KeyboardInterrupt):
            os._exit(INTERRUPTED)
        if isinstance(what.exc_value, SystemExit):
            os._exit(what.exc_value.code or 0)  # pyright: ignore[reportArgumentType]  _exit above is the only source: an int
        unraisable(what)

    sys.excepthook, sys.unraisablehook = hook, hook_of_callbacks
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # numllama.quiet handled it until now
