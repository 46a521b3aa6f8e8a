"""examples/quantise.py: its roundings are the package's and llama.cpp's, and it measures what they do to a model."""

import sys

import gguf
import numpy as np
import pytest
from helpers import example

import numllama as nl
from numllama.cpu.int8 import Int8Matrix
from numllama.tokenizer import CharTokenizer

W = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def quantise():
    return example("quantise")


def test_eight_bits_with_a_scale_per_row_are_those_of_a_stored_matrix(quantise):
    stored = Int8Matrix.quantized(W, np.empty(W.shape, np.int8))
    np.testing.assert_allclose(quantise.symmetric(W, 8), stored[:], rtol=1e-5)


def test_q4_0_is_that_of_llama_cpp(quantise):
    kind = gguf.GGMLQuantizationType.Q4_0
    np.testing.assert_array_equal(quantise.q4_0(W), gguf.dequantize(gguf.quantize(W, kind), kind))
    assert not quantise.q4_0(np.zeros((1, 32), np.float32)).any()
    assert quantise.bits_per_weight(4, 32) == 4.5


@pytest.mark.parametrize(("block", "groups"), [(0, W.reshape(1, -1)), (None, W), (16, W.reshape(-1, 16))])
@pytest.mark.parametrize("bits", [2, 4])
def test_each_group_has_its_own_scale(quantise, bits, block, groups):
    """The largest of a group stays, and no group has more values than its bits can tell apart."""
    result = quantise.symmetric(W, bits, block).reshape(groups.shape)
    at = np.arange(len(groups)), abs(groups).argmax(-1)
    np.testing.assert_allclose(result[at], groups[at], rtol=1e-6)
    steps = abs(groups).max(-1, keepdims=True) / (2 ** (bits - 1) - 1)
    assert (abs(result - groups) <= steps / 2 * 1.00001).all()
    assert all(len(np.unique(row)) <= 2**bits - 1 for row in result)


def test_only_matrices_are_rounded(quantise):
    model = nl.Transformer(nl.ModelConfig(vocab_size=7, dim=8, n_layers=1, n_heads=2))
    model.params["norm"][...] = 0.123456
    result = quantise.with_rounded(model, lambda w: quantise.symmetric(w, 3))
    assert len(np.unique(result.params["head"][0])) <= 7 < len(np.unique(model.params["head"][0]))
    np.testing.assert_array_equal(result.params["norm"], model.params["norm"])


def test_it_prints_a_table_for_a_saved_model(quantise, tmp_path, monkeypatch, capsys):
    tokenizer = CharTokenizer("abcdefgh")
    nl.Transformer(nl.ModelConfig(tokenizer.vocab_size, 16, 1, 2, max_seq_len=8)).save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    (tmp_path / "text").write_text("abcabcabcabcabcabcabc")
    places = str(tmp_path / "model"), str(tmp_path / "text")
    monkeypatch.setattr(sys, "argv", ["quantise.py", *places, "--bits", "8", "--blocks", "16", "32"])
    quantise.main()
    head, _, exact, eight = capsys.readouterr().out.splitlines()
    assert head == "| bits | one scale | a scale per row | blocks of 16 |"  # 32 does not divide the width
    values = [[float(cell) for cell in line.split("|")[2:-1]] for line in (exact, eight)]
    np.testing.assert_allclose(values[1], values[0], rtol=0.01)
