"""The course of eight weeks: what a page or an exercise needs comes before it; times and points are those of the other tables."""

import json
import re
import sys
from pathlib import Path

import pytest

from numllama.learn.course.class_report import mark_class
from numllama.learn.exercises import COURSE

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")


@pytest.fixture
def syllabus(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    for name in ("syllabus", "reading_path"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import syllabus

    return syllabus


@pytest.fixture
def links(syllabus):
    return syllabus.Links(lambda page: f"{page}.html", lambda page: f"<{page}>")


def test_there_are_eight_weeks_with_something_to_read_and_to_do(syllabus):
    assert [week.number for week in syllabus.weeks()] == list(range(1, 9))
    for week in syllabus.weeks():
        assert week.pages and week.exercises and week.title and week.task.endswith("."), week.number
        assert re.fullmatch(r"[a-z].*[^.]\.", week.can) and 25 < len(week.can) < 140


def test_what_a_page_needs_is_read_before_it(syllabus):
    entries, seen = syllabus.reading_path.entries(), set()
    for week in syllabus.weeks():
        for page in week.pages:
            assert set(entries[page].needs) <= seen, f"week {week.number}: {page}"
            assert page not in seen, f"week {week.number}: {page} again"
            seen.add(page)


def test_what_an_exercise_needs_is_done_before_it(syllabus):
    done = set()
    for week in syllabus.weeks():
        for name in [*week.exercises, *week.homework]:
            assert set(COURSE[name].needs) <= done, f"week {week.number}: {name}"
            assert name not in done, f"week {week.number}: {name} again"
            done.add(name)


def test_a_page_is_read_by_the_week_in_which_its_exercise_begins(syllabus):
    read = set()
    for week in syllabus.weeks():
        read |= set(week.pages)
        for name in week.exercises:
            assert COURSE[name].page in read or name == "softcap", name   # a warm-up: the chain rule


def test_the_capstone_is_handed_in_at_the_end_after_weeks_of_work(syllabus):
    working = [week.number for week in syllabus.weeks() if week.capstone]
    assert working == [5, 6, 7, 8]
    assert [week.number for week in syllabus.weeks() if syllabus.CAPSTONE in week.exercises] == [8]
    assert sum(week.practice for week in syllabus.weeks()) == sum(
        COURSE[name].minutes for week in syllabus.weeks() for name in week.exercises + week.homework
    )


def test_a_week_can_be_done(syllabus):
    for week in syllabus.weeks():
        assert 30 <= week.reading <= 120 and 20 <= week.practice <= 330, (week.number, week.reading, week.practice)


def test_times_and_points_are_computed(syllabus):
    first = syllabus.weeks()[0]
    assert first.reading == sum(syllabus.reading_path.entries()[page].minutes for page in first.pages)
    assert first.points == sum(COURSE[name].points for name in ("linear", "embedding", "bug_01", "bug_02", "bug_03", "bpe"))
    text = (DOCS / "syllabus.toml").read_text(encoding="utf-8")
    assert not re.search(r"^(minutes|points|hours)\b", text, re.M)


def test_the_page_shows_each_week(syllabus, links):
    page = syllabus.page(links)
    for week in syllabus.weeks():
        assert f'id="week-{week.number}"' in page and f'href="slides/week-{week.number}.html"' in page
        for name in week.pages:
            assert f'href="{name}.html"' in page
        for name in week.exercises + week.homework:
            assert f"<code>{name}</code>" in page or name == syllabus.CAPSTONE
    total = sum(week.points for week in syllabus.weeks())
    assert f">{total}<" in page and f">{total - COURSE['llama'].points}<" in page


def test_one_command_gives_all_points_of_the_page(syllabus, links, tmp_path, capsys):
    page = syllabus.page(links)
    command = re.search(r"To mark a class in everything.*?<code>(numllama grade FOLDER .*?)</code>", page)[1].split()
    assert command[:4] == ["numllama", "grade", "FOLDER", "--exercises"]
    (tmp_path / "anna").mkdir()
    assert mark_class(tmp_path, command[4:], 60, (), "json") == 1
    (anna,) = json.loads(capsys.readouterr().out)["students"]
    total = sum(week.points for week in syllabus.weeks())
    assert anna["of"] == total and f"<td class=\"text-right\">{total}</td>" in page
    assert mark_class(tmp_path, ["all"], 60, (), "json") == 1
    (anna,) = json.loads(capsys.readouterr().out)["students"]
    assert f"adds the {anna['of'] - total} points" in page


def test_a_task_may_link_to_a_section_that_exists(syllabus, links):
    for week in syllabus.weeks():
        for page, section in re.findall(r"\]\((.+?)#(.+?)\)", week.task + week.capstone):
            assert f"\n## {section}\n" in (DOCS / f"{page}.md").read_text(encoding="utf-8").lower()
    shown = syllabus.inline("Do [a & b](ops/rope#cost) with `--all`.", links)
    assert shown == 'Do <a href="ops/rope.html#cost">a &amp; b</a> with <code>--all</code>.'
    assert 'href="ops/rmsnorm.html#exercises"' in syllabus.page(links)


@pytest.mark.parametrize("share, total, points", [(0.5, 200, 100), (0.5, 201, 101), (0.9, 200, 180), (0.75, 203, 153)])
def test_a_mark_needs_at_least_its_share(share, total, points, syllabus):
    assert syllabus.least(share, total) == points


def test_a_teacher_finds_it():
    for page in ("index.md", "exercises.md", "grade.md", "path.md"):
        assert "](syllabus.md" in (DOCS / page).read_text(encoding="utf-8"), page
