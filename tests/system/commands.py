"""Commands in this process and in others, and a small run for them to work on."""

import io
import os
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import numllama
from numllama.cli import main
from numllama.training.checkpoint import find_step

TINY = [
    "--dim", 16, "--n-layers", 1, "--n-heads", 2, "--max-seq-len", 8, "--batch-size", 4, "--workers", 1, "--eval-every", 4,
    "--eval-batches", 1, "--warmup-steps", 2,
]  # fmt: skip
PROGRAM = """
import sys
sys.modules["matplotlib"] = None  # a run that draws nothing ends a second sooner
from numllama.cli import main
main()
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(numllama.__file__).parents[1]), "PROGRAM": PROGRAM}


def start(*arguments, **streams):
    """A command in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, **streams)


def after_steps(run, n, process):
    """Wait until a run has logged so many steps."""
    log, patience = run / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < patience:
        if log.exists() and log.read_bytes().count(b"\n") >= n:
            return
        time.sleep(0.005)


@contextmanager
def nothing_drawn():
    """A run that draws nothing ends sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        yield


def run(*arguments, out=None, err=None):
    """Exit code, standard output and standard error of a command, with these for its streams."""
    out, err = io.StringIO() if out is None else out, io.StringIO() if err is None else err
    with redirect_stdout(out), redirect_stderr(err), nothing_drawn(), pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code, out.getvalue(), err.getvalue()


def weights(run):
    """The bytes of a run's weights."""
    return (find_step(run) / "weights.safetensors").read_bytes()
