"""Each displayed equation of the book, evaluated literally, against the code.

`equations/PAGE.py` belongs to the page of that name. Its function `name` belongs to the equation with the label `PAGE-name`.
It yields pairs: the equation evaluated literally, in loops over small arrays, and the result of the code. A third item is the
tolerance, if it is more than rounding.
"""

import importlib
import inspect
import re
from pathlib import Path

import pytest
from helpers import assert_close

DOCS = Path(__file__).parents[2] / "docs"
MODULES = [path.stem for path in sorted((Path(__file__).parent / "equations").glob("*.py")) if path.stem != "common"]
needs_the_book = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")


def evaluations() -> dict:
    """The evaluations by label. A function name that is already taken ends with an underscore, which the label lacks."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"docs.equations.{name}")
        for what, function in inspect.getmembers(module, inspect.isgeneratorfunction):
            if function.__module__ == module.__name__:
                found[f"{name}-{what.rstrip('_')}".replace("_", "-")] = function
    return found


EVALUATIONS = evaluations()


def displayed(page: Path) -> list[str | None]:
    """The labels of a page's displayed equations, None for one without."""
    text = re.sub(r"^(```+|:::+)\{?code.*?^\1$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [label or None for label in re.findall(r"^ *\$\$\n.*?^ *\$\$(?: \(([\w-]+)\))?$", text, flags=re.S | re.M)]


PAGES = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]


@pytest.mark.parametrize("label", EVALUATIONS)
def test_an_equation_is_what_the_code_computes(label):
    pairs = list(EVALUATIONS[label]())
    assert pairs
    for literal, actual, *rtol in pairs:
        assert_close(actual, literal, *(rtol or [1e-11]))


@needs_the_book
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_equation_of_a_page_has_a_label_and_an_evaluation(page):
    labels = displayed(page)
    assert None not in labels, "a displayed equation has no label"
    assert not [label for label in labels if label not in EVALUATIONS], "equations that nothing evaluates"
    assert all(label.startswith(page.stem.replace("_", "-") + "-") for label in labels), "labels begin with the page's name"
    assert page.read_text(encoding="utf-8").count("$$") == 2 * len(labels), "$$ stands on lines of its own"


@needs_the_book
def test_every_evaluation_belongs_to_an_equation_and_every_label_is_there_once():
    labels = [label for page in PAGES for label in displayed(page)]
    assert sorted(labels) == sorted(EVALUATIONS)
