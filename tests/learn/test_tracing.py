"""A trace has the model's loss and gradients, and its reports are complete."""

import json
import re
import shutil
import struct
import zlib
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pytest
from helpers import assert_close
from learn.families import FAMILIES, a_model

import numllama as nl
from numllama.cli import main
from numllama.learn import trace_report
from numllama.learn.trace_page import png
from numllama.learn.trace_report import as_html, as_json, as_text
from numllama.learn.tracing import PLAIN, check_is_plain, trace, traced_model
from numllama.model import LoraConfig, ModelConfig, Transformer
from numllama.tokenizer import Tokenizer

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


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
RIGHT = {  # every option except those of PLAIN: plain_llama traces such models
    "vocab_size": 70, "dim": 24, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 20, "max_seq_len": 9, "head_dim": 6,
    "norm_eps": 1e-2, "rope_theta": 50.0, "rope_layout": "interleaved", "tie_embeddings": True, "dropout": 0.5,
    "init_std": 0.5, "init": "truncated_normal", "family": "mistral", "qk_norm": "rms",
    "rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_scaling, linear": {"rope_type": "linear", "factor": 4.0},
}  # fmt: skip
OTHER = {
    "norm": ["layernorm"], "positions": ["learned", "none"], "ffn": ["gelu", "geglu"], "bias": [True, "qkv"],
    "qk_norm": ["l2"],
    "norm_placement": ["after"], "rope_layers": [(1,)], "rotary_dim": [2], "sliding_window": [3], "attn_scale": [0.5],
    "embed_scale": [2.0], "attn_softcap": [5.0], "logit_softcap": [5.0],
}  # fmt: skip


OF_ITS_OWN = {f"{option}-{value}": {option: value} for option, values in OTHER.items() for value in values} | FAMILIES


@pytest.mark.parametrize("option", RIGHT)
def test_a_llama_of_any_shape_is_traced_as_it_is(option):
    assert_traced(a_model(**{option.partition(",")[0]: RIGHT[option]}))


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_a_model_of_any_family_is_traced_as_it_is(name):
    assert_traced(a_model(**OF_ITS_OWN[name]))


def assert_traced(model):
    """Loss and gradients of the parameters are those of the model."""
    ids = np.array([7, 50, 7, 3, 9, 11, 20, 33, 4, 5])
    traced = trace(model, None, ids.tolist())
    loss, grads = model.loss_and_grads(ids[None, :-1], ids[None, 1:])
    assert_close(traced.loss, float(loss), rtol=1e-12)
    assert set(traced.parameters) == set(grads)
    for name, (_, gradient) in traced.parameters.items():
        assert_close(gradient, grads[name], rtol=1e-11)
    assert traced.tokens == list(map(str, ids))


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in OTHER.items() for value in values])
def test_a_model_that_is_no_plain_llama_is_no_reference_and_is_told_why(option, value):
    shown = re.escape(str(value))
    with pytest.raises(ValueError, match=f"^{option} is .*{shown}.*, but only a plain Llama has golden vectors"):
        check_is_plain(a_model(**{option: value}))


def with_adapter(model):
    """The model with random updates, because those of a new adapter are zero."""
    model.add_adapter(LoraConfig(rank=2))
    for value in model.adapter.params.values():
        value[...] = np.random.default_rng(1).normal(0, 0.3, value.shape)
    return model


def test_a_model_with_an_adapter_is_refused_until_it_is_merged():
    model, ids = with_adapter(a_model()), np.array([7, 50, 7, 3])
    loss = float(model.loss(ids[None, :-1], ids[None, 1:]))
    with pytest.raises(ValueError, match=r"the model has an adapter.*merge_adapter"):
        trace(model, None, ids.tolist())
    model.merge_adapter()
    assert_close(trace(model, None, ids.tolist()).loss, loss, rtol=1e-12)


def test_every_option_of_a_model_is_traced():
    need_a_window = {"window_layers", "local_rope_theta"}
    options = {field.name for field in fields(ModelConfig)}
    of_experts = {name for name in options if name.startswith(("n_experts", "router_"))}  # in FAMILIES
    assert {name.partition(",")[0] for name in RIGHT} | set(OTHER) | need_a_window | of_experts == options
    assert set(OTHER) == set(PLAIN)


@pytest.mark.parametrize(
    ("what", "error", "sentence"),
    [
        ("the king", ValueError, "a text needs a tokenizer"),
        ([1], ValueError, "the text has 1 token, but there must be 2 to 1025"),
        ([1, 60], ValueError, "holds 60, but must lie in 0..59"),
        ([-1, 2], ValueError, "holds -1, but must lie in 0..59"),
        ([[1, 2]], ValueError, r"the tokens has shape \(1, 2\)"),
        ([1.0, 2.0], TypeError, "must be integers, not float64"),
    ],
)
def test_tokens_that_the_model_cannot_take_are_refused(what, error, sentence):
    with pytest.raises(error, match=sentence):
        trace(a_model(), None, what)


def test_every_intermediate_of_both_layers_has_a_gradient_of_its_shape():
    assert len(TRACE.values) == 4 + 2 * 17
    for t in TRACE.values:
        assert t.gradient.shape == t.value.shape and np.isfinite(t.gradient).all() and t.gradient.any()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_gradients_inside_attention_belong_together(layer):
    at = f"layer {layer}: "
    scale = 1 / np.sqrt(MODEL.config.head_dim)
    ds, k, p, dp = GRADIENTS[at + "scores"], VALUES[at + "k_rotated"], VALUES[at + "attention"], GRADIENTS[at + "attention"]
    dq = scale * ds @ np.repeat(k, MODEL.config.n_heads // MODEL.config.n_kv_heads, axis=1)
    assert_close(dq, GRADIENTS[at + "q_rotated"], rtol=1e-11)
    assert_close((p * dp).sum(-1), (GRADIENTS[at + "head_outputs"] * VALUES[at + "head_outputs"]).sum(-1), rtol=1e-11)
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
    """Records open tags and the sources of pictures."""

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
    assert len(page.sources) == 2 * planes + 2 * MODEL.config.n_heads  # values and gradients, and large attention maps
    assert html.count("<span>") == 2 * 2 * MODEL.config.n_heads * places


def test_a_picture_holds_the_colours_it_was_given():
    colours = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    data = png(colours)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (5, 3)
    (length,) = struct.unpack(">I", data[33:37])
    lines = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(3, 21)
    assert not lines[:, 0].any()
    assert np.array_equal(lines[:, 1:].reshape(3, 5, 4), colours)


def test_files_hold_no_more_numbers_than_somebody_can_open(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(trace_report, "MOST", 1000)
    assert run("--json", tmp_path / "t.json") == 2
    assert "numbers, but a file may hold at most 1,000: use a shorter text" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert run("--text", TEXT, "--json", tmp_path / "t.json", "--html", tmp_path / "t.html") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("'the king': 7 predictions, loss ")
    assert f"loss {json.loads((tmp_path / 't.json').read_text(encoding='utf-8'))['loss']:.4f}" in printed
    html = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert "the king" in html and "This is the built-in small model, not trained" in html


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in Hugging Face layout, with a BPE tokenizer."""
    folder = tmp_path_factory.mktemp("traced") / "model"
    (folder.parent / "text.txt").write_text("the king shall sing. " * 50)
    tokenizer = Tokenizer.train([folder.parent / "text.txt"], 270, progress=False)
    config = ModelConfig(vocab_size=270, dim=16, n_layers=2, n_heads=2, tie_embeddings=True)
    Transformer(config).save(folder, tokenizer)
    return folder


@pytest.mark.parametrize("by_ids", [False, True])
def test_a_model_of_ones_own_is_traced(folder, by_ids, tmp_path, capsys):
    ids = Tokenizer.load(folder).encode("the king sings")
    what = ["--ids", *ids] if by_ids else ["--text", "the king sings"]
    assert run(folder, *what, "--json", tmp_path / "t.json", "--html", tmp_path / "t.html") == 0
    assert "The model is model." in (tmp_path / "t.html").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    loss, grads = nl.load(folder, dtype="float64").loss_and_grads(np.array([ids[:-1]]), np.array([ids[1:]]))
    assert_close(content["loss"], float(loss), rtol=1e-12)
    assert "".join(content["tokens"]) == "the king sings"
    norms = {p["name"]: p["gradient_norm"] for p in content["parameters"]}
    assert_close(norms["embed"], np.linalg.norm(grads["embed"]), rtol=1e-10)


def test_an_adapter_is_merged_before_its_model_is_traced(folder, tmp_path, capsys):
    model = with_adapter(nl.load(folder, dtype="float64"))
    model.save_adapter(tmp_path / "adapter", base=folder)
    assert run(tmp_path / "adapter", "--ids", 5, 6, 7) == 0
    loss = float(nl.load(tmp_path / "adapter", dtype="float64").loss(np.array([[5, 6]]), np.array([[6, 7]])))
    assert abs(loss - float(nl.load(folder, dtype="float64").loss(np.array([[5, 6]]), np.array([[6, 7]])))) > 0.001
    assert f"loss {loss:.4f} nats" in capsys.readouterr().out


def test_a_model_without_a_tokenizer_is_traced_by_ids(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    assert run(tmp_path / "bare", "--ids", 5, 6, 7) == 0
    assert capsys.readouterr().out.startswith("'5 6 7': 2 predictions, loss ")
    assert run(tmp_path / "bare", "--text", "the king") == 2
    assert "tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--text", "a"], "the text has 1 token, but there must be 2 to 65"),
        (["--steps", -1], "steps is -1, but must be"),
        (["--text", "the king", "--ids", 1, 2], "give either --text or --ids, not both"),
        (["--ids"], "the text has 0 tokens, but there must be 2 to 65"),
        (["--tokenizer", "x"], "the small model has its own tokenizer"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--steps", 3], "--steps and --seed are for the small model"),
        (["--ids", 1, 2, 99], "holds 99, but must lie in"),
    ],
)
def test_what_cannot_be_traced_is_one_sentence(arguments, sentence, capsys):
    assert run(*arguments) == 2
    assert sentence in capsys.readouterr().err
