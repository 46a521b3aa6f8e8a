"""A traced model is the model, and what is written of it is complete."""

import json
import re
import struct
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import assert_close

from numllama.cli import main
from numllama.ops.attention import fold_groups
from numllama.trace_report import as_html, as_json, as_text, png
from numllama.tracing import trace, traced_model

MODEL, TOKENIZER = traced_model(seed=3, steps=2)
TEXT = "the king"
TRACE = trace(MODEL, TOKENIZER, TEXT)
VALUES = {t.name: t.value for t in TRACE.values}
GRADIENTS = {t.name: t.gradient for t in TRACE.values}


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(["trace", *map(str, arguments)])
    return exit.value.code


def test_loss_and_gradients_are_those_of_the_model():
    ids = np.array(TOKENIZER.encode(TEXT))
    loss, grads = MODEL.loss_and_grads(ids[None, :-1], ids[None, 1:])
    assert_close(TRACE.loss, float(loss), rtol=1e-12)
    assert_close(VALUES["logits"], MODEL.forward(ids[None, :-1]))
    assert set(TRACE.parameters) == set(grads)
    for name, (value, gradient) in TRACE.parameters.items():
        assert_close(value, MODEL.params[name])
        assert_close(gradient, grads[name], rtol=1e-11)


def test_every_intermediate_of_both_layers_has_a_gradient_of_its_shape():
    assert len(TRACE.values) == 4 + 2 * 17
    for t in TRACE.values:
        assert t.gradient.shape == t.value.shape and np.isfinite(t.gradient).all() and t.gradient.any()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_gradients_inside_attention_belong_together(layer):
    at = f"layer {layer}: "
    scale = 1 / np.sqrt(MODEL.config.head_dim)
    ds, k, p, dp = GRADIENTS[at + "scores"], VALUES[at + "k turned"], VALUES[at + "attention"], GRADIENTS[at + "attention"]
    dq = scale * fold_groups(ds, MODEL.config.n_kv_heads) @ k
    assert_close(dq.reshape(GRADIENTS[at + "q turned"].shape), GRADIENTS[at + "q turned"], rtol=1e-11)
    assert_close((p * dp).sum(-1), (GRADIENTS[at + "mixed"] * VALUES[at + "mixed"]).sum(-1), rtol=1e-11)
    assert not ds[..., np.triu(np.ones(p.shape[-2:], dtype=bool), 1)].any()
    assert_close(p.sum(-1), np.ones(p.shape[:-1]))


def test_the_text_and_json_name_everything():
    text, content = as_text(TRACE), json.loads(as_json(TRACE))
    assert [value["name"] for value in content["values"]] == list(VALUES)
    assert all(re.search(rf"^{re.escape(name)} +\S*[×\d]", text, re.M) for name in list(VALUES)[:-1])
    for value in content["values"]:
        assert_close(np.array(value["values"]), VALUES[value["name"]])
        assert_close(np.array(value["gradient"]["values"]), GRADIENTS[value["name"]])
        assert value["shape"] == list(VALUES[value["name"]].shape)
    assert {p["name"] for p in content["parameters"]} == set(TRACE.parameters)


class Page(HTMLParser):
    """Which tags are open, and where pictures come from."""

    def __init__(self):
        super().__init__()
        self.open, self.sources = [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.sources += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_other_file():
    html, page = as_html(TRACE), Page()
    page.feed(html)
    assert page.open == []
    assert page.sources and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "://" not in html
    places = len(TEXT) - 1
    planes = sum(int(np.prod(v.shape[:-2])) for v in VALUES.values() if v.ndim > 1)
    assert len(page.sources) == 2 * planes + 2 * MODEL.config.n_heads  # value and gradient; attention once more, large
    assert html.count("<span>") == 2 * 2 * MODEL.config.n_heads * places


def test_a_picture_holds_the_colours_it_was_given():
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    data = png(colours)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (5, 3)
    (length,) = struct.unpack(">I", data[33:37])
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(3, 16)
    assert not lines[:, 0].any()
    assert np.array_equal(lines[:, 1:].reshape(3, 5, 3), colours)


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert run("--text", TEXT, "--json", tmp_path / "t.json", "--html", tmp_path / "t.html") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("'the king': 7 places, loss ")
    assert f"loss {json.loads((tmp_path / 't.json').read_text(encoding='utf-8'))['loss']:.4f}" in printed
    assert "the king" in (tmp_path / "t.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "arguments, sentence",
    [(["--text", "a"], "the text has 1 tokens, but there must be 2 to 65"), (["--steps", -1], "steps is -1, but must be")],
)
def test_what_cannot_be_traced_is_one_sentence(arguments, sentence, capsys):
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err
