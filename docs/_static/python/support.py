"""What a page calls in its Python: run a cell, or check an exercise. Arguments and results are JSON, for any engine to call."""

import ast
import io
import json
import os
import sys
import tempfile
import traceback
import types
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER / "examples"), str(FOLDER / "tests")]
MOST_PRINTED = 100_000  # characters of a cell
shown: list[dict[str, str]] = []  # outputs of the cell that runs
cells = {"__name__": "__main__"}  # what the cells of the page define


class Printed(io.TextIOBase):
    """Standard output: text in its place among the other outputs."""

    def write(self, text):
        if shown and shown[-1]["kind"] == "text":
            shown[-1]["text"] = (shown[-1]["text"] + text)[:MOST_PRINTED]
        elif text:
            shown.append({"kind": "text", "text": text})
        return len(text)


def display(*values):
    """What a notebook calls so, for text, Markdown and pictures."""
    for value in values:
        for kind, method in (("markdown", "_repr_markdown_"), ("svg", "_repr_svg_")):
            if hasattr(value, method) and (text := getattr(value, method)()):
                shown.append({"kind": kind, "text": text})
                break
        else:
            shown.append({"kind": "text", "text": repr(value) + "\n"})


class Markdown(str):
    def _repr_markdown_(self):
        return str(self)


class SVG(str):
    def _repr_svg_(self):
        return str(self)


def as_module(name, **names):
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(names)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules.get(parent) or as_module(parent), child, module)
    return module


as_module("IPython", get_ipython=lambda: None, version_info=(9, 0))  # which matplotlib asks
as_module("IPython.display", display=display, Markdown=Markdown, SVG=SVG, HTML=str)
as_module("matplotlib_inline.backend_inline", set_matplotlib_formats=lambda *_: None)


def ready(_):
    """Which versions there are. numllama itself is imported without NumPy."""
    import numllama

    return {"python": sys.version.split()[0], "numllama": numllama.__version__}


def run_cell(given):
    """The outputs of a cell, or the package that it lacks."""
    shown.clear()
    with redirect_stdout(Printed()), redirect_stderr(Printed()):
        try:
            run(given["code"], f"cell {given['number']}")
            show_figures()
        except BaseException as error:
            if name := missing(error):
                return {"missing": name}
            shown.append({"kind": "error", "text": in_words(error)})
    return {"outputs": [*shown]}


def run(code, name):
    """Run a cell; the value of a last expression is displayed, unless a semicolon ends it."""
    tree = ast.parse(code, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) and not code.rstrip().endswith(";") else None
    exec(compile(tree, name, "exec"), cells)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), cells)
        if value is not None:
            display(value)


def show_figures():
    """Show what matplotlib has drawn, as a notebook does after a cell."""
    plt = sys.modules.get("matplotlib.pyplot")
    for number in plt.get_fignums() if plt else ():
        file = io.StringIO()
        plt.figure(number).savefig(file, format="svg")
        shown.append({"kind": "svg", "text": file.getvalue()})
    if plt:
        plt.close("all")


def missing(error):
    """The package whose import has failed, however that is put by those who wanted it."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__ or error.__context__
    return ""


def in_words(error):
    """The traceback, without this file's own lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    lines = traceback.format_list(frames) + traceback.format_exception_only(type(error), error)
    return "".join(["Traceback (most recent call last):\n"] * bool(frames) + lines)


def check(given):
    """The results of an exercise's check."""
    from numllama.learn.course.check import check as checked
    from numllama.learn.course.report import said

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{given['name']}.py"
        path.write_text(given["text"], encoding="utf-8")
        try:
            found = checked(path, given["name"])
        except BaseException as error:
            if name := missing(error):
                return {"missing": name}
            raise
    results = said(found)
    message = found.message if found.results else ""
    for each in results:
        each["sentences"] = [sentence.replace(f"{folder}/", "") for sentence in each["sentences"]]
    return {"printed": found.printed, "message": message, "results": results}


def call(name, given):
    """Call a function of this file by name."""
    return json.dumps({"ready": ready, "run_cell": run_cell, "check": check}[name](json.loads(given)))
