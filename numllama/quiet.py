"""Ctrl-C is quiet from here on, while the rest is imported: nothing has begun that could be cleaned up."""

import _signal as signal  # built in: `signal` itself takes milliseconds, in which Ctrl-C would still print a traceback
import os

INTERRUPTED = 130


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
