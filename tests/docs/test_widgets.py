"""The interactive pictures of the book: each has a script, a picture for readers without scripts, and words with questions."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WIDGETS = DOCS / "_static" / "widgets"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")

CELL = re.compile(r"^```\{code-cell\} python\n(.*?)^```$\n*(.*?)(?=^```|\Z)", re.S | re.M)
SHOWN = [  # page, name, code and what follows, for each cell that ends with a widget
    (path.relative_to(DOCS).as_posix(), name[1], code, after)
    for path in sorted(DOCS.rglob("*.md"))
    if "_build" not in path.parts
    for code, after in CELL.findall(path.read_text(encoding="utf-8"))
    if (name := re.search(r'^Widget\("(\w+)"', code, re.M))
]


def test_each_widget_has_a_page_and_each_page_a_script():
    scripts = {path.stem for path in WIDGETS.glob("*.js")} - {"main", "shared"}
    assert sorted(name for _, name, _, _ in SHOWN) == sorted(scripts) and len(scripts) >= 7


@pytest.mark.parametrize("page, name, code, after", SHOWN, ids=lambda value: value if str(value).endswith(".md") else "")
def test_a_cell_draws_a_picture_too_and_words_with_questions_follow(page, name, code, after):
    assert re.search(r"^fig, ax", code, re.M), "readers without scripts see the cell's picture"
    assert code.rstrip().splitlines()[-1].startswith(f'Widget("{name}"')
    assert re.match(r":::\{container\} try-it\n\*\*Try it\.\*\* ", after)
    words = after.split("\n:::\n")[0]
    questions = re.findall(r"^\d\. .*?\?$", words, re.M | re.S)
    assert 1 <= len(questions) == words.count("<summary>Answer</summary>") == words.count("</details>")


def test_scripts_load_nothing_from_elsewhere():
    for path in WIDGETS.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w+|url\((?!#)", text), path.name
        for imported in re.findall(r'from "(.*?)"', text):
            assert (WIDGETS / imported).exists() and imported == "./shared.js"


@pytest.mark.parametrize("body, loads", [('<p>text</p>', False), ('<div class="widget" data-widget="softmax">', True)])
def test_only_pages_with_a_widget_load_the_script(monkeypatch, body, loads):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    monkeypatch.delitem(sys.modules, "widgets", raising=False)
    import widgets

    added, connected = [], {}
    app = SimpleNamespace(
        add_js_file=lambda name, **how: added.append((name, how)), add_css_file=lambda name: added.append((name, {})),
        connect=connected.__setitem__,
    )  # fmt: skip
    assert widgets.setup(app)["parallel_read_safe"]
    connected["html-page-context"](app, "page", "page.html", {"body": body}, None)
    files = [("widgets/widgets.css", {}), ("widgets/main.js", {"type": "module"})]
    assert added == (files if loads else [])
    assert all((DOCS / "_static" / name).exists() for name, _ in files)
    connected["html-page-context"](app, "search", "search.html", {}, None)  # a page without a body
