"""The helpers of the book's pages work in notebooks and scripts of readers."""

import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def run(code, folder, **hidden):
    """Run a script in another folder, without the packages that only the build of the book needs."""
    names = ["IPython", "matplotlib_inline", *hidden]
    hide = f"import sys\nfor name in {names}: sys.modules[name] = None\n"
    environment = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "MPLCONFIGDIR": str(folder), "PATH": "", "HOME": str(folder)}
    command = [sys.executable, "-c", hide + code]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")


def cells(page):
    """The code of a page, one cell after another."""
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{code-cell\} python\n(.*?)^```$", text, re.S | re.M)
    return "\n".join("\n".join(line for line in block.splitlines() if not re.match(r":\w+:", line)) for block in blocks)


@pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
@pytest.mark.parametrize("page", ["start.md", "ops/linear.md", "ops/rmsnorm.md"])
def test_the_code_of_a_page_runs_as_it_stands(page, tmp_path):
    ended = run(cells(page), tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "error" in ended.stdout and "backward" in ended.stdout
    if page.startswith("ops/"):
        assert "GradientError: " in ended.stdout and "```diff" in ended.stdout


@pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
def test_every_page_imports_what_a_reader_can_import():
    pages = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
    texts = {path.name: path.read_text(encoding="utf-8") for path in pages}
    assert [name for name, text in texts.items() if re.search(r"^(from|import) book\b", text, re.M)] == []
    assert sum("from numllama.learn.book import *" in text for text in texts.values()) > 25


def test_without_matplotlib_it_says_what_to_install(tmp_path):
    ended = run("from numllama.learn.book import *; plt.subplots()", tmp_path, matplotlib=None)
    assert ended.returncode == 1
    words = f'numllama.errors.NumllamaError: the pictures of the book need matplotlib: pip install -e "{ROOT}[plot]"'
    assert ended.stderr.splitlines()[-1] == words


def test_mistakes_are_made_in_a_checkout_only(tmp_path):
    code = "import numllama.learn.book as book\nbook.PACKAGE = book.Path('nowhere/numllama')\nbook.mistake('x')"
    ended = run(code, tmp_path)
    assert ended.stderr.splitlines()[-1].endswith("mistakes need a checkout of numllama, because they are in its tests")


@pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
def test_every_name_that_a_page_imports_from_numllama_is_there():
    for page in sorted(DOCS.rglob("*.md")):
        if "_build" in page.parts or "generated" in page.parts:
            continue
        for module, names in re.findall(r"^from (numllama[\w.]*) import ([\w, ]+)$", cells(page.relative_to(DOCS)), re.M):
            for name in names.split(", "):
                loaded = import_module(module)
                is_module = hasattr(loaded, "__path__") and find_spec(f"{module}.{name}")
                assert hasattr(loaded, name) or is_module, f"{page}: {module} has no {name}"


def test_an_interactive_picture_holds_its_numbers_exactly_and_a_pdf_shows_nothing_of_it():
    from numllama.learn.book import Widget

    data = {"x": [0.1 + 0.2, -1e-300], "words": ["</script>", "ä"]}
    picture = Widget("softmax", data)
    before, after = '<div class="widget" data-widget="softmax"><script type="application/json">', "</script></div>"
    text = re.fullmatch(f"{before}(.*?){after}", picture._repr_html_())[1]
    assert json.loads(text) == data
    assert picture._repr_markdown_() == ""
    assert repr(picture) == "<softmax: interactive in the book>"
    with pytest.raises(ValueError, match="Out of range float"):
        Widget("softmax", {"x": [float("nan")]})._repr_html_()         # JSON has none
