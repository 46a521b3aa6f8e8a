"""The GPU benchmark without a GPU: its parts on a stand-in, what it keeps when a part dies, and its table."""

import importlib
import json
import sys
import textwrap
from pathlib import Path

import pytest
from fake_cupy import fake_gpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


@pytest.fixture
def parts(gpu, monkeypatch):
    """The parts, with as much of a GPU as there is."""
    if sys.platform != "linux":
        pytest.skip("the emulator needs Linux")
    module = importlib.import_module("gpu_parts")
    monkeypatch.setattr(module, "torch_or_none", lambda: None)
    with fake_gpu():
        yield module


# ------------------------------------------------------------------------------------------------ what is measured


def test_every_memory_bound_kernel_is_measured_against_its_floor(parts, monkeypatch):
    monkeypatch.setattr(parts, "copy_speed", lambda: 2.0)
    rows = list(parts.kernels(N=64, C=64, F=96, V=101, P=96))
    assert len(rows) == len({row["name"] for row in rows}) == 16
    by_name = {row["name"]: row for row in rows}
    for name, floor in (("rmsnorm forward", 2 * 2 * 64 * 64), ("swiglu backward", 5 * 2 * 64 * 96), ("adamw", 30 * 96)):
        assert by_name[name] == {"name": name, "us": 1e6, "gbs": floor / 1e9, "share": floor / 2e9}  # the stand-in says 1 s


def test_machine_products_and_attention(parts, monkeypatch):
    monkeypatch.setattr(parts, "copy_speed", lambda: 2.0)
    (machine,) = parts.machine(n=32)
    assert machine["gpu"] == "NVIDIA H200" and machine["copy_gbs"] == 2.0 and machine["product_tflops"] == 2 * 32**3 / 1e12
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
    assert rows[0]["losses"] == rows[1]["losses"] and rows[0]["tokens_per_s"] > 0 and rows[0]["mfu"] > 0
    (decoded,) = parts.decode(new=4, batches=(2,))
    assert decoded["tokens_per_s"] > 0
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be that is the question " * 20, encoding="utf-8")
    *_, last = parts.shakespeare(text, steps=4, eval_every=2, eval_batches=1, batch_size=2, seq_len=16)
    assert last["step"] == 4 and 0 < last["best"] < 5


# ------------------------------------------------------------------------------------------------ what is kept

CHILD = """
import json, sys, time
part, rows = sys.argv[2], sys.argv[4]
with open(rows, "a") as file:
    for name, value in json.loads(part.split()[1]).items():
        for better in (0, value):
            file.write(json.dumps({"name": name, "value": better}) + "\\n")
    if part.startswith("cut"):
        file.write('{"name": "half a li')
if part.startswith("crash"):
    raise RuntimeError("an illegal memory access was encountered")
if part.startswith("hang"):
    time.sleep(60)
"""


@pytest.fixture
def measure(gpu, tmp_path, monkeypatch):
    child = tmp_path / "child.py"
    child.write_text(textwrap.dedent(CHILD), encoding="utf-8")
    monkeypatch.setattr(gpu, "LEAST", 0.05)

    def measure(*parts, seconds=30):
        return gpu.measure(parts, tmp_path / "out" / "results.json", seconds, [], child)

    measure.path = tmp_path / "out" / "results.json"
    return measure


def test_what_a_part_has_measured_before_it_crashed_or_hung_is_kept(gpu, measure, monkeypatch):
    hang = 'hang {"c":3}'
    monkeypatch.setitem(gpu.PARTS, hang, 1.0)
    results = measure('good {"a":1}', 'crash {"b":2}', hang, 'cut {"d":4}')
    assert results == json.loads(measure.path.read_text(encoding="utf-8"))
    assert [(row["name"], row["value"]) for row in results["figures"]] == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]
    assert results["failed"] == {
        'crash {"b":2}': "failed: RuntimeError: an illegal memory access was encountered",
        hang: "stopped after 1 s",
    }


def test_a_part_that_is_measured_again_takes_the_place_of_what_was_known(measure):
    measure('good {"a":1,"b":2}', 'other {"c":3}')
    results = measure('good {"a":1,"b":2}')
    assert [(row["part"][:5], row["name"]) for row in results["figures"]] == [("other", "c"), ("good ", "a"), ("good ", "b")]


def test_no_part_is_begun_without_time_for_it(measure):
    results = measure('good {"a":1}', seconds=0)
    assert results == {"figures": [], "failed": {'good {"a":1}': "no time was left; run it with --parts"}}


# ------------------------------------------------------------------------------------------------ the table


def test_the_table_has_each_figure_and_an_empty_cell_for_what_was_not_measured(gpu):
    ours = dict(part="training 117m 1024", name="numllama", tokens_per_s=500_000.4, mfu=0.414, memory_mb=9000.2)
    peer = dict(part="training 117m 1024", name="torch compile", tokens_per_s=400_000, mfu=0.3, memory_mb=12345)
    versions = dict(driver="13000", cupy="14.2.0", torch="2.11.0", numpy="2.5.2")
    machine = dict(part="machine", name="machine", gpu="NVIDIA H200", **versions)
    results = {
        "figures": [
            machine | dict(copy_gbs=4321.5, product_tflops=788), ours, peer,
            dict(part="kernels", name="adamw", us=1000.4, gbs=3800.7, share=0.88),
            dict(part="attention", name="D = 64, T = 1024, forward", numllama=200.4, flash=300),
            dict(part="same", name="20 steps in float32", says="the same"),
        ],
        "failed": {},
    }  # fmt: skip
    table = gpu.table(results)
    for line in (
        "NVIDIA H200, driver 13000, CuPy 14.2.0, PyTorch 2.11.0, NumPy 2.5.2: a copy moves 4,322 GB/s, "
        "a bfloat16 product runs at 788 TFLOP/s.",
        "| 117m | 1024 | 500,000 |  |  | 400,000 |  | 41% | 9,000 | 12,345 | 1.25 |",
        "| adamw | 1,000 | 3,801 | 88% |",
        "| D = 64, T = 1024, forward | 200 | 300 |  | 67% |",
        "- 20 steps in float32: the same",
    ):
        assert line in table.splitlines()
    assert "products, TFLOP/s" not in table
    assert gpu.table({"figures": [], "failed": {}}) == ""
