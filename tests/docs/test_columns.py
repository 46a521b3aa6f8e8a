"""Code on a page fits beside the two sidebars of a window that is 1280 pixels wide: 88 columns of its font.

tests/browser/test_book.py measures the built pages; this test names the lines, and needs no build.
"""

import re
from pathlib import Path
from textwrap import dedent

import pytest
from docs.test_pages import DOCS, INCLUDE, PAGES, options, page_id, source_of

WIDEST = 88
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

BLOCK = re.compile(r"^```(\S+)[^\n]*\n(.*?)^```$", re.S | re.M)
NO_CODE = {"{literalinclude}", "{toctree}", "{eval-rst}", "{raw}", "{table}", "{list-table}"}
WRAPPED = {"text"}                                                     # by the style sheet, like the output of cells
HIDDEN = re.compile(r"^:tags: *\[.*\bremove-(input|cell)\b", re.M)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_line_of_code_is_wider_than_its_box(page):
    text = page.read_text(encoding="utf-8")
    wide = [line for code in [*blocks(text), *excerpts(page, text)] for line in code.splitlines() if len(line) > WIDEST]
    assert not wide, f"over {WIDEST} columns:\n" + "\n".join(wide)


def blocks(text: str) -> list[str]:
    """The blocks of code on a page, and the cells whose input is shown."""
    found = [(kind, code) for kind, code in BLOCK.findall(text) if kind not in NO_CODE | WRAPPED]
    return [code for kind, code in found if not (kind == "{code-cell}" and HIDDEN.search(code))]


def excerpts(page: Path, text: str) -> list[str]:
    """The lines of other files that a page includes."""
    return [excerpt((page.parent / file).read_text(encoding="utf-8"), options(block)) for file, block in INCLUDE.findall(text)]


def excerpt(source: str, given: dict[str, str]) -> str:
    """What `literalinclude` shows of a source."""
    if "pyobject" in given:
        source = source_of(source, given["pyobject"])
    lines = source.splitlines()
    for option, keep in (("start-at", 0), ("start-after", 1)):
        if option in given:
            lines = lines[first(lines, given[option]) + keep :]
    for option, keep in (("end-at", 1), ("end-before", 0)):
        if option in given:
            lines = lines[: first(lines, given[option]) + keep]
    return dedent("\n".join(lines))


def first(lines: list[str], part: str) -> int:
    return next(i for i, line in enumerate(lines) if part in line)


@pytest.mark.parametrize(
    "given, shown",
    [
        ({}, "def f():\n    a = 1\n    b = 2\n\ndef g():\n    c = 3"),
        ({"pyobject": "f", "start-at": "a ="}, "a = 1\nb = 2"),
        ({"pyobject": "g", "start-after": "def"}, "c = 3"),
        ({"start-at": "a =", "end-before": "def g"}, "a = 1\nb = 2\n"),
        ({"start-at": "b =", "end-at": "b ="}, "b = 2"),
    ],
)
def test_an_excerpt_is_what_the_page_shows(given, shown):
    assert excerpt("def f():\n    a = 1\n    b = 2\n\ndef g():\n    c = 3\n", given) == shown
