"""Helpers for the pages of the book: print arrays, check gradients, make the test suite's mistakes, show interactive pictures.

    from numllama.learn.book import *

also imports ``np`` and ``plt``, and works in notebooks and scripts. The mistakes need a checkout, because they are in the tests.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from numllama.errors import NumllamaError
from numllama.gradcheck import GradientError, gradcheck
from numllama.install import install_command
from numllama.system.webassembly import IN_WEBASSEMBLY

try:
    from IPython.display import Markdown, display
except ImportError:  # a script
    Markdown, display = str, print

PACKAGE = Path(__file__).parents[1]

np.set_printoptions(precision=4, suppress=True, linewidth=92)
STYLE: Any = {
    "figure.figsize": (6.4, 2.8), "figure.constrained_layout.use": True, "svg.fonttype": "path",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
}  # fmt: skip


class Pyplot:
    """matplotlib.pyplot in the book's style, imported when it is first used: a page that runs in a browser loads it only then."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_pyplot(), name)


@cache
def _pyplot() -> ModuleType:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise NumllamaError(f"the pictures of the book need matplotlib: {install_command('plot')}") from error
    with suppress(ImportError):  # a script
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg")
    pyplot.rcParams.update(STYLE)
    return pyplot


plt = Pyplot()
if display is not print and not IN_WEBASSEMBLY:
    _pyplot()  # a notebook draws the figures of other modules too, such as the examples', once pyplot is there


def show(**arrays) -> None:
    """Print each array below its name and shape."""
    for name, value in arrays.items():
        value = np.asarray(value)
        shape = f" {value.shape}" if value.shape else ""
        print(f"{name}{shape}\n{value}" if value.ndim > 1 else f"{name}{shape} = {value}")


def check(forward: Callable, backward: Callable, args: Sequence, names: Sequence[str]) -> None:
    """Run a gradient check and print one line for each argument and direction, or the error."""
    lines = []
    wrt = [i for i, arg in enumerate(args) if getattr(arg, "dtype", None) == np.float64]
    name_of = dict(zip(wrt, names, strict=True))
    try:
        for result in gradcheck(forward, backward, args):
            lines.append(f"{name_of[result.argument]:8} differences {result.numeric:+.12f}   backward {result.analytic:+.12f}   "
                         f"error {result.error:.0e}, allowed {result.bound:.0e}")  # fmt: skip
    except GradientError as error:
        lines.append(f"GradientError: {error}")
    print("\n".join(lines))  # in one call: a notebook may put empty lines between several


def mistake(what: str) -> ModuleType:
    """The module with one of the mistakes in `tests/mistakes/`; displays the change."""
    entry = find_mistake(what)
    lines = [f"{sign} {line}" for sign, text in (("-", entry.right), ("+", entry.wrong)) for line in text.strip().splitlines()]
    display(Markdown("\n".join(["```diff", *lines, "```"])))
    return made(entry)


def find_mistake(what: str) -> Any:
    """The mistake's row in the table: description, file, right and wrong text, and the test that catches it."""
    tests = str(PACKAGE.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    try:
        table = import_module("mistakes").MISTAKES
    except ImportError as error:
        raise NumllamaError("mistakes need a checkout of numllama, because they are in its tests") from error
    (entry,) = [entry for entry in table if entry.what == what]
    return entry


def made(entry: Any) -> ModuleType:
    """The module with the mistake."""
    source = (PACKAGE / entry.file).read_text(encoding="utf-8")
    assert source.count(entry.right) == 1
    module = ModuleType("numllama." + entry.file.removesuffix(".py").replace("/", "."))
    exec(compile(source.replace(entry.right, entry.wrong), entry.file, "exec"), module.__dict__)
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", "") == module.__name__ and hasattr(value, "reference"):
            setattr(module, name, value.reference)  # a faster function has no mistake
    return module


class Widget:
    """An interactive picture, where scripts run; elsewhere readers see the other output of its cell.

    Parameters
    ----------
    name : str
        The script in ``docs/_static/widgets`` that draws it.
    data : mapping
        What it draws: numbers, strings, lists and mappings.
    """

    def __init__(self, name: str, data: Mapping[str, Any]) -> None:
        self.name, self.data = name, data

    def _repr_html_(self) -> str:
        data = json.dumps(self.data, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
        return f'<div class="widget" data-widget="{self.name}"><script type="application/json">{data}</script></div>'

    def _repr_markdown_(self) -> str:
        return ""  # a PDF shows the cell's picture alone

    def __repr__(self) -> str:
        return f"<{self.name}: interactive in the book>"


@contextmanager
def making(what: str) -> Iterator[None]:
    """Run the whole package with a mistake in one of its ops, inside this context."""
    wrong = made(find_mistake(what))
    right = sys.modules[wrong.__name__]
    changed = []
    for module in [module for name, module in sys.modules.items() if name.startswith("numllama")]:
        for name, value in list(vars(module).items()):
            if callable(value) and getattr(value, "__module__", "") == right.__name__ and hasattr(wrong, name):
                changed.append((module, name, value))
                setattr(module, name, getattr(wrong, name))
    try:
        yield
    finally:
        for module, name, value in changed:
            setattr(module, name, value)
