"""The GPU benchmark's parts: what they measure, with tiny sizes."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture
def parts(gpu, monkeypatch):
    """The parts, without PyTorch."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    module = importlib.import_module("gpu_parts")
    monkeypatch.setattr(module, "torch_or_none", lambda: None)
    return module


def test_every_memory_bound_kernel_is_measured_against_its_floor(parts, monkeypatch):
    monkeypatch.setattr(parts, "copy_speed", lambda: 2.0)
    rows = list(parts.kernels(N=64, C=64, F=96, V=101, P=96))
    assert len(rows) == len({row["name"] for row in rows}) == 16
    by_name = {row["name"]: row for row in rows}
    for name, floor in (("rmsnorm forward", 2 * 2 * 64 * 64), ("swiglu backward", 5 * 2 * 64 * 96), ("adamw", 30 * 96)):
        assert by_name[name] == {"name": name, "us": 1e6, "gbs": floor / 1e9, "share": floor / 2e9}  # between two events lies 1 s


def test_machine_products_and_attention(parts, monkeypatch):
    monkeypatch.setattr(parts, "copy_speed", lambda: 2.0)
    (machine,) = parts.machine(n=32)
    assert machine["gpu"] == "a CPU" and machine["copy_gbs"] == 2.0 and machine["product_tflops"] == 2 * 32**3 / 1e12
    rows = list(parts.products(N=4, scale=96))
    assert len(rows) == 7 * 3 and rows[0]["name"] == "117m wq" and rows[0]["numllama"] == 2 * 4 * 8 * 8 / 1e12
    names = [row["name"] for row in parts.attention(tokens=32, width=128, lengths=(16,))]
    assert names == [f"D = {D}, T = 16, {which}" for D in (64, 128) for which in ("forward", "backward")]


def test_graph_plain_and_again_are_the_same_and_near_a_cpu(parts):
    rows = list(parts.same(steps=4, vocab_size=31, dim=32, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=64, max_seq_len=8))
    assert [row["name"] for row in rows] == [
        "4 steps in float32", "4 steps in bfloat16", "a step with the graph", "a step without the graph"
    ]  # fmt: skip
    for row in rows[:2]:
        assert "graph launched 3 of 3 times, losses with and without the graph the same, run to run the same" in row["says"]
    assert rows[0]["losses"] == pytest.approx(rows[0]["expected"], rel=1e-4)
    assert rows[1]["losses"] == pytest.approx(rows[1]["expected"], rel=1e-2)
    assert rows[2]["launches"] == 1 and rows[3]["launches"] > 30


def test_training_decoding_and_a_whole_run(parts, monkeypatch, tmp_path):
    import numllama as nl

    tiny = dict(vocab_size=31, dim=32, n_layers=1, n_heads=1, head_dim=64, ffn_dim=32, max_seq_len=32)
    monkeypatch.setattr(nl.ModelConfig, "preset", lambda name, **changes: nl.ModelConfig(**{**tiny, **changes}))
    monkeypatch.setattr(parts, "MEASURED_SECONDS", 0.0)
    rows = list(parts.training("117m", "16", rounds=2, tokens=32))
    assert [row["name"] for row in rows] == ["numllama", "numllama without graph"] * 2
    assert rows[0]["losses"] == rows[1]["losses"] and rows[0]["tokens_per_s"] > 0
    assert rows[0]["mfu"] is None  # of a GPU whose peak is not known
    (decoded,) = parts.decode(new=4, batches=(2,))
    assert decoded["tokens_per_s"] > 0
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question " * 20, encoding="utf-8")
    *_, last = parts.shakespeare(text, steps=4, eval_every=2, eval_batches=1, batch_size=2, seq_len=16)
    assert last["step"] == 4 and 0 < last["best"] < 5
