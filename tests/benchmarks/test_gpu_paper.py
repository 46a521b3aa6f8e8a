"""The prediction on paper: its FLOPs are those that the formulas of the field give."""

import importlib
from pathlib import Path

import pytest

from numllama import ModelConfig
from numllama.cuda import graph, launch
from numllama.model import transformer


@pytest.fixture
def paper(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    module = importlib.import_module("gpu_paper")
    monkeypatch.setattr(module, "BATCHES", {"shakespeare": (2, 64)})
    for owner, name in ((launch, "backend"), (graph, "Stream"), (transformer, "CHUNK_LOGITS")):
        monkeypatch.setattr(owner, name, getattr(owner, name))         # put back at the end
    return module


@pytest.mark.parametrize("capability", [75, 90])
def test_products_are_six_for_each_weight_and_token_and_attention_14_for_each_pair(paper, capability):
    launches, config = paper.step("shakespeare", capability), ModelConfig.preset("shakespeare")
    C, F, L, V, (B, T) = config.dim, config.ffn_dim, config.n_layers, config.vocab_size, (2, 64)
    weights = L * (4 * C * C + 3 * C * F) + V * C
    flops = {name: sum(launch[1] for launch in launches if launch[0] == name) for name in {launch[0] for launch in launches}}
    if capability < 80:  # attention's own are products, too
        assert flops["product"] > 6 * B * T * weights
        return
    assert flops["product"] == 6 * B * T * weights
    pairs = L * B * config.n_heads * T * (T + 1) / 2
    assert flops["flash_attention_forward"] == 4 * config.head_dim * pairs
    assert flops["flash_attention_backward"] == 10 * config.head_dim * pairs


def test_the_table(paper, monkeypatch, capsys, tmp_path):
    arguments = ["--presets", "shakespeare", "--kinds", "H200", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr("sys.argv", ["gpu_paper.py", *arguments])
    paper.main()
    out = capsys.readouterr().out
    assert "| shakespeare | H200 | here |" in out and "| product |" in out and "| adamw |" in out
    assert (tmp_path / "out.json").read_text().startswith("[")


def test_a_launch_takes_the_longest_of_three_times(paper):
    fast = ("a", 0, 0, 0.7, 0)
    counted = ("b", 0.7 * 989e12, 1, 0.7, 0)                            # a second of an H200's products
    moved = ("c", 1, 0.85 * 4800e9, 0.7, 0)                             # a second of its memory
    for launches, ms in (([fast], 0.002), ([counted], 1000), ([moved], 1000), ([fast, counted, moved], 2000.002)):
        assert paper.predicted(launches, "H200")[0] == pytest.approx(ms)
