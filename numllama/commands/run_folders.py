"""The folders of training runs: which one a command uses, and that no other process writes there."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from numllama.errors import CheckpointError
from numllama.storage.folders import locked

RUNS = Path("runs")


def default_folder(preset: str, resume: bool | str) -> Path:
    """The first unused name under runs/; to resume, the last used one."""
    names = (RUNS / (preset if i == 1 else f"{preset}-{i}") for i in range(1, sys.maxsize))
    last, folder = None, RUNS / preset
    for folder in names:
        if not (folder / "config.json").exists():
            break
        last = folder
    if resume is True and last is None:
        raise CheckpointError(f"there is no run to resume under {RUNS}{'/'}{preset}: name one with --out")
    return (last if resume else None) or folder


def check_new(out: Path) -> None:
    """ValueError if this folder already holds a run."""
    if (out / "config.json").exists():
        raise ValueError(f"{out} already holds a run: use --resume to continue it, or another --out")


@contextmanager
def only_run_in(out: Path, begun: bool) -> Iterator[None]:
    """Lock a run's folder until this process leaves it, so that two processes never write to one run."""
    with locked(out, doing="trains"):
        if not begun:  # another process may have started a run since the first check
            check_new(out)
        yield
