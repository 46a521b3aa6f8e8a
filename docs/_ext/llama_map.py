"""The whole Llama in one picture, drawn from docs/map.toml: large on its own page, small on each page about one of its boxes.

Boxes span the boxes they read, so that all lines are straight: down from op to op, right from the residual stream into a branch,
left from a branch back to the stream. Every box is drawn with the gradients that its backward returns; CSS shows them on demand.
"""

import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parents[1]
WIDTH, TOP, PITCH, BOX = 440, 4, 66, 42                                # of the picture; of a row and of a box
SPINE = 46                                                             # the residual stream's x
COLUMNS = {                                                            # left, width, and the x of its lines
    "spine": (16, 160, SPINE), "plus": (SPINE - 15, 30, SPINE),
    "branch": (100, 296, 248), "left half": (100, 143, 171), "right half": (253, 143, 325),
    "first": (100, 92, 146), "second": (202, 92, 248), "third": (304, 92, 350), "first two": (100, 194, 197),
    "whole": (16, 380, SPINE), "training": (16, 180, SPINE), "generation": (216, 180, 306),
}  # fmt: skip


class Box(NamedTuple):
    """A box of the picture with its place."""

    id: str
    label: str
    note: str
    gives: str
    page: str
    weights: bool
    inputs: list[tuple[str, str]]
    gradients: bool
    left: float
    top: float
    width: float
    line: float

    @property
    def middle(self) -> float:
        return self.top + BOX / 2

    @property
    def bottom(self) -> float:
        return self.top + BOX


class Line(NamedTuple):
    """An edge from (x, y) to (to_x, to_y), with the shape and the name of what flows along it."""

    x: float
    y: float
    to_x: float
    to_y: float
    shape: str
    name: str
    spine: bool

    @property
    def across(self) -> bool:
        return self.y == self.to_y

    @property
    def beside(self) -> float:
        """The y of the words beside it."""
        return self.y + 18 if self.spine or self.across else (self.y + self.to_y) / 2 + 3


@cache
def table() -> dict[str, Any]:
    """docs/map.toml: the rows ``box``, and the pages ``here``."""
    return tomllib.loads((DOCS / "map.toml").read_text(encoding="utf-8"))


@cache
def boxes() -> dict[str, Box]:
    """The boxes by name, each in its place."""
    placed = {}
    for row in table()["box"]:
        left, width, line = COLUMNS[row["column"]]
        inputs = [(name, shape) for name, shape in row.get("from", [])]
        placed[row["id"]] = Box(
            row["id"], row["label"], row.get("note", ""), row.get("gives", ""), row["page"], row.get("weights", False), inputs,
            row.get("gradients", True), left, TOP + PITCH * row["row"], width, line,
        )  # fmt: skip
    return placed


def height() -> float:
    return max(box.bottom for box in boxes().values()) + TOP


def lines_into(box: Box) -> list[Line]:
    """The edges that end at a box."""
    found = []
    for name, shape in box.inputs:
        if name == "stream":                                           # a branch reads the stream
            found.append(Line(SPINE, box.middle, box.left, box.middle, shape, "x", False))
            continue
        source = boxes()[name]
        if source.top == box.top:                                      # a branch joins the stream
            found.append(Line(source.left, box.middle, SPINE + 13, box.middle, shape, source.gives, False))
            continue
        x = min(source, box, key=lambda one: one.width).line
        start = source.middle + 13 if source.label == "+" else source.bottom
        end = box.middle - 13 if box.label == "+" else box.top
        on_spine = x == SPINE and {"+"} & {source.label, box.label} != set()
        found.append(Line(x, start, x, end, shape, source.gives, on_spine))
    return found


# ------------------------------------------------------------------------------------------------ the large picture


def framed(link: Callable[[str], str]) -> str:
    """The large picture below a switch that shows all gradients."""
    switch = '<input type="checkbox" id="map-gradients"><label for="map-gradients">Show the way back: the gradients</label>'
    return f'<div class="llama-map-frame">{switch}\n{large(link)}</div>\n'


def large(link: Callable[[str], str], lit: Iterable[str] = ()) -> str:
    """The picture with words, as SVG.

    Parameters
    ----------
    link : callable
        The address of a page, by its name.
    lit : iterable of str
        Boxes that are lit.
    """
    lit = set(lit)
    down = "\n".join(drawn(line) for box in boxes().values() for line in lines_into(box))
    parts = "\n".join(part(box, link(box.page), box.id in lit) for box in boxes().values())
    first, last = boxes()["attn_norm"], boxes()["add_ffn"]
    stream = (
        f'<a class="words" href="{escape(link("chapters/residual_stream"))}" aria-label="The residual stream">'
        f'<text transform="translate({SPINE - 11} {boxes()["softmax"].middle}) rotate(-90)">residual stream</text></a>'
    )
    return f"""<svg class="llama-map" viewBox="0 0 {WIDTH} {height():g}" role="group" aria-labelledby="map-title map-desc">
<title id="map-title">The whole Llama</title>
<desc id="map-desc">From tokens at the top to the loss at the bottom. Each box links to the page that derives it.</desc>
<defs>{arrow("map-down", 5, "M0 0L6 3L0 6z")}{arrow("map-up", 1, "M6 0L0 3L6 6z")}</defs>
<rect class="block" x="8" y="{first.top - 22:g}" width="{WIDTH - 12}" height="{last.bottom - first.top + 36:g}" rx="10"/>
<text class="shape" x="{WIDTH - 18}" y="{first.top - 8:g}" text-anchor="end">a block, N times</text>
{down}
{stream}
{parts}
</svg>"""


def arrow(name: str, tip: int, path: str) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 6 6" refX="{tip}" refY="3" markerWidth="6.5" markerHeight="6.5" orient="auto"'
        f' markerUnits="userSpaceOnUse"><path d="{path}"/></marker>'
    )


def drawn(line: Line) -> str:
    """An edge in the direction of forward, with its shape."""
    kind = "line spine" if line.spine else "line"
    path = f'<path class="{kind}" d="M{line.x:g} {line.y:g}L{line.to_x:g} {line.to_y - (not line.across):g}"/>'
    shape = f'<text class="shape" x="{line.x + 9:g}" y="{line.beside:g}">{escape(line.shape)}</text>'
    return path + (shape if line.shape else "")


def part(box: Box, href: str, lit: bool) -> str:
    """A box as a link, with the gradients that its backward returns: one upwards along each of its inputs."""
    back = "".join(map(gradient, lines_into(box) if box.gradients else []))
    name = escape(f"{box.label}: {box.note}" if box.note else "addition to the stream")
    shape, words = shape_of(box), ""
    if box.note:
        x = box.left + box.width / 2
        words = f'<text x="{x:g}" y="{box.top + 18:g}">{escape(box.label)}</text>'
        words += f'<text class="note" x="{x:g}" y="{box.top + 33:g}">{escape(box.note)}</text>'
    else:
        words = f'<path class="sign" d="M{SPINE - 6} {box.middle:g}h12M{SPINE} {box.middle - 6:g}v12"/>'
    kind = "part lit" if lit else "part"
    return f'<g class="{kind}"><g class="back">{back}</g><a href="{escape(href)}" aria-label="{name}">{shape}{words}</a></g>'


def gradient(line: Line) -> str:
    """The gradient of what flows along an edge, in the direction of backward, with its name."""
    if line.across:
        start, end = f"{line.x + (3 if line.x < line.to_x else -1):g} {line.y + 6:g}", f"H{line.to_x:g}"
        x, anchor = (line.x + line.to_x) / 2, "middle"
    else:
        start, end = f"{line.x - 5:g} {line.y + 1:g}", f"V{line.to_y:g}"
        x, anchor = line.x - 10, "end"
    return f'<path d="M{start}{end}"/><text x="{x:g}" y="{line.beside:g}" text-anchor="{anchor}">d{line.name}</text>'


def shape_of(box: Box) -> str:
    """A circle for an addition; a rectangle for any other op, with a bar at its left if it has weights."""
    if box.label == "+":
        return f'<circle cx="{SPINE}" cy="{box.middle:g}" r="13"/>'
    bar = f'<path class="bar" d="M{box.left + 3:g} {box.top + 8:g}v{BOX - 16}"/>' if box.weights else ""
    return f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" height="{BOX}" rx="6"/>{bar}'


# ------------------------------------------------------------------------------------------------ the small picture


def small(lit: Iterable[str] = (), across: bool = False) -> str:
    """The picture without words: from top to bottom, or across from left to right. Boxes have their name in ``data-box``."""
    lit = set(lit)

    def at(x: float, y: float, width: float, tall: float) -> str:
        x, y, width, tall = (y, x, tall, width) if across else (x, y, width, tall)
        return f'x="{x:g}" y="{y:g}" width="{width:g}" height="{tall:g}"'

    def kind(name: str) -> str:
        return f'data-box="{name}"' + (' class="lit"' if name in lit else "")

    first, last = boxes()["embedding"], boxes()["norm"]
    shapes = [f'<rect {kind("stream")} {at(SPINE - 5, first.bottom, 10, last.top - first.bottom)}/>']
    for box in boxes().values():
        if box.label == "+":
            cx, cy = (box.middle, SPINE) if across else (SPINE, box.middle)
            shapes.append(f'<circle {kind(box.id)} cx="{cx:g}" cy="{cy:g}" r="20"/>')
        else:
            shapes.append(f'<rect {kind(box.id)} {at(box.left, box.top, box.width, BOX)} rx="6"/>')
    size = f"{height():g} {WIDTH}" if across else f"{WIDTH} {height():g}"
    return f'<svg class="llama-here" viewBox="0 0 {size}" aria-hidden="true">{"".join(shapes)}</svg>'


def here(page: str, link: Callable[[str], str], across: bool) -> str:
    """The small picture with a page's boxes lit, as a link to the large one; empty for a page that is about no box."""
    entry = table()["here"].get(page)
    if entry is None:
        return ""
    kind = "you-are-here across" if across else "you-are-here"
    return (
        f'<a class="{kind}" href="{escape(link("map"))}">{small(entry["boxes"], across)}'
        f'<span><b>You are here</b> {escape(entry["says"])}</span></a>'
    )
