"""Downloaded notebooks run, and their links point to the book, in any folder."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
LABELS = {
    label: (path.relative_to(DOCS).with_suffix("").as_posix(), label)
    for path in DOCS.rglob("*.md")
    for label in re.findall(r"^\(([\w-]+)\)=$", path.read_text(encoding="utf-8"), re.M)
}
PAGES = sorted(path for path in (DOCS / "notebooks").glob("*.md") if path.stem != "index")


@pytest.fixture
def downloads(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "downloads", raising=False)
    import downloads

    return downloads


def notebook(path):
    """A page as a Jupyter notebook."""
    parts = re.split(r"^```\{code-cell\} python\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.S | re.M)
    kinds = ["markdown", "code"] * len(parts)
    cells = [
        {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}
        for kind, text in zip(kinds, parts, strict=False)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def sources(made, kind):
    return "\n".join("".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == kind)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_downloaded_notebook_points_to_pages_and_installs_from_the_sources(downloads, page, tmp_path):
    made = downloads.portable(notebook(page), "notebooks", "file:///book", str(ROOT), LABELS)
    text, code = sources(made, "markdown"), sources(made, "code")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    for link in links:
        source = link.removeprefix("file:///book/").partition("#")[0].removesuffix(".html") + ".md"
        assert link.startswith("file:///book/") and (DOCS / source).exists(), link
    assert "{nb-download}" not in text
    assert f'%pip install -q "{ROOT}[plot]"' in code
    magic = [line for line in code.splitlines() if line.strip()[:1] == "%"]
    assert [line for line in magic if not re.match(r" *%(pip install|matplotlib inline)", line)] == []
    for module in re.findall(r"^ *(?:from|import) (\w+)", code, re.M):
        assert module in ("numllama", "numpy", "matplotlib", *sys.stdlib_module_names), module


@pytest.mark.parametrize(
    "before, after",
    [
        ("see [x](../ops/a.md).", "see [x](B/ops/a.html)."),
        ("[x](other.md#here) and [y](../index.md)", "[x](B/notebooks/other.html#here) and [y](B/index.html)"),
        ("![picture](../_static/loss.png)", "![picture](B/_static/loss.png)"),
        ("[x](https://a.org/b.md) [y](#here) [z](mailto:a@b.c)", "[x](https://a.org/b.md) [y](#here) [z](mailto:a@b.c)"),
        ("# Title\n\nDownload: {nb-download}`a.ipynb`\n\nText", "# Title\n\nText"),
        ("$f(x)$ [0](y)", "$f(x)$ [0](B/notebooks/y)"),
        ("[x](#label)", "[x](B/references.html#place)"),
    ],
)
def test_links_of_every_kind(downloads, before, after):
    cell = {"cell_type": "markdown", "source": before}
    (made,) = downloads.portable({"cells": [cell]}, "notebooks", "B", "", {"label": ("references", "place")})["cells"]
    assert "".join(made["source"]) == after


@pytest.mark.parametrize("published", ["", "https://numllama.example/book/"])
def test_all_downloads_of_a_book_are_rewritten(downloads, tmp_path, published):
    path = tmp_path / "_downloads" / "abc" / "attention.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(notebook(DOCS / "notebooks" / "attention.md")))
    env = SimpleNamespace(domains={"std": SimpleNamespace(anonlabels=LABELS)})
    app = SimpleNamespace(outdir=str(tmp_path), config=SimpleNamespace(html_baseurl=published), env=env)
    downloads.rewrite_all(app, ValueError("the book could not be built"))
    assert "../ops/attention.md" in path.read_text(encoding="utf-8")
    downloads.rewrite_all(app, None)
    made = json.loads(path.read_text(encoding="utf-8"))
    base = published.rstrip("/") or tmp_path.as_uri()
    assert f"[attention]({base}/ops/attention.html)" in sources(made, "markdown")
    assert f'%pip install -q "{"numllama" if published else ROOT}[plot]"' in sources(made, "code")
