"""Points as CSV for a spreadsheet: a row for each student, a column for each exercise, and first what each is worth."""

import csv
import io
from collections.abc import Mapping

from numllama.errors import visible

FORMULA = ("=", "+", "-", "@")  # how a cell begins that a spreadsheet computes


def head(title: str, of: Mapping[str, int]) -> str:
    """Two lines: the names of the columns, and the most that can be earned in each."""
    return f"{_line([title, *of, 'points', 'note'])}\n{row('of', of, sum(of.values()))}"


def row(student: str, points: Mapping[str, float], total: float, note: str = "") -> str:
    """A student's line: the points in the order of the columns, their sum, and a sentence, in full."""
    return _line([student, *points.values(), total, visible(" ".join(note.splitlines()))])


def _line(cells: list[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(f"'{cell}" if str(cell).startswith(FORMULA) else cell for cell in cells)
    return line.getvalue()
