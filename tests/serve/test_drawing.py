"""Pictures show the numbers, and text never becomes markup."""

import math
import struct
import zlib
from base64 import b64decode
from xml.etree import ElementTree

import numpy as np
import pytest

from numllama.serve import drawing

EVIL = "<script>alert(1)</script>&\"'"


def parsed(html):
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_a_token_shows_its_chance_and_the_others():
    span = parsed(drawing.token_span(" b", 7, math.log(0.25), [(" a", math.log(0.7)), (" b", math.log(0.25))]))[0]
    assert span.get("class") == "token c1"
    assert span.get("style") == "--p:0.250"
    assert span.text == " b"
    assert "".join(span[0].itertext()) == "␣b: 25 %␣a70 %␣b25 %"
    assert [row.get("class") for row in span.iter() if (row.get("class") or "").startswith("row ")] == ["row chosen"]


def test_a_token_that_is_not_among_the_likeliest_is_shown_beside_them():
    span = parsed(drawing.token_span("z", 0, math.log(0.001), [("a", math.log(0.9))]))[0]
    assert "z0.1 %" in "".join(span.itertext())


@pytest.mark.parametrize(
    "p, words", [(1.0, "100 %"), (0.256, "26 %"), (0.0312, "3.1 %"), (0.0001, "&lt; 0.1 %"), (0.0, "&lt; 0.1 %")]
)
def test_percent(p, words):
    assert drawing.percent(p) == words


def test_texts_stay_texts():
    span = parsed(drawing.token_span(EVIL, 0, -1.0, [(EVIL, -1.0), ("\x00\n\t", -2.0)]))
    picture = parsed(drawing.attention_map(np.eye(2), [EVIL, "\x1b"]))
    assert not {element.tag for tree in (span, picture) for element in tree.iter()} & {"script", "img"}
    assert span[0].text == EVIL


def test_an_attention_map_has_a_square_for_each_pair_that_can_see():
    weights = np.tril(np.random.default_rng(0).random((5, 5)))
    weights /= weights.sum(-1, keepdims=True)
    squares = [element for element in parsed(drawing.attention_map(weights, "abcde")).iter() if element.tag == "rect"]
    rows, columns = np.tril_indices(5)
    assert [float(square.get("fill-opacity")) for square in squares] == pytest.approx(
        list(0.04 + 0.96 * weights[rows, columns]), abs=1e-3
    )
    assert squares[1][0].text == f"b attends to a: {100 * weights[1, 0]:.0f} %"
    places = [(int(square.get("y")), int(square.get("x"))) for square in squares]
    assert places == sorted(places)


def test_a_png_is_the_numbers():
    values = np.array([[0, 1, 0.5], [0.25, 2, -1]])
    content = b64decode(drawing.png(values).split(",")[1])
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (3, 2)
    at = content.index(b"IDAT")
    length = struct.unpack(">I", content[at - 4 : at])[0]
    assert zlib.decompress(content[at + 4 : at + 4 + length]) == bytes([0, 0, 255, 128, 0, 64, 255, 0])
    assert struct.unpack(">I", content[at + 4 + length : at + 8 + length])[0] == zlib.crc32(content[at : at + 4 + length])


def test_a_curve_falls_where_the_loss_does():
    lines = [{"step": i, "loss": 4 - i / 100} for i in range(1, 301)] + [{"step": 301, "loss": math.nan}]
    lines[99]["val_loss"] = 3.1
    svg = parsed(drawing.loss_curve(lines))[0]
    each, mean, _ = (element for element in svg.iter() if element.tag == "polyline")
    points = [tuple(map(float, point.split(","))) for point in each.get("points").split()]
    assert len(points) == 300
    assert [x for x, _ in points] == sorted({x for x, _ in points})
    assert [y for _, y in points] == sorted(y for _, y in points)  # downwards
    dot = next(element for element in svg.iter() if element.tag == "circle")
    assert (float(dot.get("cx")), float(dot.get("cy"))) == pytest.approx((points[99][0], points[89][1]), abs=0.2)
    assert len(mean.get("points").split()) == 300


def test_a_running_mean_is_hardly_late_where_a_curve_falls_fast():
    points = [(step, 2 + 2 / (1 + step / 20)) for step in range(2000)]
    late = [mean - loss for (_, mean), (_, loss) in zip(drawing.running_mean(points), points, strict=True)]
    assert min(late) >= 0 and max(late) < 0.3  # of 4; with one weight all along it is 0.6


def test_a_curve_of_nothing_and_of_one_step_is_drawn_too():
    assert "No step" in drawing.loss_curve([])
    assert "No step" in drawing.loss_curve([{"step": 1, "loss": math.inf}])
    assert parsed(drawing.loss_curve([{"step": 1, "loss": 2.0}]))[0].tag == "svg"


def test_a_long_curve_is_thinned_and_keeps_its_end():
    points = [(i, 1.0) for i in range(100_000)]
    thin = drawing.thinned(points)
    assert len(thin) == drawing.MAX_POINTS
    assert thin[-1] == points[-1]


@pytest.mark.parametrize("low, high", [(0.5, 4.2), (1, 1), (-3, 1e6), (0.0001, 0.0002), (1, 5000)])
def test_ticks_are_round_and_few_and_span_the_values(low, high):
    ticks = drawing.nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high - 1e-9
    assert 1 <= len(ticks) <= 8
