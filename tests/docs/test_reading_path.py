"""The path through the book: each page has its entry, prerequisites come first, and times are added up right."""

import re
import sys
from pathlib import Path

import pytest

from numllama.learn.exercises import EXERCISES, FUNCTIONS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
BUILT = {"_build", "generated", "jupyter_execute", "paper.md"}  # the paper is no page of the book
PAGES = {
    path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md") if not BUILT & set(path.parts)
} - {"index", "path"}  # fmt: skip


@pytest.fixture
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    monkeypatch.delitem(sys.modules, "reading_path", raising=False)
    import reading_path

    return reading_path


@pytest.fixture
def links(path):
    return path.Links(lambda page: f"{page}.html", lambda page: f"<{page}>")


def test_every_page_has_an_entry_and_every_entry_a_page(path):
    assert set(path.entries()) == PAGES


def test_neighbours_are_those_on_the_track(path):
    assert path.neighbours("start") == ("index", "ops/linear")
    assert path.neighbours("ops/linear") == ("start", "exercises")
    for track in ("learn", "use", "check"):
        pages = [entry.page for entry in path.on_track(track)]
        assert [path.neighbours(page)[1] for page in pages] == [*pages[1:], "path"]
        assert [path.neighbours(page)[0] for page in pages] == ["index", *pages[:-1]]


def test_what_a_page_needs_comes_before_it(path):
    seen = set()
    for entry in path.entries().values():
        assert set(entry.needs) <= seen, entry.page                    # so there is no cycle
        seen.add(entry.page)


def test_the_path_the_menu_and_the_course_have_one_order(path):
    course = [each.page for each in (EXERCISES | FUNCTIONS).values()]
    assert set(course) <= PAGES and [page for page in path.entries() if page in course] == course
    menu = re.search(r"```{toctree}\n(.*?)```", (DOCS / "ops" / "index.md").read_text(encoding="utf-8"), re.S)[1].split()
    assert [f"ops/{name}" for name in menu if f"ops/{name}" in course] == [page for page in course if page.startswith("ops/")]
    assert path.entries()["exercises"].needs == course[:1]             # as soon as there is one to do


def test_the_first_page_for_those_who_have_a_model_opens_it(path):
    page = (DOCS / f"{path.tracks()['use']['first']}.md").read_text(encoding="utf-8")
    assert "path/to/model" in re.search(r"```sh\n(.*?)```", page, re.S)[1]


def test_no_page_on_a_line_needs_one_beside_it(path):
    for entry in path.entries().values():
        if not entry.side:
            assert not [need for need in entry.needs if path.entries()[need].side], entry.page


def test_all_that_comes_before(path):
    assert path.before("start") == []
    assert path.before("ops/attention") == ["start", "ops/linear", "ops/softmax", "ops/rope"]


def test_each_track_begins_with_a_page_that_needs_nothing(path):
    for track, about in path.tracks().items():
        first = path.entries()[about["first"]]
        assert first == path.on_track(track)[0] and first.needs == []
    assert {entry.track for entry in path.entries().values()} == set(path.tracks())


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_reader_can_do_something_and_the_time_fits_the_page(page, path):
    entry = path.entries()[page]
    assert re.fullmatch(r"[a-z].*[^.]\.", entry.can) and 25 < len(entry.can) < 140
    assert not re.match(r"(understand|know|learn|be able)\b", entry.can), "name a thing to do"
    words = len((DOCS / f"{page}.md").read_text(encoding="utf-8").split())
    assert entry.track == "find" or words / 200 <= entry.minutes <= words / 25 + 4, f"{words} words"
    assert entry.minutes >= 1


def test_no_two_pages_promise_the_same(path):
    assert len({entry.can for entry in path.entries().values()}) == len(path.entries())


@pytest.mark.parametrize("minutes, text", [(0, "0 min"), (15, "15 min"), (60, "1 h"), (125, "2 h 5 min")])
def test_a_time_in_words(minutes, text, path):
    assert path.duration(minutes) == text


def in_minutes(text):
    return sum(int(number) * {"h": 60, "min": 1}[unit] for number, unit in re.findall(r"(\d+) (h|min)", text))


def test_the_times_on_the_map_add_up(path, links):
    shown = path.path_map(links)
    tracks = re.split(r"<section ", shown)[1:]
    assert len(tracks) == 4
    pages = []
    for track in tracks:
        count, time = re.search(r'class="sum">(\d+) pages, ([^<]*)<', track).groups()
        stations = re.findall(r'<li data-page="([^"]*)".*?class="minutes">([^<]*)<', track)
        assert len(stations) == int(count)
        assert sum(in_minutes(minutes) for _, minutes in stations) == in_minutes(time)
        pages += [page for page, _ in stations]
    assert sorted(pages) == sorted(PAGES)                              # each once
    for page, needs, route in re.findall(r'data-page="([^"]*)" data-needs="([^"]*)".*?class="route">([^<]*)<', shown):
        needs = needs.split()
        assert needs == path.before(page)
        minutes = sum(path.entries()[name].minutes for name in [*needs, page])
        assert route == f"{len(needs) + 1} pages, {path.duration(minutes)} in all"


def test_the_line_below_a_title(path, links):
    made = path.line("ops/attention", links)
    assert ">30 min</a> · after " in made
    assert '<a href="ops/softmax.html">&lt;ops/softmax&gt;</a> and <a href="ops/rope.html">' in made
    assert "After this page you can write causal attention" in made
    assert " · after " not in path.line("start", links)
    assert path.line("genindex", links) == ""


def test_the_doors_name_the_first_step_and_the_time_of_each_track(path, links):
    doors = path.doors(links).split("<section ")[1:]
    assert [re.search("<h2>(.*?)</h2>", door)[1] for door in doors] == ["Learn", "Use", "Check yours"]
    for door, track in zip(doors, ("learn", "use", "check"), strict=True):
        assert f'href="{path.tracks()[track]["first"]}.html"' in door
        assert f'href="path.html#track-{track}">{path.counted(path.on_track(track))}<' in door
