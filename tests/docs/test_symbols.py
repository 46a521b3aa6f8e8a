"""The page of symbols agrees with the tables of symbols on the pages of the ops, and no letter has two meanings on a page."""

import re

import pytest
from docs.test_pages import DOCS, OPS

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

ROW = re.compile(r"^\|(.*)\|$", re.M)
LINK = re.compile(r"\[[^\]]*\]\(([^)]*\.md)\)")


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.split("|")]


def symbols(cell: str) -> list[str]:
    """The symbols of a cell, without the formulas that define them."""
    return [symbol.partition(" = ")[0].strip() for symbol in re.findall(r"\$([^$]+)\$", cell)]


def tables() -> dict[str, list[list[str]]]:
    """The rows of each section of the page of symbols."""
    sections = re.split(r"^## ", (DOCS / "symbols.md").read_text(encoding="utf-8"), flags=re.M)[1:]
    return {section.splitlines()[0]: [cells(row) for row in ROW.findall(section)[2:]] for section in sections}


def of_pages() -> dict[str, dict[str, list[str]]]:
    """Every symbol of a page by the page's file: its row."""
    found = {}
    for title, rows in tables().items():
        if title == "On every page":
            continue
        for row in rows:
            (page,) = LINK.findall(row[-1])
            (symbol,) = re.findall(r"\$([^$]+)\$", row[0])
            assert symbol not in found.setdefault(page, {}), f"{page}: ${symbol}$ has two meanings"
            found[page][symbol] = row
    return found


@pytest.mark.parametrize("op", OPS)
def test_the_table_of_an_op_is_in_the_page_of_symbols(op):
    text = (DOCS / "ops" / f"{op}.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| symbol \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    rows, known = [cells(row) for row in ROW.findall(table)], of_pages()[f"ops/{op}.md"]
    rows = [row for row in rows if r"\g{" not in row[0]]  # gradients: on every page
    shown = [symbol for row in rows for symbol in symbols(row[0])]
    assert len(set(shown)) == len(shown) and set(shown) == set(known)
    for names, code, *_ in rows:
        listed = [name for symbol in symbols(names) for name in re.findall(r"`\w+`", known[symbol][3])]
        assert set(listed) == set(re.findall(r"`\w+`", code))


def test_every_symbol_is_in_the_formulas_of_its_page():
    for page, known in of_pages().items():
        text = (DOCS / page).read_text(encoding="utf-8")
        for symbol in known:
            letter = re.escape(re.sub(r"_.*|[(), ].*", "", symbol.lstrip("(")))
            assert re.search(rf"\$[^$]*(?<![A-Za-z\\]){letter}(?![A-Za-z])", text), f"{page} has no ${symbol}$"


def test_the_letters_of_every_page_are_those_of_the_design():
    letters = [letter for row in tables()["On every page"] for letter in symbols(row[0])]
    assert len(set(letters)) == len(letters) and set("BTSCHKRDFVN") < set(letters)


def test_a_page_that_uses_a_fixed_letter_for_something_else_is_named():
    (first,) = re.findall(r"^## On every page\n(.*?)^## ", (DOCS / "symbols.md").read_text(encoding="utf-8"), re.S | re.M)
    fixed = {letter for row in tables()["On every page"] for letter in symbols(row[0]) if letter.isupper()}
    others = {page for page, known in of_pages().items() for name in fixed & set(known) if known[name][1] != "the loss"}
    assert set(LINK.findall(first)) == others
