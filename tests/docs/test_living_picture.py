"""The picture of the front page shows the numbers of a real trace, in the order in which they are computed."""

import re
import struct
import xml.etree.ElementTree as ET
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from numllama import ops
from numllama.learn.tracing import trace, traced_model

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")


@pytest.fixture(scope="module")
def traced():
    model, tokenizer = traced_model(seed=0, steps=2)
    return model, tokenizer, trace(model, tokenizer, "the king shall sing")


@pytest.fixture(scope="module")
def living():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "_ext"))
        import living_picture

        yield living_picture


@pytest.fixture(scope="module")
def data(living, traced):
    return living.picture_data(*traced[:2])


def value(traced, name):
    return next(one for one in traced[2].values if one.name == name)


def shown(data, name):
    packed = data["arrays"][name]
    return np.frombuffer(b64decode(packed["data"]), dtype=np.int8).reshape(-1, packed["columns"])


def is_shown(found, array):
    """Numbers up to a factor, clipped and rounded."""
    size = np.quantile(np.abs(array[array != 0]), 0.99)
    return np.abs(found - np.clip(127 * array / size, -127, 127)).max() <= 0.5001


def test_every_value_of_the_trace_is_shown_and_every_gradient(data, traced):
    values = " ".join(step["forward"]["shows"] for step in data["steps"])
    gradients = " ".join(step["backward"]["shows"] for step in data["steps"]) + " ".join(
        f" {step['backward']['stream']}" for step in data["steps"]
    )
    for one in traced[2].values:
        if one.name != "loss":
            assert one.name in values and one.name in gradients, one.name
    assert "probabilities" in values
    assert len(data["steps"]) == 1 + 2 * 13 + 3


def test_a_step_shows_what_its_op_returns(data, traced):
    for name in ("embedding", "layer 0: swiglu", "layer 1: after_ffn", "logits"):
        assert is_shown(shown(data, f"v {name}"), value(traced, name).value[0]), name
    heads = shown(data, "v layer 1: attention")                        # side by side, with a column between
    assert heads.shape == (18, 4 * 18 + 3)
    attention = value(traced, "layer 1: attention").value[0]
    apart = np.pad(attention, ((0, 0), (0, 0), (0, 1))).transpose(1, 0, 2).reshape(18, -1)[:, :-1]
    assert is_shown(heads, apart)


def test_a_cell_can_be_read_as_a_number(data, traced):
    packed = data["arrays"]["v layer 0: q_rotated layer 0: k_rotated"]
    (name, heads, width, size), second = packed["parts"]
    assert (name, heads, width) == ("q_rotated", 4, 8) and second[:3] == ["k_rotated", 2, 8]
    numbers = shown(data, "v layer 0: q_rotated layer 0: k_rotated") / 127
    q, k = (value(traced, f"layer 0: {name}").value[0] for name in ("q_rotated", "k_rotated"))
    for array, start, largest in ((q[3], 3 * 9, size), (k[1], 4 * 9 + 9, second[3])):
        found = numbers[:, start : start + 8] * largest
        assert np.abs(found - np.clip(array, -largest, largest)).max() < 0.01 * largest


def test_a_step_of_backward_shows_the_gradients_of_its_inputs(data, traced):
    for name in ("layer 0: attn_out", "layer 1: ffn_norm", "norm", "logits"):
        assert is_shown(shown(data, f"g {name}"), value(traced, name).gradient[0]), name
    pair = shown(data, "g layer 0: gate layer 0: up")
    assert is_shown(pair[:, 89:], value(traced, "layer 0: up").gradient[0])
    by_op = {(step["layer"], step["op"]): step["backward"]["shows"] for step in data["steps"]}
    assert by_op[1, "softmax"] == "g layer 1: scores"
    assert by_op[None, "norm"] == "g layer 1: after_ffn"
    assert by_op[1, "attn_norm"] == "g layer 0: after_ffn"
    assert by_op[0, "attn_norm"] == "g embedding"


def test_the_stream_on_the_way_back_is_the_last_whose_gradient_is_complete(data):
    streams = [step["backward"]["stream"] for step in reversed(data["steps"])]
    blocks = ["layer 1: after_ffn", "layer 1: after_attention", "layer 0: after_ffn", "layer 0: after_attention"]
    order = [None, *blocks, "embedding"]
    assert list(dict.fromkeys(streams)) == order
    assert [streams.count(name) for name in order] == [2, 5, 8, 5, 8, 2]


def test_the_embedding_gets_the_sum_over_equal_tokens(data, traced):
    found, text = shown(data, "g embed"), "the king shall sing"
    spaces = [i for i, letter in enumerate(text[:-1]) if letter == " "]
    assert len(spaces) == 3 and (found[spaces] == found[spaces[0]]).all()
    gradients = traced[2].parameters["embed"].gradient
    ids = traced[1].encode(text)[:-1]
    assert is_shown(found, gradients[ids])


def test_the_last_prediction_is_that_of_the_model(data, traced):
    p = ops.softmax_forward(value(traced, "logits").value[0])[0]
    for i, (right, *others) in enumerate(data["next"]["layer 1: after_ffn"]):
        assert right[0] == traced[2].tokens[i + 1]
        assert right[1] == round(100 * p[i, traced[1].encode(right[0])[0]])
        assert len(others) <= 3 and right[0] not in [token for token, _ in others]
        assert [likely for _, likely in others] == sorted((likely for _, likely in others), reverse=True)


def test_each_step_lights_boxes_of_the_map_and_links_to_a_page(data, living):
    from llama_map import boxes  # beside living_picture

    lit = {box for step in data["steps"] for box in step["boxes"]}
    assert lit == set(boxes()) - {"tokens", "sample"}
    for step in data["steps"]:
        assert (DOCS / f"{step['page']}.md").exists()
        assert step["forward"]["says"] and step["backward"]["says"]


def test_the_page_stays_small_and_shows_a_step_without_scripts(data, living):
    made = living.html(data, lambda page: f"{page}.html", lambda page: page)
    assert len(made.encode()) < 150_000
    still = re.sub(r"<script.*?</script>", "", made, flags=re.S).replace(" hidden>", ">")
    page = ET.fromstring(re.sub(r"<(input|img)([^>]*)>", r"<\1\2/>", still))     # void elements, closed for XML
    pictures = page.findall(".//img")
    assert len(pictures) == 2 and all(picture.get("alt") for picture in pictures)
    assert all(picture.get("src").startswith("data:image/png;base64,iVBOR") for picture in pictures)
    assert "layer 2: softmax" in page.find(".//b").text
    assert "bars: how likely each next character is" in "".join(page.find('.//p[@class="legend"]').itertext())
    assert len(page.findall('.//div[@class="next"]/div')) == 18


def test_a_picture_is_a_file_with_the_right_pixels(data, living):
    name = "v layer 0: after_ffn"
    file, numbers = b64decode(living.png(data["arrays"][name])), shown(data, name)
    assert file[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", file[16:24]) == numbers.shape[::-1]
    at, chunks = 8, {}
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        kind, body = file[at + 4 : at + 8], file[at + 8 : at + 8 + length]
        assert struct.unpack(">I", file[at + 8 + length : at + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), dtype=np.uint8).reshape(len(numbers), -1)
    pixels = lines[:, 1:].reshape(*numbers.shape, 4)                   # the first byte of a line says that it is stored as it is
    assert (lines[:, 0] == 0).all()
    assert np.abs(pixels[..., 3] - np.abs(numbers.astype(float)) * 255 / 127).max() <= 0.5
    assert (pixels[numbers < 0][:, :3] == living.VALUE[1]).all() and (pixels[numbers > 0][:, :3] == living.VALUE[0]).all()


def test_script_and_style_have_the_same_colours(living):
    script = (DOCS / "_static" / "living.js").read_text(encoding="utf-8")
    style = (DOCS / "_static" / "way.css").read_text(encoding="utf-8")
    pairs = re.findall(r"([vg]): \[\[(.*?)\], \[(.*?)\]\]", script)
    assert [kind for kind, *_ in pairs] == ["v", "g"]
    assert tuple(tuple(map(int, colour.split(", "))) for colour in pairs[0][1:]) == living.VALUE
    for kind, plus, minus in pairs:
        assert f".living .{kind}.plus {{ background: rgb({plus.replace(',', '')}); }}" in style
        assert f".living .{kind}.minus {{ background: rgb({minus.replace(',', '')}); }}" in style
