"""Grades as a table for a student, as one for a teacher, as CSV and as JSON; and the file that a student begins with."""

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numllama.errors import DataError, NumllamaError, shown, visible
from numllama.learn import spreadsheet
from numllama.learn.course.files import FOLDER
from numllama.learn.grade import Grade, Point, chosen, grade_files, new_seed, sum_of
from numllama.learn.grade_template import TEMPLATE
from numllama.storage.files import is_there

MOST_PRINTED = 1000  # characters of what a file prints


def grade_run(
    path: Path, configurations: Sequence[str], seconds: float, seed: int | None, only: Sequence[str] = (), form: str = "text"
) -> int:
    """`numllama grade`: print the points; returns the exit code: 0 all, 1 some are missing, 2 nothing can be graded.

    `form` is "text", "csv" or "json".
    """
    names, seed = chosen(configurations), new_seed() if seed is None else seed
    paths, folder = files_of(path), path if path.is_dir() else path.parent
    width = max(len(_name(each, folder)) for each in paths)
    grades: list[Grade] = []
    if form == "text" and path.is_dir():
        print(f"{'file':{width}}   forward  backward    points")
    for each in grade_files(paths, names, seed, seconds, only):
        if form == "csv" and not grades:
            print(as_csv_head(each))
        if form == "csv":
            print(as_csv(each, folder), flush=True)
        elif form == "text":
            print(as_row(each, folder, width) if path.is_dir() else as_text(each), flush=True)
        grades.append(each)
    if form == "json":
        print(json.dumps(as_dict(grades, folder, names, seed), ensure_ascii=False, indent=1))
    else:
        print(f"Graded on {', '.join(names)} with --seed {seed}.", file=sys.stderr if form == "csv" else sys.stdout)
    if all(each.problem for each in grades):
        print(*(f"error: {each.path}: {each.problem}" for each in grades), sep="\n", file=sys.stderr)
        return 2
    return 0 if all(point.earned for each in grades for point in each.points) else 1


def files_of(path: Path) -> list[Path]:
    """A file; or the files of a folder, and llama.py of each of its subfolders, whether it is there or not."""
    if not path.is_dir():
        if not is_there(path):
            raise DataError(f"{path} does not exist: numllama grade {path} --template writes a file to begin with")
        return [path]
    files = {each for each in (*path.glob("*.py"), handed_in_by(path, "llama")) if each.is_file()}
    handed_in = [handed_in_by(student, "llama") for student in students_in(path)]
    if not files and not any(each.exists() for each in handed_in):
        raise DataError(f"{path} is a folder without .py files, and no subfolder has a file llama.py")
    return sorted([*files, *handed_in])


def students_in(folder: Path) -> list[Path]:
    """The subfolders of a class's folder: one for each student."""
    inside = (each for each in folder.iterdir() if each.is_dir() and not each.name.startswith((".", "_")))
    return sorted(each for each in inside if each.name != FOLDER.name)


def handed_in_by(student: Path, name: str) -> Path:
    """A student's file for an exercise: in the student's folder or, if it is not there, in a folder `exercises` in it."""
    own, inner = student / f"{name}.py", student / FOLDER / f"{name}.py"
    return inner if inner.exists() and not own.exists() else own


def _name(path: Path, folder: Path) -> str:
    return visible(path.relative_to(folder).as_posix())


def write_template(path: Path) -> int:
    """Write the file that a student begins with. An existing file is never overwritten."""
    text = TEMPLATE.replace("FILE", path.name)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise DataError(f"{path} exists and is not overwritten: remove it to start again") from error
    except OSError as error:
        raise NumllamaError(f"{path} could not be written: {error.strerror or error}") from error
    print(f"{path}: fill in llama, then: numllama grade {path}")
    return 0


# ------------------------------------------------------------------------------------------------ in words


def as_text(grade: Grade) -> str:
    """The points of each op, a sentence for each that is lost, and what to do next; or only the output, if there is no more."""
    if grade.problem:
        return "\n".join([f"{grade.path.name}: 0 of {len(grade.points)} points.", *printed(grade)])
    lines = [f"{'op':18} {'forward':>9} {'backward':>9}"]
    lines += [_sums(op, points) for op, points in by_op(grade).items()]
    lines += [_sums("sum", grade.points), ""]
    reasons: dict[tuple[str, str], list[str]] = {}
    for point in grade.points:
        if not point.earned:
            share = f" (right in {point.right} of {point.of} configurations)" if point.right else ""
            reasons.setdefault((point.why + share, point.mistake), []).append(point.name)
    for (why, mistake), names in reasons.items():
        lines += [_wrapped(f"{', '.join(names)}: {why}"), *([_wrapped(f"    {mistake}")] if mistake else [])]
    lines += [*grade.notes, *printed(grade)]
    lines.append(f"{visible(grade.path.name)}: {grade.earned} of {len(grade.points)} points. {grade.advice}")
    return "\n".join(lines)


def as_row(grade: Grade, folder: Path, width: int) -> str:
    """A line of a teacher's table, with a crash or the first point that is lost, shortened."""
    sums = _sums(_name(grade.path, folder), grade.points, width)
    return f"{sums} {f'{grade.earned}/{len(grade.points)}':>9}   {_first(grade, most=120)}".rstrip()


def _first(grade: Grade, most: int = sys.maxsize) -> str:
    """Why a file cannot be graded, where it crashed, or the first point that is lost; and how many more are."""
    crash = next((f"{name}: {why}" for name, why in grade.failed.items()), "")
    lost = [] if grade.problem or crash else [f"{point.name}: {point.why}" for point in grade.points if not point.earned]
    first = grade.problem or crash or next(iter(lost), "")
    return shown(first, quote=False, most=most) + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")


def as_csv_head(grade: Grade) -> str:
    """The first lines of a table for a spreadsheet."""
    return spreadsheet.head("file", {op: len(points) for op, points in by_op(grade).items()})


def as_csv(grade: Grade, folder: Path) -> str:
    """A file's line in it: the points of each op."""
    points = {op: sum_of(points) for op, points in by_op(grade).items()}
    return spreadsheet.row(_name(grade.path, folder), points, grade.earned, _first(grade))


def by_op(grade: Grade) -> dict[str, list[Point]]:
    """The points of each op."""
    ops: dict[str, list[Point]] = {}
    for point in grade.points:
        ops.setdefault(point.op, []).append(point)
    return ops


def _sums(title: str, points: Sequence[Point], width: int = 18) -> str:
    return f"{title:{width}} {_sum(points, False):>9} {_sum(points, True):>9}"


def _sum(points: Iterable[Point], backward: bool) -> str:
    """How many are earned: "3/4"."""
    some = [point for point in points if point.is_backward == backward]
    return f"{sum_of(some)}/{len(some)}" if some else ""


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 118, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def printed(grade: Grade) -> list[str]:
    """The beginning of what the file printed."""
    text = grade.printed.strip()
    cut = text if len(text) <= MOST_PRINTED else f"{text[:MOST_PRINTED]}..."
    return ["It printed:", textwrap.indent(cut, "    ")] if text else []


def as_dict(grades: Sequence[Grade], folder: Path, configurations: Sequence[str], seed: int) -> dict[str, Any]:
    """Plain values for JSON."""
    return {"seed": seed, "configurations": list(configurations), "files": [_as_dict(each, folder) for each in grades]}


def _as_dict(grade: Grade, folder: Path) -> dict[str, Any]:
    points = [
        {"name": each.name, "op": each.op, "pass": "backward" if each.is_backward else "forward", "earned": each.earned,
         "right": each.right, "of": each.of, "why": each.why, "mistake": each.mistake}
        for each in grade.points
    ]  # fmt: skip
    return {
        "file": _name(grade.path, folder), "earned": grade.earned, "most": len(grade.points), "problem": grade.problem,
        "failed": grade.failed, "advice": grade.advice, "notes": grade.notes, "printed": grade.printed,
        "seconds": round(grade.seconds, 3),
        "ops": [{"op": op, "earned": sum_of(points), "most": len(points)} for op, points in by_op(grade).items()],
        "points": points,
    }  # fmt: skip
