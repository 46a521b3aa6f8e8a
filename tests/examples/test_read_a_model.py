"""Reading a model: what is silenced, which heads are chosen, and that the file holds what the chapter shows."""

import json
import sys

import numpy as np
import pytest
from helpers import EXAMPLES, assert_close, example

import numllama as nl
from numllama import ops

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="tests without the examples")
LETTERS = "abcdefghijklmnopqrstuvwxyzFVDIHT .'"


def a_model(**options):
    shape = dict(vocab_size=len(LETTERS), dim=16, n_layers=2, n_heads=4, max_seq_len=64, init_std=0.3) | options
    return nl.Transformer(nl.ModelConfig(**shape), dtype="float64")


def test_the_strongest_heads_and_others_beside_them():
    reading, scores = example("read_a_model"), np.array([[0.1, 0.9, 0.2], [0.8, 0.0, 0.7]])
    assert reading.strongest(scores, 3) == [(0, 1), (1, 0), (1, 2)]
    assert reading.weakest_beside(scores, [(0, 1), (1, 0)]) == [(0, 0), (1, 1)]


def test_losses_are_those_of_both_halves_with_and_without_heads():
    model, reading = a_model(), example("read_a_model")
    tokens = np.random.default_rng(0).integers(0, len(LETTERS), (2, 10))
    logits = model.forward(tokens[:, :-1])
    first, again = (ops.cross_entropy_forward(logits[:, part], tokens[:, 1:][:, part])[0] for part in (slice(4), slice(4, None)))
    assert_close(reading.losses(model, tokens), [first, again])
    silenced = a_model()
    for h in (1, 3):
        silenced.params["blocks.1.wo"][:, 4 * h : 4 * h + 4] = 0
    assert_close(reading.losses(model, tokens, [(1, 1), (1, 3)]), reading.losses(silenced, tokens), rtol=1e-10)


def test_the_file_holds_what_the_chapter_shows(tmp_path, monkeypatch, capsys):
    a_model().save(tmp_path / "model", nl.CharTokenizer(LETTERS))
    options = ["--clean", "abc d", "--corrupt", "abf g", "--pattern", "abc abc ab", "--heads", 2]
    monkeypatch.setattr(sys, "argv", ["read_a_model.py", *map(str, [tmp_path / "model", "--out", tmp_path, *options])])
    example("read_a_model").main()
    found = json.loads((tmp_path / "reading.json").read_text(encoding="utf-8"))
    assert len(found["lens"]["ranks"]) == 3 and found["lens"]["ranks"][-1] == 0
    assert np.shape(found["scores"]["induction"]) == (2, 4)
    assert next(iter(found["without"])) == "as it is" and all(len(one["losses"]) == 2 for one in found["without"].values())
    assert np.shape(found["maps"]["kinds"]["previous"]["attention"]) == (10, 10)
    patching = found["patching"]
    assert np.shape(patching["after_ffn"]["true"]) == np.shape(patching["after_ffn"]["estimated"]) == (2, 5)
    assert np.shape(patching["head_outputs"]["true"]) == (2, 4, 5)
    assert patching["after_ffn"]["true"][-1] == pytest.approx([0, 0, 0, 0, 1], abs=1e-3)
    assert "correlation" in capsys.readouterr().out
