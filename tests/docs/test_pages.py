"""The pages of the book are complete, and the sources that they show exist. CI builds the book itself."""

import ast
import re
from pathlib import Path

import pytest
from mistakes import MISTAKES

import numllama as nl

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts and path.name != "paper.md"]
PARTS = {"__init__", "intervals", "linears", "load_balancing", "rope_scaling", "rope_table", "router"}  # on the page of another
OPS = sorted(path.stem for path in (ROOT / "numllama" / "ops").glob("*.py") if path.stem not in PARTS)
INCLUDE = re.compile(r"^```\{literalinclude\} (\S+)\n(.*?)^```$", re.S | re.M)
SECTIONS = ["What it is for", "Forward", "Backward", "A worked example", "The gradient check", "What breaks", "Cost", "Exercises"]


def page_id(page):
    return page.relative_to(DOCS).as_posix()


@pytest.mark.parametrize("op", OPS)
def test_every_op_has_a_page_with_every_section(op):
    text = (DOCS / "ops" / f"{op}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    shown = INCLUDE.findall(text)
    objects = {options(block)["pyobject"] for file, block in shown if file == f"../../numllama/ops/{op}.py"}
    assert {f"{op}_forward", f"{op}_backward"} <= objects
    assert "check(" in text and text.count("mistake(") >= 2
    assert f"numllama exercises {op}" in text
    assert f"\n{op}\n" in (DOCS / "ops" / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_lines_that_a_page_includes_are_there_once(page):
    for file, block in INCLUDE.findall(page.read_text(encoding="utf-8")):
        given = options(block)
        source = (page.parent / file).read_text(encoding="utf-8")
        if "pyobject" in given:
            source = source_of(source, given["pyobject"])
        for option in {"start-at", "start-after"} & set(given):
            assert source.count(given[option]) == 1, f"{file} holds this {source.count(given[option])} times: {given[option]}"
            source = source[source.index(given[option]) :]
        for option in {"end-at", "end-before"} & set(given):
            assert given[option] in source, f"{file} does not hold this: {given[option]}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_mistakes_that_a_page_makes_are_in_the_table(page):
    known = {mistake.what for mistake in MISTAKES}
    for what in re.findall(r'mistake\("(.*?)"\)', page.read_text(encoding="utf-8")):
        assert what in known, what


def test_a_page_shows_code_by_including_it():
    """A block of Python that nobody runs must not define what the package defines."""
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M):
            assert not re.search(r"^def \w+_(forward|backward)", block, re.M), page_id(page)


def test_the_public_names_are_in_the_reference():
    listed = set(re.findall(r"^\s+(\w+)$", (DOCS / "api" / "index.md").read_text(encoding="utf-8"), re.M))
    assert not set(nl.__all__) - {"ops"} - listed
    assert not {name for name in nl.ops.__all__ if name != "IGNORE"} - listed


def test_every_page_is_reached_from_the_start_page():
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        seen.add(page.resolve())
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.S | re.M):
            for entry in (line for line in block.splitlines() if line and not line.startswith(":")):
                name = entry.rpartition("<")[2].removesuffix(">")  # a shorter title may come before it
                todo.append(page.parent / f"{name}.md")
    assert seen == {page.resolve() for page in PAGES}


def options(block: str) -> dict[str, str]:
    """The options of a directive."""
    return dict(re.findall(r"^:([\w-]+): *(.*)$", block, re.M))


def source_of(source: str, name: str) -> str:
    """The lines of a function or class of a module."""
    (node,) = [node for node in ast.parse(source).body if getattr(node, "name", None) == name]
    return "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
