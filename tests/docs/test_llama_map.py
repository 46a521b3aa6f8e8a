"""The picture of the whole Llama says what the model is: its boxes, its edges with their shapes, and the page of each."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import numllama as nl
from numllama.learn.tracing import trace

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="tests without the documents")
OPS = sorted(f"ops/{path.stem}" for path in (DOCS / "ops").glob("*.md") if path.stem != "index")
VALUE_OF = {  # boxes whose values have another name in a trace
    "rope_q": "q_rotated", "rope_k": "k_rotated", "softmax": "attention", "values": "head_outputs", "wo": "attn_out",
    "add_attention": "after_attention", "add_ffn": "after_ffn", "down": "ffn_out", "head": "logits",
}  # fmt: skip
SMALL = nl.ModelConfig(vocab_size=11, dim=12, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=20, head_dim=6, max_seq_len=9)
SIZES = dict(B=1, T=7, C=12, H=4, K=2, D=6, F=20, V=11)


@pytest.fixture
def llama_map(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    monkeypatch.delitem(sys.modules, "llama_map", raising=False)
    import llama_map

    return llama_map


@pytest.fixture(scope="module")
def model():
    return nl.Transformer(SMALL, seed=0, dtype="float64")


def sizes(text):
    """The numbers of a shape in letters: "(B, T, H·D)" -> (1, 7, 24)."""
    return tuple(int(np.prod([SIZES[letter] for letter in size.split("·")])) for size in text.strip("()").split(", "))


def test_a_shape_beside_an_edge_is_that_of_the_value(llama_map, model):
    traced = trace(model, None, [1, 2, 3, 4, 5, 6, 7, 8])
    values = {one.name.removeprefix("layer 0: "): one.value for one in traced.values}
    checked = set()
    for box in llama_map.boxes().values():
        for source, shape in box.inputs:
            if shape in ("", "(B, T)", "last row (B, V)"):             # ids, and a row of the logits
                continue
            found = values[VALUE_OF.get(source, source)].shape
            by_head = len(sizes(shape)) > len(found)                   # q, k and v are split into heads on the way
            assert np.prod(sizes(shape)) == np.prod(found) if by_head else sizes(shape) == found, (source, shape)
            checked.add(source)
    assert checked == {
        "embedding", "attn_norm", "q", "k", "v", "rope_q", "rope_k", "scores", "softmax", "values", "add_attention",
        "ffn_norm", "gate", "up", "swiglu", "add_ffn", "norm", "head",
    }  # fmt: skip


def test_a_gradient_has_the_name_of_its_value_in_the_living_picture(llama_map):
    import living_picture  # beside llama_map

    drawn, named = llama_map.boxes(), set()
    for op in (living_picture.FIRST, *living_picture.BLOCK, *living_picture.LAST):
        names = re.findall(r"(\w+) = ", op.forward) or re.findall(r"\w+(?=[,:])", op.forward)
        for box, name in zip(op.boxes, names, strict=True):
            assert drawn[box].gives == (name if box != "loss" else ""), box
            named.add(box)
    assert named == {*drawn} - {"tokens", "sample"}
    made = llama_map.part(drawn["values"], "", False)
    assert re.findall("<text[^>]*>(d.)</text>", made) == ["dp", "dv"]
    assert "<text" not in "".join(re.findall('<g class="back">.*?</g>', llama_map.part(drawn["embedding"], "", False)))


def test_every_line_down_says_its_shape(llama_map):
    for box in llama_map.boxes().values():
        assert all(line.shape or line.across for line in llama_map.lines_into(box)), box.id


def test_a_box_with_a_bar_has_the_weights_that_it_names(llama_map, model):
    shapes = {name.removeprefix("blocks.0."): value.shape for name, value in model.params.items()}
    named, norms = {}, set()
    for box in llama_map.boxes().values():
        weight = re.search(r"(\w+) (\([^)]*\))$", box.note)
        if box.weights and weight:
            named[weight[1]] = sizes(weight[2])
        elif box.weights:
            norms.add(box.id)
    assert named == {name: shape for name, shape in shapes.items() if len(shape) == 2}
    assert norms == {name for name, shape in shapes.items() if len(shape) == 1}


def test_each_box_opens_a_page_on_which_it_is_lit(llama_map):
    here = llama_map.table()["here"]
    for box in llama_map.boxes().values():
        assert (DOCS / f"{box.page}.md").exists(), box.page
        assert box.id in here[box.page]["boxes"], box.id


@pytest.mark.parametrize("page", OPS)
def test_each_op_is_somewhere_in_the_picture(page, llama_map):
    assert llama_map.table()["here"][page]["boxes"]


def test_pages_in_the_table_are_pages_and_their_boxes_are_boxes(llama_map):
    for page, entry in llama_map.table()["here"].items():
        assert (DOCS / f"{page}.md").exists(), page
        assert entry["boxes"] and set(entry["boxes"]) <= {*llama_map.boxes(), "stream"}, page
        assert 20 < len(entry["says"]) < 70 and not entry["says"].endswith("."), page


def test_lines_are_straight_and_go_down_or_across(llama_map):
    ends = 0
    for box in llama_map.boxes().values():
        lines = llama_map.lines_into(box)
        assert len(lines) == len(box.inputs)
        for line in lines:
            ends += 1
            assert line.y < line.to_y if line.x == line.to_x else line.y == line.to_y
            touched = box.left <= line.to_x <= box.left + box.width and box.top <= line.to_y <= box.bottom
            assert touched, (box.id, line)
    assert ends > 25


def test_boxes_stand_apart_and_inside(llama_map):
    placed = list(llama_map.boxes().values())
    for i, one in enumerate(placed):
        assert one.left >= 0 and one.left + one.width <= llama_map.WIDTH and one.bottom <= llama_map.height()
        for other in placed[:i]:
            beside = one.left >= other.left + other.width or other.left >= one.left + one.width
            assert beside or one.top >= other.bottom or other.top >= one.bottom, (one.id, other.id)


def test_the_picture_is_links_with_names_and_gradients(llama_map):
    picture = ET.fromstring(llama_map.large(lambda page: f"{page}.html", lit=["softmax"]))
    links = picture.findall(".//a")
    assert len(links) == len(llama_map.boxes()) + 1                    # and the stream
    assert all(link.get("aria-label") and link.get("href").endswith(".html") for link in links)
    assert picture.find("title").text and picture.find("desc").text
    (lit,) = [part for part in picture.findall("g") if "lit" in part.get("class").split()]
    assert lit.find("a").get("href") == "ops/softmax.html"
    gradients = {part.find("a").get("aria-label"): len(part.findall("g/path")) for part in picture.findall("g")}
    assert gradients["SwiGLU: silu(gate) · up"] == 2
    assert gradients["embedding: embed (V, C)"] == gradients["sampling: draw the next token"] == 0


@pytest.mark.parametrize("across", [False, True])
def test_a_page_has_its_boxes_lit_and_no_others(across, llama_map):
    made = llama_map.here("ops/rmsnorm", lambda page: f"../{page}.html", across)
    link = ET.fromstring(made)
    assert link.get("href") == "../map.html"
    assert link.find("span/b").text == "You are here"
    lit = {shape.get("data-box") for shape in link.find("svg") if shape.get("class") == "lit"}
    assert lit == {"attn_norm", "ffn_norm", "norm"}
    width, height = (float(size) for size in link.find("svg").get("viewBox").split()[2:])
    assert (width > height) == across
    assert llama_map.here("guides", str, across) == ""


def test_the_share_of_the_feed_forward_is_what_the_page_says():
    assert "two thirds in Llama 2 7B, four fifths in Llama 3 8B" in (DOCS / "map.md").read_text(encoding="utf-8")
    configs = json.loads((DOCS / "chapters" / "published_configs.json").read_text(encoding="utf-8"))
    for name, share in (("Llama 2 7B", 2 / 3), ("Llama 3 8B", 4 / 5)):
        c = configs[name]
        width, kept = c["hidden_size"], c["num_key_value_heads"] / c["num_attention_heads"]
        attention, feed_forward = (2 + 2 * kept) * width**2, 3 * width * c["intermediate_size"]
        assert abs(feed_forward / (attention + feed_forward) - share) < 0.02
