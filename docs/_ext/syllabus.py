"""A course of eight weeks, from docs/syllabus.toml: what each week reads, does and can, with times and points of other tables."""

import re
import tomllib
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import reading_path
from reading_path import Links, duration

from numllama.learn.exercises import COURSE

DOCS = Path(__file__).resolve().parents[1]
CAPSTONE = "llama"
COURSE_POINTS = sum(each.points for each in COURSE.values())


class Week(NamedTuple):
    """A week of the course."""

    number: int
    title: str
    can: str
    pages: list[str]
    exercises: list[str]
    homework: list[str]
    task: str
    capstone: str

    @property
    def deck(self) -> str:
        """The page of the week's slides."""
        return f"slides/week-{self.number}"

    @property
    def reading(self) -> int:
        return sum(reading_path.entries()[page].minutes for page in self.pages)

    @property
    def practice(self) -> int:
        """Minutes of exercises, in class and at home, with this week's share of the capstone."""
        return self.on_capstone + sum(COURSE[name].minutes for name in self.exercises + self.homework if name != CAPSTONE)

    @property
    def on_capstone(self) -> int:
        """Minutes of this week's share of the capstone."""
        return COURSE[CAPSTONE].minutes // sum(bool(week.capstone) for week in weeks()) if self.capstone else 0

    @property
    def points(self) -> int:
        return sum(COURSE[name].points for name in self.exercises + self.homework)


@cache
def read() -> dict[str, Any]:
    return tomllib.loads((DOCS / "syllabus.toml").read_text(encoding="utf-8"))


@cache
def weeks() -> list[Week]:
    """The weeks in order."""
    return [Week(number, capstone=row.pop("capstone", ""), **row) for number, row in enumerate(map(dict, read()["week"]), 1)]


# ------------------------------------------------------------------------------------------------ HTML


def page(links: Links) -> str:
    """The page of the syllabus: all weeks in a table, each week, and the marks."""
    return f'<div class="syllabus">{overview(links)}{"".join(one_week(week, links) for week in weeks())}{marks()}</div>'


def table(head: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A table of HTML cells, the last ``numbers`` columns of which hold numbers."""

    def row(cells: list[str], tag: str) -> str:
        first = len(cells) - numbers
        return "".join(f'<{tag} class="text-right">{cell}</{tag}>' if i >= first else f"<{tag}>{cell}</{tag}>"
                       for i, cell in enumerate(cells))  # fmt: skip

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    table = f'<table class="table"><thead><tr>{row(head, "th")}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="pst-scrollable-table-container">{table}</div>'


def overview(links: Links) -> str:
    """A row for each week, and their sums."""
    rows = [
        [str(week.number), f'<a href="#week-{week.number}">{escape(week.title)}</a>', slides(week, links, f"week {week.number}"),
         duration(week.reading), duration(week.practice), str(week.points)]
        for week in weeks()
    ]  # fmt: skip
    sums = [sum(getattr(week, what) for week in weeks()) for what in ("reading", "practice", "points")]
    rows.append(["", "<b>in all</b>", "", duration(sums[0]), duration(sums[1]), str(sums[2])])
    return table(["week", "topic", "slides", "reading", "exercises", "points"], rows, numbers=3)


def inline(text: str, links: Links) -> str:
    """Text of the table of weeks as HTML, with its `code` and its [links](to/pages#sections)."""

    def link(match: re.Match) -> str:
        page, _, section = match[2].partition("#")
        return f'<a href="{links.address(page)}{"#" * bool(section)}{section}">{match[1]}</a>'

    return re.sub(r"\[(.+?)\]\((.+?)\)", link, re.sub("`(.+?)`", r"<code>\1</code>", escape(text)))


def on_capstone(week: Week, links: Links) -> str:
    """What to do on the capstone in a week."""
    return f'<a href="{escape(links.address("grade"))}">Capstone</a>: {inline(week.capstone, links)}'


def slides(week: Week, links: Links, text: str) -> str:
    return f'<a href="{escape(links.address(week.deck))}">{text}</a>'


def one_week(week: Week, links: Links) -> str:
    """A week: what one can do after it, its pages, its exercises, its homework."""
    pages = "".join(f"<li>{links.to(name)}, {duration(reading_path.entries()[name].minutes)}: "
                    f"{escape(reading_path.entries()[name].can)}</li>" for name in week.pages)  # fmt: skip
    in_class = [name for name in week.exercises if name != CAPSTONE]
    marked = in_class + week.homework
    parts = [
        f"<p>After this week you can {escape(week.can)}</p>",
        f"<h3>Lecture and reading, {duration(week.reading)}</h3>",
        f"<p>{slides(week, links, f'Slides of week {week.number}')}</p><ol>{pages}</ol>",
        f"<h3>Exercises, {duration(week.practice)}</h3>",
        f"<p>In class: {named(in_class)}.</p>" if in_class else "",
        f"<p>At home: {f'{named(week.homework)}. ' if week.homework else ''}{inline(week.task, links)}</p>",
        f"<p>{on_capstone(week, links)}</p>" if week.capstone else "",
        f"<p>To mark a class: <code>{to_mark(marked)}</code></p>" if marked else "",
    ]
    heading = f'<h2 id="week-{week.number}">Week {week.number}: {escape(week.title)}</h2>'
    return f'<section aria-labelledby="week-{week.number}">{heading}{"".join(parts)}</section>'


def to_mark(exercises: list[str]) -> str:
    """The command that marks exercises of a class."""
    return f"numllama grade FOLDER --exercises {' '.join(exercises)}"


def named(exercises: list[str]) -> str:
    """Exercises with their points."""
    return ", ".join(f"<code>{name}</code> ({points(COURSE[name].points)})" for name in exercises)


def points(number: int) -> str:
    return f"{number} point{'s' * (number != 1)}"


def marks() -> str:
    """How many points there are, and from how many a mark is given."""
    total, capstone = sum(week.points for week in weeks()), COURSE[CAPSTONE].points
    command = to_mark([name for week in weeks() for name in week.exercises + week.homework])
    parts = [["exercises", str(total - capstone)], ["the capstone", str(capstone)], ["<b>in all</b>", str(total)]]
    scheme = [[escape(mark), f"{share:.0%}", str(least(share, total))] for mark, share in read()["marks"].items()]
    return (
        '<section aria-labelledby="marks"><h2 id="marks">Marks</h2>'
        + table(["", "points"], parts, numbers=1)
        + f"<p>To mark a class in everything, once it has handed in the capstone (<code>--exercises all</code> adds the "
        f"{COURSE_POINTS - total} points of exercises that no week has): <code>{command}</code></p>"
        + "<p>A proposal for marks, by shares that <code>docs/syllabus.toml</code> sets:</p>"
        + table(["mark", "from", "points"], scheme, numbers=2)
        + "</section>"
    )


def least(share: float, total: int) -> int:
    """The fewest points that are at least a share of all."""
    return -int(-round(share * total, 6) // 1)
