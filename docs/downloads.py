"""Downloadable notebooks: their links point to the book, so that they work in any folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?![a-z]+:|/)([^)#\s]*)(#[^)\s]*)?\)")
DOWNLOAD = re.compile(r"^.*\{nb-download\}.*\n*", re.M)
CHECKOUT = '"../..['  # from docs/notebooks, where the pages are


def rewrite_all(app: Any, exception: Exception | None) -> None:
    """Rewrite the notebooks of a finished book; Sphinx calls this at the end of a build."""
    if exception is not None:
        return
    out, published = Path(app.outdir), app.config.html_baseurl
    for path in sorted(out.glob("_downloads/*/*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        base = published or out.resolve().as_uri()
        checkout = "numllama" if published else str(ROOT)          # a name is found on PyPI
        made = portable(notebook, "notebooks", base.rstrip("/"), checkout, app.env.domains["std"].anonlabels)
        path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def portable(
    notebook: dict[str, Any], folder: str, base: str, checkout: str, labels: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    """A notebook that can be moved.

    Parameters
    ----------
    notebook : dict
        The contents of its file.
    folder : str
        The folder of its page in the book.
    base : str
        The book's address, without a trailing slash.
    checkout : path as str
        What the notebook installs if numllama is missing: the folder of its sources, or its name on PyPI.
    labels : mapping of str to (str, str)
        The page and the anchor of every label in the book, for links of the form ``#label``.
    """

    def absolute(link: re.Match) -> str:
        path, place = link[1], link[2] or ""
        if path:
            path = re.sub(r"[.]md$", ".html", normpath(PurePosixPath(folder) / path))
        elif place[1:] in labels:
            path, place = f"{labels[place[1:]][0]}.html", f"#{labels[place[1:]][1]}"
        else:  # a heading of the notebook itself
            return link[0]
        return f"]({base}/{path}{place})"

    def changed(cell: dict[str, Any]) -> dict[str, Any]:
        source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = LINK.sub(absolute, DOWNLOAD.sub("", source))
        elif cell["cell_type"] == "code":
            source = source.replace(CHECKOUT, f'"{checkout}[')
        return {**cell, "source": source.splitlines(keepends=True)}

    return {**notebook, "cells": [changed(cell) for cell in notebook["cells"]]}
