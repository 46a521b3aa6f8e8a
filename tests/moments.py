"""What others would see: a function is called before every change that a piece of code makes to files.

A kill leaves what is there at such a moment, and a reader sees it; so whatever holds at all of them holds after a kill.
"""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

KILLED = "import sys; from moments import kill_at; from numllama.cli import main; kill_at({n}); main(sys.argv[1:])"
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


def is_killed_at(n, *arguments):
    """Run a command in a process of its own that is killed before its n-th change to files; whether it came so far."""
    command = [sys.executable, "-c", KILLED.format(n=n), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
    return ended.returncode != 0


def kill_at(n):
    """Kill this process before its n-th change to files from now on; to open one for reading is none."""
    left = n

    def look(event, arguments):
        nonlocal left
        if event in CHANGES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


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
