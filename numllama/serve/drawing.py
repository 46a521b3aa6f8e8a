"""Pictures for the page, as HTML and SVG: tokens with their probabilities, attention maps, loss curves."""

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from itertools import pairwise

import numpy as np

from numllama.errors import visible

COLOURS = 6  # of tokens, in turn; see style.css
WIDTH, HEIGHT, LEFT, RIGHT, ABOVE, BELOW = 720, 300, 52, 24, 16, 30  # of a loss curve, in SVG units
MAX_POINTS = 600  # of a curve; more would not be visible


# ------------------------------------------------------------------------------------------------ tokens


def token_span(text: str, place: int, logprob: float | None = None, top_logprobs: Sequence[tuple[str, float]] = ()) -> str:
    """A coloured token. With a log-probability, its alternatives appear on hover.

    Parameters
    ----------
    text : str
    place : int
        Its position in the text, which chooses the colour.
    logprob : float, optional
    top_logprobs : sequence of (str, float)
        The likeliest tokens in its place and their log-probabilities.
    """
    look = f"token c{place % COLOURS}"
    if logprob is None:
        return f'<span class="{look} given">{_visible(text)}</span>'
    p = math.exp(logprob)
    rows = "".join(_row(name, math.exp(other), name == text) for name, other in top_logprobs)
    if all(name != text for name, _ in top_logprobs):
        rows += _row(text, p, True)
    tip = f'<span class="tip"><b>{_name(text)}</b>: {percent(p)}<span class="rows">{rows}</span></span>'
    return f'<span class="{look}" tabindex="0" style="--p:{p:.3f}">{_visible(text)}{tip}</span>'


def percent(p: float) -> str:
    """A probability as a percentage."""
    return f"{100 * p:.0f} %" if p > 0.1 else f"{100 * p:.1f} %" if p > 0.0005 else "&lt; 0.1 %"


def _row(name: str, p: float, chosen: bool) -> str:
    return (
        f'<span class="row{" chosen" if chosen else ""}"><span class="name">{_name(name)}</span>'
        f'<span class="bar"><i style="width:{100 * p:.1f}%"></i></span><span class="p">{percent(p)}</span></span>'
    )


def _name(text: str) -> str:
    """A token with visible spaces."""
    return _visible(text.replace(" ", "␣")).rstrip("\n")


def _visible(text: str) -> str:
    """Escaped text with visible control characters; newlines are marked and kept."""
    return escape(visible(text)).replace("\n", "↵\n").replace("\t", "⇥") or "∅"


# ------------------------------------------------------------------------------------------------ attention


def attention_map(weights: np.ndarray, labels: Sequence[str]) -> str:
    """One head's attention weights (T, T): a row for each query token, a column for each key token."""
    T, cell = len(labels), 18
    margin = 18 + 7 * max(len(_short(label)) for label in labels)
    size = margin + cell * T
    parts = [f'<svg class="map" viewBox="0 0 {size} {size}" style="min-width:{min(size, 15 * T + margin)}px;max-width:{size}px">']
    for i, label in enumerate(labels):
        at, name = margin + cell * (i + 0.72), _name(_short(label))
        parts.append(f'<text x="{margin - 6}" y="{at:.1f}" text-anchor="end">{name}</text>')
        parts.append(f'<text transform="translate({at:.1f} {margin - 6}) rotate(-90)">{name}</text>')
    for t, row in enumerate(weights):
        for s, weight in enumerate(row[: t + 1]):
            title = f"{_name(labels[t])} attends to {_name(labels[s])}: {percent(float(weight))}"
            place = f'x="{margin + cell * s}" y="{margin + cell * t}" width="{cell - 1}" height="{cell - 1}"'
            parts.append(f'<rect {place} fill-opacity="{0.04 + 0.96 * float(weight):.3f}"><title>{title}</title></rect>')
    return "".join([*parts, "</svg>"])


def head_strip(weights: np.ndarray, chosen: int) -> str:
    """Thumbnails of all heads (H, T, T), side by side."""
    heads = (
        f'<span class="{"head chosen" if h == chosen else "head"}"><img alt="head {h}" src="{png(1 - np.sqrt(head))}">{h}</span>'
        for h, head in enumerate(weights)
    )
    return f'<div class="heads">{"".join(heads)}</div>'


def png(values: np.ndarray) -> str:
    """A grey picture as a data URL: 0 is black, 1 is white."""
    grey = (np.asarray(values).clip(0, 1) * 255).round().astype(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in grey)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", grey.shape[1], grey.shape[0], 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{b64encode(content).decode()}"


def _short(label: str) -> str:
    return label if len(label) <= 8 else f"{label[:7]}…"


# ------------------------------------------------------------------------------------------------ a loss curve


def loss_curve(lines: Sequence[dict]) -> str:
    """Plot the lines of a metrics.jsonl: each step's loss, its running mean, and the validation estimates."""
    lines = [line for line in lines if math.isfinite(line["loss"])]
    if not lines:
        return '<p class="note">No step has been logged yet.</p>'
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    val = [(line["step"], line["val_loss"]) for line in lines if math.isfinite(line.get("val_loss", math.nan))]
    every = [*losses, *(loss for _, loss in val)]
    low, high = min(every), max(every)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(loss: float) -> float:
        return ABOVE + (high - loss) / max(high - low, 1e-9) * (HEIGHT - ABOVE - BELOW)

    def path(points: Sequence[tuple[float, float]], look: str) -> str:
        return f'<polyline class="{look}" points="{" ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in points)}"/>'

    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    grid += "".join(
        f'<text x="{x(t):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{t:g}</text>'
        for t in nice_ticks(first, last)
        if first <= t <= last
    )
    points = list(zip(steps, losses, strict=True))
    dots = "".join(
        f'<circle class="val" cx="{x(s):.1f}" cy="{y(v):.1f}" r="4"><title>step {s}: {v:.4f}</title></circle>' for s, v in val
    )
    curves = path(thinned(points), "each") + path(thinned(running_mean(points)), "mean") + path(val, "valline") + dots
    legend = '<p class="legend"><i class="mean"></i> loss, running mean <i class="val"></i> validation estimate</p>'
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss curve">{grid}{curves}</svg>{legend}'


def running_mean(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential running mean of the points."""
    mean, out = points[0][1], []
    weight = min(1.0, 80 / len(points))  # averages about a hundredth of the curve: smooth, with little lag
    for i, (step, loss) in enumerate(points):
        mean += (loss - mean) * max(weight, 3 / (i + 3))  # less averaging at first, where the loss falls fast
        out.append((step, mean))
    return out


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """At most MAX_POINTS of the points, including the last."""
    if len(points) <= MAX_POINTS:
        return points
    bounds = [len(points) * i // MAX_POINTS for i in range(MAX_POINTS + 1)]
    return [points[stop - 1] for _, stop in pairwise(bounds)]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that span low..high."""
    span = max(high - low, 1e-9)
    unit = 10.0 ** math.floor(math.log10(span / about))
    step = next(unit * m for m in (1, 2, 5, 10) if span / (unit * m) <= about)
    return [round(step * i, 10) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
