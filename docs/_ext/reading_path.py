"""The path through the book, from docs/path.toml: a line below each title, the map of all pages, the doors of the front page."""

import tomllib
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1]


class Entry(NamedTuple):
    """A page of the path: minutes to read, what must be read before, and what the reader can do afterwards."""

    page: str
    track: str
    minutes: int
    needs: list[str]
    can: str
    side: bool
    title: str


@cache
def tracks() -> dict[str, dict[str, str]]:
    return read()["tracks"]


@cache
def entries() -> dict[str, Entry]:
    """All pages of the path by name, in the order of reading."""
    rows = {page: row for page, row in read().items() if page != "tracks"}
    return {
        page: Entry(page, row["track"], row["minutes"], row["needs"], row["can"], row.get("side", False), row.get("title", ""))
        for page, row in rows.items()
    }


@cache
def read() -> dict[str, Any]:
    return tomllib.loads((DOCS / "path.toml").read_text(encoding="utf-8"))


def before(page: str) -> list[str]:
    """All pages that a page needs, and those that these need, in the order of reading."""
    found, todo = set(), list(entries()[page].needs)
    while todo:
        need = todo.pop()
        if need not in found:
            found.add(need)
            todo += entries()[need].needs
    return [name for name in entries() if name in found]


def on_track(track: str) -> list[Entry]:
    return [entry for entry in entries().values() if entry.track == track]


def neighbours(page: str) -> tuple[str, str]:
    """The pages before and after one on its track; the front page before the first, and the path after the last."""
    track = ["index", *(entry.page for entry in on_track(entries()[page].track)), "path"]
    i = track.index(page)
    return track[i - 1], track[i + 1]


def total(pages: list[Entry]) -> int:
    return sum(entry.minutes for entry in pages)


def duration(minutes: int) -> str:
    """A time in words: 15 min, 1 h, 2 h 5 min."""
    hours, rest = divmod(minutes, 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0 or hours == 0))


def counted(pages: list[Entry]) -> str:
    return f"{len(pages)} pages, {duration(total(pages))}"


# ------------------------------------------------------------------------------------------------ HTML


class Links(NamedTuple):
    """The address and the title of a page."""

    address: Callable[[str], str]
    title: Callable[[str], str]

    def to(self, page: str, title: str = "", hint: str = "") -> str:
        hint = f' title="{escape(hint)}"' if hint else ""
        return f'<a href="{escape(self.address(page))}"{hint}>{escape(title or self.title(page))}</a>'


def line(page: str, links: Links) -> str:
    """Below a title: the time, what to read before, and what the reader can do afterwards."""
    entry = entries().get(page)
    if entry is None:
        return ""
    after = f" · after {' and '.join(links.to(need) for need in entry.needs)}" if entry.needs else ""
    time = f'<a href="{escape(links.address("path"))}" title="The path through the book">{duration(entry.minutes)}</a>'
    return f'<div class="on-the-path"><p class="time">{time}{after}</p><p>After this page you can {escape(entry.can)}</p></div>'


def path_map(links: Links) -> str:
    """The map of the path: a line of stations for each track; side pages branch off below the last page that they need."""
    return '<div class="path-map">' + "".join(track_map(track, links) for track in tracks()) + "</div>"


def track_map(track: str, links: Links) -> str:
    pages = on_track(track)
    main = [entry for entry in pages if not entry.side]
    branches: dict[str, list[Entry]] = {entry.page: [] for entry in main}
    for entry in pages:
        if entry.side:
            branches[branching_point(entry)].append(entry)
    stations = "".join(
        station(entry, links, "".join(station(side, links) for side in branches[entry.page])) for entry in main
    )
    about = tracks()[track]
    return (
        f'<section class="track" aria-labelledby="track-{track}"><h2 id="track-{track}">{escape(about["title"])}</h2>'
        f'<p class="sum">{counted(pages)}</p><p>{escape(about["what"])}</p><ol>{stations}</ol></section>'
    )


def branching_point(entry: Entry) -> str:
    """The page of the main line after which a side page can be read: the last that it needs."""
    return [page for page in before(entry.page) if not entries()[page].side and entries()[page].track == entry.track][-1]


def station(entry: Entry, links: Links, sides: str = "") -> str:
    """A page on the map."""
    earlier = before(entry.page)
    route = duration(total([entries()[page] for page in earlier]) + entry.minutes)
    sum_ = f'<span class="route">{len(earlier) + 1} pages, {route} in all</span>' if earlier else ""
    needs = f' data-needs="{escape(" ".join(earlier))}"' if earlier else ""
    hint = f"After it you can {entry.can}"
    inner = f"<ol>{sides}</ol>" if sides else ""
    return (
        f'<li data-page="{escape(entry.page)}"{needs}><div>{links.to(entry.page, entry.title, hint)} '
        f'<span class="minutes">{duration(entry.minutes)}</span>{sum_}</div>{inner}</li>'
    )


def doors(links: Links) -> str:
    """The three doors of the front page: a sentence, the first step, and the length of each track."""
    cards = ""
    for track in ("learn", "use", "check"):
        about, pages = tracks()[track], on_track(track)
        first = entries()[about["first"]]
        cards += (
            f'<section class="door"><h2>{escape(about["title"])}</h2><p>{escape(about["what"])}</p>'
            f'<p class="first">First: {links.to(first.page)}, {duration(first.minutes)}</p>'
            f'<p class="sum"><a href="{escape(links.address("path"))}#track-{track}">{counted(pages)}</a></p></section>'
        )
    return f'<div class="doors">{cards}</div>'
