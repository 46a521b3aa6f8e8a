"""A comparison as text, as JSON, and as one self-contained HTML page with heat maps."""

import itertools
import json
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from numllama.errors import DataError, NumllamaError
from numllama.learn.compare import OTHERS, SAME, Comparison, Judged, compare
from numllama.learn.trace_page import STYLE, image, pictures
from numllama.learn.trace_report import shape_of
from numllama.storage.files import read_json, strict, write_text

FEW = 3  # rows that are the same, in succession
WORDS = {"same": "the same", "wrong": "WRONG", "follows": "follows", "unjudged": "its forward is wrong"}


def compare_run(
    reference: str,
    dump: Path,
    names: Path | None,
    ids: tuple[int, ...] | None,
    dtype: str | None,
    as_json_text: bool,
    html: Path | None,
    every_row: bool = False,
) -> int:
    """`numllama compare`: print the comparison, and write the page; returns the exit code: 0 the same, 1 different."""
    comparison = compare(reference, dump, names=read_names(names), tokens=None if ids is None else [ids], dtype=dtype)
    if html is not None:
        write_text(html, as_html(comparison), NumllamaError)
    print(as_json(comparison) if as_json_text else as_text(comparison, every_row))
    return 0 if comparison.same else 1


def read_names(path: Path | None) -> dict[str, str] | None:
    """A map of names from a JSON file."""
    if path is None:
        return None
    names = read_json(path, DataError)
    if not all(isinstance(value, str) for value in names.values()):
        raise DataError(f"{path} must map each name in the dump to one of golden vectors")
    return names


def verdict(comparison: Comparison) -> str:
    """The result in a few sentences."""
    if comparison.same:
        return f"The same: {len(comparison.judged)} tensors, as close as {comparison.dtype} allows."
    found = [sentence for sentence in (comparison.forward, comparison.backward, comparison.others) if sentence]
    return "\n".join(found) or "No op is wrong alone, but rounding adds up to more than it should."


def as_text(comparison: Comparison, every_row: bool = False) -> str:
    """A table in the order of computation, forward and then backward, and the verdict.

    Many rows in succession that are the same become one, unless `every_row`.
    """
    lines = [f"{'':34} {'shape':>14} {'error':>9} {'allowed':>9} {'alone':>9}  {'largest at':16} verdict"]
    for title, group in _groups(comparison.judged):
        lines.append(title)
        for same, run in itertools.groupby(group, key=lambda each: each.verdict == SAME):
            rows = [_line(each) for each in run]
            short = same and len(rows) > FEW and not every_row
            lines += [f"  ... {len(rows) - 1} that are the same", rows[-1]] if short else rows
    return "\n".join([*lines, "", *comparison.notes, verdict(comparison)])


def _groups(judged: list[Judged]) -> Iterator[tuple[str, list[Judged]]]:
    """Forward, backward, and vectors beside the model's values; none that is empty."""
    kinds: dict[str, list[Judged]] = {"forward": [], "backward": [], "optimizer, decoding, sampling": []}
    for each in judged:
        kinds[list(kinds)[2 if each.name.startswith(OTHERS) else int(each.name.startswith("d_"))]].append(each)
    return ((title, group) for title, group in kinds.items() if group)


def _line(each: Judged) -> str:
    alone = "" if math.isnan(each.alone) else f"{each.alone:.1e}"
    index = "" if each.verdict == SAME else str(each.index)
    errors = f"{each.error:9.1e} {each.allowed:9.1e} {alone:>9}"
    return f"  {each.name:32} {shape_of(each.ours):>14} {errors}  {index:16} {WORDS[each.verdict]}"


def as_json(comparison: Comparison) -> str:
    """Everything but the tensors."""
    return json.dumps(strict(as_dict(comparison)), ensure_ascii=False, indent=1)


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain values for JSON; an error that was not needed is None."""
    tensors = [
        {
            "name": each.name, "shape": list(each.ours.shape), "verdict": each.verdict, "error": each.error,
            "allowed": each.allowed, "alone": None if math.isnan(each.alone) else each.alone, "index": list(each.index),
            "layout": each.layout,
        }
        for each in comparison.judged
    ]  # fmt: skip
    return {
        "same": comparison.same, "dtype": comparison.dtype, "forward": comparison.forward, "backward": comparison.backward,
        "others": comparison.others, "notes": comparison.notes, "tensors": tensors,
    }  # fmt: skip


def as_html(comparison: Comparison) -> str:
    """One HTML page."""
    rows = "\n".join(_row(each) for each in comparison.judged)
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison.notes)
    sentences = "".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(comparison).split("\n"))
    kind = "same" if comparison.same else "wrong"
    return PAGE.format(style=STYLE.read_text(encoding="utf-8"), verdict=sentences, notes=notes, rows=rows, kind=kind)


def _row(each: Judged) -> str:
    """A row of the table; pictures of what differs only."""
    cells = [
        f"<th>{escape(each.name)}<small>{shape_of(each.ours)} {escape(each.layout)}</small></th>",
        f"<td>{each.error:.1e}<small>allowed {each.allowed:.1e}</small></td><td>{WORDS[each.verdict]}</td>",
    ]
    if each.verdict != SAME and each.ours.ndim >= 2:
        error = each.theirs - each.ours
        cells += [f"<td>{_pictures(value)}</td>" for value in (each.theirs, each.ours, error)]
    else:
        cells.append('<td colspan="3"></td>')
    return f'<tr class="{each.verdict}">{"".join(cells)}</tr>'


def _pictures(value: Any) -> str:
    finite = value.copy()
    finite[~(abs(finite) < math.inf)] = 0
    return pictures(finite) if finite.ndim > 2 else image(finite, float(abs(finite).max()))


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>numllama compare</title>
<style>
{style}
:root {{ --wrong: #b2182b; --wrong-page: #fdf3f2; --same: #1b7837; --same-page: #f1f8f2 }}
@media (prefers-color-scheme: dark) {{
  :root {{ --wrong: #f4a09a; --wrong-page: #2c1c1e; --same: #7fc99a; --same-page: #182620 }}
}}
body {{ max-width: 75rem; margin-bottom: 2rem }}
img {{ width: 110px }}
.verdict {{ border-left: 4px solid var(--wrong); padding: .1rem 1rem; background: var(--wrong-page) }}
.verdict.same {{ border-color: var(--same); background: var(--same-page) }}
tr.wrong td:nth-child(3) {{ color: var(--wrong); font-weight: 600 }}
tr.same td {{ color: var(--quiet) }}
</style>
<h1>Another implementation beside the reference</h1>
<div class="verdict {kind}">{verdict}</div>
<ul>{notes}</ul>
<p>In the order of computation, forward and then backward. A value that <em>follows</em> differs only because its inputs do. In
the pictures, red is positive, blue negative, and zero has the colour of the page.</p>
<div class="wide"><table>
<tr><th>tensor</th><th>error</th><th>verdict</th><th>theirs</th><th>reference</th><th>difference</th></tr>
{rows}
</table></div>
</html>
"""
