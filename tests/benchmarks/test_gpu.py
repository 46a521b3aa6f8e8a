"""The GPU benchmark: what it keeps when a part dies, and its table. What it measures is in tests/cuda/real_cupy."""

import importlib
import json
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


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
