"""`numllama grade FOLDER --exercises`: the exercises of a class, a line for each student."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from numllama.errors import DataError, shown, visible
from numllama.learn import spreadsheet
from numllama.learn.course.check import Checked, check
from numllama.learn.course.report import as_dict
from numllama.learn.course.table import COURSE, Exercise, find_exercise
from numllama.learn.grade_report import handed_in_by, students_in

MISSING = "missing"
FEW, MOST = 3, 120  # notes in a line of the table, and characters of each


def mark_class(folder: Path, names: Sequence[str], seconds: float, only: Sequence[str], form: str) -> int:
    """Check exercises in each subfolder of a folder, and print a line for each; what is missing earns nothing.

    Parameters
    ----------
    folder : path
        Has a subfolder for each student, with the files in it or in a folder `exercises` there: see :func:`handed_in_by`.
        They are not written to.
    names : sequence of str
        Exercises, or "all" of the course.
    seconds : float
        For each file.
    only : sequence of str
        The packages that a file may import.
    form : {"text", "csv", "json"}

    Returns
    -------
    int
        The exit code: 0 if all is right, 1 if not.
    """
    exercises = [find_exercise(name) for name in (COURSE if "all" in names else dict.fromkeys(names))]
    if not folder.exists():
        raise DataError(f"{folder} does not exist")
    students = students_in(folder) if folder.is_dir() else []
    if not students:
        raise DataError(f"{folder} has no subfolders, but must have one for each student")
    of = {each.name: each.points for each in exercises}
    width = max(len("student"), *(len(visible(each.name)) for each in students))
    everything = []
    if form != "json":
        print(spreadsheet.head("student", of) if form == "csv" else f"{'student':{width}}    points")
    for student in students:
        found = {each.name: _checked(student, each, seconds, only) for each in exercises}
        everything.append((student, found))
        points, name = {key: each.points for key, each in found.items()}, visible(student.name)
        total, notes = sum(points.values()), _notes(found.values())
        if form == "csv":
            print(spreadsheet.row(name, points, total, "; ".join(notes)), flush=True)
        elif form == "text":
            sums = f"{name:{width}} {f'{total}/{sum(of.values())}':>9}"
            print(f"{sums}   {_shortened(notes)}".rstrip(), flush=True)
    if form == "json":
        rows = [
            {"student": visible(student.name), "points": sum(each.points for each in found.values()), "of": sum(of.values()),
             "exercises": [as_dict(each, str(handed_in_by(student, name)), 1) for name, each in found.items()]}
            for student, found in everything
        ]  # fmt: skip
        print(json.dumps({"students": rows}, ensure_ascii=False, indent=1))
    return 0 if all(each.outcome == "right" for _, found in everything for each in found.values()) else 1


def _checked(student: Path, exercise: Exercise, seconds: float, only: Sequence[str]) -> Checked:
    path = handed_in_by(student, exercise.name)
    if not path.exists():
        return Checked(exercise, "cannot be run", [], 0, exercise.points, MISSING)
    return check(path, exercise.name, seconds, only=only)


def _notes(found: Iterable[Checked]) -> list[str]:
    """What is to be said of the exercises that are not right; first of those that were tried."""
    notes = [(each.outcome == "blank" or each.message == MISSING, _note(each)) for each in found if each.outcome != "right"]
    return [note for _, note in sorted(notes, key=lambda each: each[0])]


def _note(found: Checked) -> str:
    """An exercise that is not right, and the first message: "rmsnorm wrong (2/4) in dx: off by 72.7% of its norm"."""
    if found.message == MISSING:
        return f"{found.exercise.name} {MISSING}"
    note = f"{found.exercise.name} {found.outcome}{f' ({found.points}/{found.of})' if found.points else ''}"
    if found.outcome == "blank":
        return note
    first = next((each for each in found.results if each.verdict == found.outcome), None)
    if first is None:
        return f"{note}: {found.message.split(f' {found.outcome}: ', 1)[-1]}"
    return f"{note} in {first.name}: {(first.mistake or first.message).removesuffix('.')}"


def _shortened(notes: Sequence[str]) -> str:
    more = f"; and {len(notes) - FEW} more" if len(notes) > FEW else ""
    return "; ".join(shown(visible(each), quote=False, most=MOST) for each in notes[:FEW]) + more
