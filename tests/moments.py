"""What others would see: a function is called before every change that a piece of code makes to files.

A kill leaves what is there at such a moment, and a reader sees it; so whatever holds at all of them holds after a kill.
"""

import os
import signal
import sys
from contextlib import contextmanager

import pytest

CHANGES = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"}
_look = []


def _hook(event, arguments):
    if _look and event in CHANGES:
        look = _look.pop()  # what it does itself is not looked at
        try:
            look()
        finally:
            _look.append(look)


@contextmanager
def at_each_moment(look):
    """Call `look` at each moment of what is done within."""
    if _hook not in vars(sys).setdefault("_numllama_hooks", []):  # a hook stays for as long as Python does
        sys.addaudithook(_hook)
        sys._numllama_hooks.append(_hook)
    _look.append(look)
    try:
        yield
    finally:
        _look.remove(look)


def killed_at(n):
    """Kill this process before its n-th change to files from now on."""
    left = n

    def look():
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    _look.append(look)
    sys.addaudithook(_hook)


@contextmanager
def files_no_larger_than(n):
    """Let the system refuse to write more than n bytes to a file, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limits for files on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
