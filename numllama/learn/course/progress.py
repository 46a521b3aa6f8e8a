"""What a student has done so far: FOLDER/progress.json has each exercise's last result, and the hints and solutions shown."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numllama.errors import DataError, NumllamaError
from numllama.learn.course.check import OUTCOMES, Checked
from numllama.learn.course.files import is_blank
from numllama.learn.course.table import Exercise
from numllama.storage.files import read_bytes, read_json, write_json

NAME = "progress.json"
LAST_STEP = 3  # of the hints


@dataclass(frozen=True)
class State:
    """How far an exercise is.

    Attributes
    ----------
    exercise : Exercise
    state : str
        "not started", "not checked", or the outcome of the last check of the file as it is.
    points, of : int
    hints : int
        How many steps of the hints were shown.
    solution : bool
        Whether the solution was shown.
    """

    exercise: Exercise
    state: str
    points: int
    of: int
    hints: int
    solution: bool


def read_progress(folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of the file by exercise; DataError if it is damaged."""
    path = folder / NAME
    if not path.exists():
        return {}
    entries = read_json(path, DataError)
    for entry in entries.values():
        good = isinstance(entry, dict) and entry.get("outcome", "blank") in OUTCOMES
        if not good or not all(isinstance(entry.get(key, 0), int) for key in ("points", "of", "hints", "solution")):
            raise DataError(f"{path} is damaged: remove it, and check the exercises again")
    return entries


def remember(folder: Path, name: str, **values: Any) -> None:
    """Change the entry of an exercise. A folder that cannot be written, a teacher's for example, remembers nothing."""
    entries = read_progress(folder)
    entries[name] = {**entries.get(name, {}), **values}
    with suppress(NumllamaError, OSError):
        write_json(folder / NAME, entries, NumllamaError)


def remember_check(folder: Path, path: Path, found: Checked) -> None:
    """Keep the result of a check."""
    remember(folder, found.exercise.name, outcome=found.outcome, points=found.points, of=found.of, file=_digest(path))


def state_of(folder: Path, exercise: Exercise, entries: dict[str, dict[str, Any]]) -> State:
    """How far an exercise is, from its file and its last result."""
    path, entry = folder / f"{exercise.name}.py", entries.get(exercise.name, {})
    of, seen = entry.get("of", exercise.points), (entry.get("hints", 0), bool(entry.get("solution", False)))
    if not path.exists():
        return State(exercise, "not started", 0, exercise.points, *seen)
    if "outcome" in entry and entry.get("file") == _digest(path):
        return State(exercise, entry["outcome"], entry.get("points", 0), of, *seen)
    with suppress(NumllamaError, UnicodeError):
        if is_blank(read_bytes(path, DataError).decode("utf-8"), exercise):
            return State(exercise, "blank", 0, of, *seen)
    return State(exercise, "not checked", 0, of, *seen)


def _digest(path: Path) -> str:
    """A checksum of a file; empty if it cannot be read."""
    with suppress(NumllamaError):
        return hashlib.sha256(read_bytes(path, DataError)).hexdigest()
    return ""
