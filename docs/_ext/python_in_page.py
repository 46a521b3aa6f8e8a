"""Code cells and exercises that run in the page: what the scripts in docs/_static/python need of the build.

    ```{exercise} rmsnorm
    ```

shows the exercise's file, an editor for it and its check. ``{exercises}`` is the list of all, with what the reader has done.

Each page with code cells lists their sources, those that are not shown too; and the book gets the package as a wheel, whose only
dependency there is NumPy, and in book.zip what its cells import besides: the table of mistakes, and the examples.
"""

import json
from html import escape
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from page_files import WHEEL, cells_of, write_wheel, write_zip

from numllama.learn.exercises import EXERCISES, FUNCTIONS, exercise_text, folded_steps

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "_static/python"
SHOWN = EXERCISES | FUNCTIONS

EXERCISE = """\
<section class="exercise-in-page" data-exercise="{name}" aria-label="Exercise: {name}">
<p>Write the function that is left blank, and press Check: it says which results are right, and names the mistake if it knows it.
Nothing is installed; what you write stays in this browser. Three hints and the solution are folded below.</p>
<p class="without-python">This exercise runs in the page where its scripts can: serve the book's folder with
<code>python -m http.server</code>, and open it from there. In a terminal: <code>numllama exercises {name}</code>.</p>
<details><summary>{name}.py, with the function to write</summary>
<div class="highlight"><pre tabindex="0">{text}</pre></div>
</details>
</section>
"""


class ExerciseDirective(Directive):
    """An exercise's file, to be written and checked in the page; below it hints and the solution, folded."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        (name,) = self.arguments
        if name not in SHOWN:
            raise self.error(f"{name!r} is no exercise: there are {', '.join(SHOWN)}")
        hints = nodes.container(classes=["exercise-hints"])
        self.state.nested_parse(StringList(folded_steps(name).splitlines(), self.name), self.content_offset, hints)
        return [nodes.raw("", EXERCISE.format(name=name, text=escape(exercise_text(name))), format="html"), hints]


class ExercisesDirective(Directive):
    """All exercises in order, each a link to its page; the scripts add what the reader has done."""

    def run(self) -> list[nodes.Node]:
        rows = [f'<li data-exercise="{name}"><a href="{each.page}.html#exercises"><span><code>{name}</code>'
                f' {escape(each.title)}, {each.minutes} min</span> <span class="state"></span></a></li>'
                for name, each in SHOWN.items() if (ROOT / "docs" / f"{each.page}.md").exists()]  # fmt: skip
        return [nodes.raw("", '<ol class="exercises-in-page">\n' + "\n".join(rows) + "\n</ol>\n", format="html")]


def add_scripts(app, pagename, templatename, context, doctree) -> None:
    """Let a page with cells or exercises load the scripts."""
    if doctree is None:
        return
    cells = cells_of(Path(app.env.doc2path(pagename)).read_text(encoding="utf-8"))
    if cells or any("exercise" in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file("python/page.js", type="module")
        app.add_css_file("python/page.css")
        listed = json.dumps(cells, ensure_ascii=False).replace("<", "\\u003c")
        context["body"] += f'\n<script type="application/json" id="python-cells">{listed}</script>\n'


def write_archives(app, error) -> None:
    """Write the wheel and book.zip into the built book."""
    if error or app.builder.format != "html":
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_wheel(folder / WHEEL)
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes()
             for place in ("tests/mistakes", "examples") for path in sorted((ROOT / place).glob("*.py"))}  # fmt: skip
    write_zip(folder / "book.zip", files)
    (folder / "archives.json").write_text(json.dumps({"archives": [WHEEL, "book.zip"]}), encoding="utf-8")


def setup(app):
    app.add_directive("exercise", ExerciseDirective)
    app.add_directive("exercises", ExercisesDirective)
    app.connect("html-page-context", add_scripts)
    app.connect("build-finished", write_archives)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
