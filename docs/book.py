"""What the pages of the book share: they print alike, check gradients alike, and make the test-suite's mistakes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib_inline.backend_inline import set_matplotlib_formats
from mistakes import MISTAKES

import numllama
from numllama.gradcheck import GradientError, gradcheck

PACKAGE = Path(numllama.__file__).parent

np.set_printoptions(precision=4, suppress=True, linewidth=100)
set_matplotlib_formats("svg")
plt.rcParams.update({
    "figure.figsize": (6.4, 2.8), "figure.constrained_layout.use": True, "svg.fonttype": "path",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False,
})  # fmt: skip


def show(**arrays) -> None:
    """Print each array below its name and shape."""
    for name, value in arrays.items():
        value = np.asarray(value)
        shape = f" {value.shape}" if value.shape else ""
        print(f"{name}{shape}\n{value}" if value.ndim > 1 else f"{name}{shape} = {value}")


def check(forward: Callable, backward: Callable, args: Sequence, names: Sequence[str]) -> None:
    """A gradient check, with one line for each argument and direction; a wrong gradient ends it with its sentence."""
    wrt = [i for i, arg in enumerate(args) if getattr(arg, "dtype", None) == np.float64]
    name_of = dict(zip(wrt, names, strict=True))
    try:
        for result in gradcheck(forward, backward, args):
            print(f"{name_of[result.argument]:8} differences {result.numeric:+.12f}   backward {result.analytic:+.12f}   "
                  f"error {result.error:.0e}, allowed {result.bound:.0e}")  # fmt: skip
    except GradientError as error:
        print(f"GradientError: {error}")


def mistake(what: str) -> ModuleType:
    """A module with one of the mistakes of `tests/mistakes.py` made in it; shows what was changed."""
    (entry,) = [entry for entry in MISTAKES if entry.what == what]
    source = (PACKAGE / entry.file).read_text(encoding="utf-8")
    assert source.count(entry.right) == 1
    name = "numllama." + entry.file.removesuffix(".py").replace("/", ".")
    module = ModuleType(name)
    exec(compile(source.replace(entry.right, entry.wrong), entry.file, "exec"), module.__dict__)
    lines = [f"- {line}" for line in entry.right.strip().splitlines()] + [f"+ {line}" for line in entry.wrong.strip().splitlines()]
    display(Markdown("```diff\n" + "\n".join(lines) + "\n```"))
    return module
