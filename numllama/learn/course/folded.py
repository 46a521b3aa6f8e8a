"""Hints and solutions as parts of a page that are folded until somebody opens them."""

from html import escape

from numllama.learn.course.files import solution_text
from numllama.learn.course.report import grouped
from numllama.learn.course.table import find_exercise

STEPS = ("the idea", "the equation to start from", "the line in words")


def folded(name: str) -> str:
    """The hints and the solution of an exercise below a line that names it, as Markdown with HTML's details."""
    return _details(f"<code>{name}</code>: {escape(find_exercise(name).title)}", folded_steps(name))


def folded_steps(name: str) -> str:
    """The hints in three steps, then the solution."""
    exercise = find_exercise(name)
    parts = []
    for number, what in enumerate(STEPS):
        hints = grouped(exercise.hints).items()
        lines = [f"- <code>{escape(', '.join(names))}</code>: {_text(steps[number])}" for names, steps in hints]
        parts.append(_details(f"Hint {number + 1}: {what}", "\n".join(lines)))
    language = "diff" if exercise.kind == "bug" else "python"
    parts.append(_details("Solution", f"```{language}\n{solution_text(name)}\n```"))
    return "\n\n".join(parts)


def _text(hint: str) -> str:
    """A hint that Markdown leaves as it is."""
    return "".join(f"\\{each}" if each in "\\`*_[]<>#|$^" else each for each in hint)


def _details(summary: str, body: str) -> str:
    """A part with a summary that opens it."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
