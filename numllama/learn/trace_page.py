"""The parts of a trace's page: pictures whose numbers can be pointed at, tables of coloured cells, and one file around them."""

import base64
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np

BLUE, RED = np.array([33, 102, 172]), np.array([178, 24, 43])
STYLE, SCRIPT = (Path(__file__).with_name(f"trace_page.{suffix}") for suffix in ("css", "js"))


def page(title: str, lead: str, tokens: Sequence[str], sections: Sequence[tuple[str, str, str]]) -> str:
    """One HTML file.

    Parameters
    ----------
    title, lead : str
        The lead is HTML.
    tokens : sequence of str
        Of the text, to name places.
    sections : sequence of (str, str, str)
        A title, a paragraph, and HTML.
    """
    body = "\n".join(f"<h2>{escape(name)}</h2>\n<p>{text}</p>\n{content}" for name, text, content in sections)
    names = json.dumps([repr(token) for token in tokens]).replace("<", "\\u003c")
    return PAGE.format(
        title=escape(title), lead=lead, body=body, tokens=names,
        style=STYLE.read_text(encoding="utf-8"), script=SCRIPT.read_text(encoding="utf-8"),
    )  # fmt: skip


def numbers_of(identity: str, name: str, axes: str, **arrays: np.ndarray) -> str:
    """Attributes of the element that holds the numbers of pictures: ``value``, and ``gradient`` if there is one."""
    data = {kind: base64.b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode() for kind, array in arrays.items()}
    numbers = " ".join(f'data-{kind}="{text}"' for kind, text in data.items())
    return f'id="{identity}" data-name="{escape(name)}" data-axes="{escape(axes)}" {numbers}'


def pictures(value: np.ndarray, of: str = "", kind: str = "value") -> str:
    """Heat maps of an array's last two axes: red is positive, blue negative, zero has no colour. `of` holds their numbers."""
    if value.ndim < 2:
        return ""
    most = float(np.abs(value).max())
    return "".join(image(plane, most, of, kind, i) for i, plane in enumerate(value.reshape(-1, *value.shape[-2:])))


def attention_maps(title: str, maps: np.ndarray, names: Sequence[str], tokens: Sequence[str], of: str) -> str:
    """The attention maps (H, T, T) of some heads by their names, with the tokens along the sides."""
    seen = "".join(f"<span>{escape(shown(token))}</span>" for token in tokens)
    figures = "".join(
        f'<figure><figcaption>{name}</figcaption><div class="keys">{seen}</div><div class="queries">{seen}</div>'
        f"{image(plane, 1.0, of, 'value', h, title=name)}</figure>"
        for h, (name, plane) in enumerate(zip(names, maps, strict=True))
    )
    long = " long" if max(map(len, tokens)) > 1 else ""  # long tokens need room
    return f'<h3>{escape(title)}</h3><div class="heads{long}" style="--n: {len(tokens)}">{figures}</div>'


def grid(
    caption: str, rows: Sequence[str], columns: Sequence[str], shares: np.ndarray, cell: Callable[[int, int], tuple[str, str]]
) -> str:
    """A table of coloured cells.

    Parameters
    ----------
    caption : str
    rows, columns : sequence of str
    shares : array, shape (rows, columns)
        The colours: 1 is red, -1 blue, and 0 has none.
    cell : callable
        (row, column) -> the cell's text, and the sentence that is shown where it is pointed at.
    """

    def drawn(r: int, c: int) -> str:
        text, tip = cell(r, c)
        colour = colours(0.6 * shares[r, c]).tobytes().hex()           # the text stays readable
        return f'<td style="background:#{colour}" data-tip="{escape(tip)}">{escape(text)}</td>'

    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(drawn(r, c) for c in range(len(columns)))}</tr>'
        for r, name in enumerate(rows)
    )
    table = f"<caption>{escape(caption)}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="grid">{table}</table></div>'


def image(plane: np.ndarray, most: float, of: str = "", kind: str = "value", index: int = 0, title: str = "") -> str:
    """A matrix as a picture with one pixel per number: plane `index` of the `kind` of numbers that the element `of` holds."""
    height, width = plane.shape
    data = base64.b64encode(png(colours(plane / (most or 1.0)))).decode()
    place = f' data-of="{of}" data-kind="{kind}" data-plane="{index}"' if of else ""
    return f'<img alt="{escape(title)}" width="{width}" height="{height}"{place} src="data:image/png;base64,{data}">'


def colours(share: np.ndarray) -> np.ndarray:
    """Red above 0, blue below, the more opaque the larger, for any background: bytes of shape (..., 4)."""
    share = np.clip(share, -1, 1)[..., None]
    return np.concatenate((np.where(share > 0, RED, BLUE), (255 * np.abs(share)).round()), axis=-1).astype(np.uint8)


def png(colours: np.ndarray) -> bytes:
    """A PNG file from colours, bytes of shape (rows, columns, 4)."""
    height, width, _ = colours.shape
    lines = b"".join(b"\0" + line.tobytes() for line in colours)  # 0: unfiltered

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)     # 8 bits, red green blue alpha
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def shown(token: str) -> str:
    """A token with a visible space or newline."""
    return token.replace(" ", "␣").replace("\n", "⏎")


PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
<h1>{title}</h1>
<p>{lead}</p>
{body}
<script type="application/json" id="tokens">{tokens}</script>
<script type="module">
{script}</script>
</html>
"""
