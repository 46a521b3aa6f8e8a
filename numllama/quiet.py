"""Importing this makes Ctrl-C end the process without a traceback while the rest is imported, before there is work to save."""

import _signal as signal  # built in; importing `signal` takes milliseconds in which Ctrl-C would still print a traceback
import os

INTERRUPTED = 130


def _leave(number: int, frame: object) -> None:
    os._exit(INTERRUPTED)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
