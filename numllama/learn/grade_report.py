"""Grades as a table for a student, as one for a teacher, and as JSON; and the file that a student begins with."""

import json
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numllama.errors import DataError, NumllamaError, shown, visible
from numllama.learn.grade import Grade, Point, chosen, grade_files, new_seed
from numllama.learn.grade_template import TEMPLATE
from numllama.storage.files import is_there

MOST_PRINTED = 1000  # characters of what a file prints


def grade_run(path: Path, configurations: Sequence[str], seconds: float, seed: int | None, as_json_text: bool) -> int:
    """`numllama grade`: print the points; returns the exit code: 0 all, 1 some are missing, 2 nothing can be graded."""
    names, seed = chosen(configurations), new_seed() if seed is None else seed
    paths = files_of(path)
    grades = []
    width = max(len(each.name) for each in paths)
    if path.is_dir() and not as_json_text:
        print(f"{'file':{width}}   forward  backward    points")
    for each in grade_files(paths, names, seed, seconds):
        grades.append(each)
        if not as_json_text:
            print(as_row(each, width) if path.is_dir() else as_text(each), flush=True)
    if as_json_text:
        print(json.dumps(as_dict(grades, names, seed), ensure_ascii=False, indent=1))
    else:
        print(f"Graded on {', '.join(names)} with --seed {seed}.")
    if all(each.problem for each in grades):
        print(*(f"error: {each.path}: {each.problem}" for each in grades), sep="\n", file=sys.stderr)
        return 2
    return 0 if all(each.earned == len(each.points) for each in grades) else 1


def files_of(path: Path) -> list[Path]:
    """A file, or the files of a folder."""
    if not path.is_dir():
        if not is_there(path):
            raise DataError(f"{path} does not exist: numllama grade {path} --template writes a file to begin with")
        return [path]
    files = sorted(each for each in path.glob("*.py") if each.is_file())
    if not files:
        raise DataError(f"{path} is a folder without .py files")
    return files


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
    for op in dict.fromkeys(point.op for point in grade.points):
        lines.append(_sums(op, [point for point in grade.points if point.op == op]))
    lines += [_sums("sum", grade.points), ""]
    reasons: dict[str, list[str]] = {}
    for point in grade.points:
        if point.why:
            reasons.setdefault(point.why, []).append(point.name)
    lines += [_wrapped(f"{', '.join(names)}: {why}") for why, names in reasons.items()]
    lines += [*grade.notes, *printed(grade)]
    lines.append(f"{grade.path.name}: {grade.earned} of {len(grade.points)} points. {grade.advice}")
    return "\n".join(lines)


def as_row(grade: Grade, width: int) -> str:
    """A line of a teacher's table, with the first point that is lost."""
    first = next((f"{point.name}: {point.why}" for point in grade.points if point.why), "")
    sums = _sums(visible(grade.path.name), grade.points, width)
    return f"{sums} {f'{grade.earned}/{len(grade.points)}':>9}   {shown(grade.problem or first, quote=False, most=120)}".rstrip()


def _sums(title: str, points: Sequence[Point], width: int = 18) -> str:
    return f"{title:{width}} {_sum(points, False):>9} {_sum(points, True):>9}"


def _sum(points: Iterable[Point], backward: bool) -> str:
    """How many are earned: "3/4"."""
    some = [point.earned for point in points if point.is_backward == backward]
    return f"{sum(some)}/{len(some)}" if some else ""


def _wrapped(sentence: str) -> str:
    return textwrap.fill(sentence, 118, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def printed(grade: Grade) -> list[str]:
    """The beginning of what the file printed."""
    text = grade.printed.strip()
    cut = text if len(text) <= MOST_PRINTED else f"{text[:MOST_PRINTED]}..."
    return ["It printed:", textwrap.indent(cut, "    ")] if text else []


def as_dict(grades: Sequence[Grade], configurations: Sequence[str], seed: int) -> dict[str, Any]:
    """Plain values for JSON."""
    return {"seed": seed, "configurations": list(configurations), "files": [_as_dict(each) for each in grades]}


def _as_dict(grade: Grade) -> dict[str, Any]:
    points = [
        {"name": each.name, "op": each.op, "pass": "backward" if each.is_backward else "forward", "earned": each.earned,
         "why": each.why}
        for each in grade.points
    ]  # fmt: skip
    ops: dict[str, list[bool]] = {}
    for point in grade.points:
        ops.setdefault(point.op, []).append(point.earned)
    return {
        "file": grade.path.name, "earned": grade.earned, "most": len(grade.points), "problem": grade.problem,
        "advice": grade.advice, "notes": grade.notes, "printed": grade.printed, "seconds": round(grade.seconds, 3),
        "ops": [{"op": op, "earned": sum(earned), "most": len(earned)} for op, earned in ops.items()],
        "points": points,
    }  # fmt: skip
