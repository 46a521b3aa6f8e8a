"""`numllama train` from beginning to end: with each choice that a configuration has, and in little memory all the time."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from system.commands import run

import numllama as nl
from numllama.model.config import CHOICES as MODEL_CHOICES
from numllama.training import checkpoint
from numllama.training.config import CHOICES as TRAIN_CHOICES

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
TINY = dict(
    dim=8, n_layers=1, n_heads=2, max_seq_len=8, batch_size=4, steps=3, eval_every=2, eval_batches=1, warmup_steps=1, workers=1,
)  # fmt: skip
# What a value needs besides: a GPU has the other dtypes, ranks how gradients are summed.
GPU, RANKS = {("dtype", "bfloat16"), ("dtype", "float16")}, {("parallel", "mpi"), ("parallel", "nccl")}
NAMED = {**MODEL_CHOICES, **TRAIN_CHOICES}
CHOICES = [(name, value) for name, values in NAMED.items() for value in values if value is not None]
SWITCHES = [("bias", True), ("tie_embeddings", True), ("recompute", True), ("final_eval", False), ("graph", False)]
DEFAULTS = {field.name: field.default for config in (nl.ModelConfig, nl.TrainConfig) for field in fields(config)}
NUMBERS = [
    ("dropout", 0.3), ("n_kv_heads", 1), ("head_dim", 6), ("ffn_dim", 12), ("shards", 3), ("sampling", "epochs"), ("keep", 1),
    ("seq_len", 5), ("clip", "inf"), ("min_lr", 0), ("weight_decay", 0),
]  # fmt: skip


def flags(**settings):
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, v in (*CHOICES, *SWITCHES, *NUMBERS) if v != DEFAULTS[n] and (n, v) not in GPU | RANKS and n != "sum_by"],
    ids=str,
)
def test_every_choice_of_a_configuration_goes_through_a_whole_command(book, tmp_path, monkeypatch, name, value):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # a run that draws nothing ends sooner
    out = tmp_path / "run"
    code, printed, err = run("train", "--data", book, *flags(**TINY | {name: value}), "--out", out)
    assert code == 0, err
    last = printed.splitlines()[-1]
    if (name, value) == ("final_eval", False):
        assert last == "validation loss: not evaluated"
        assert json.loads((out / "result.json").read_text())["validation_loss"] is None
    else:
        assert re.fullmatch(r"validation loss: \d+\.\d{4}", last)
    assert "a sample from the best checkpoint:\n" in printed
    assert nl.load(out).config.max_seq_len == 8
    code, printed, err = run("train", "--resume", "--steps", 4, "--out", out)
    assert (code, checkpoint.find_step(out).name) == (0, "step-000004"), err
    code, printed, err = run("eval", out, book)
    assert code == 0, err


@pytest.mark.parametrize(("compute_dtype", "times"), [("bfloat16", 1), ("float32", 0)])
def test_bfloat16_that_will_be_slow_is_announced_once_and_trained(book, tmp_path, without_onednn, compute_dtype, times):
    code, printed, err = run("train", "--data", book, *flags(**TINY, compute_dtype=compute_dtype), "--out", tmp_path / "run")
    sentence = "bfloat16 will be slower than float32: oneDNN is not in use (numllama doctor says more)"
    assert (code, err.splitlines().count(sentence), err.count("bfloat16")) == (0, times, times), err
    assert re.fullmatch(r"validation loss: \d+\.\d{4}", printed.splitlines()[-1])
    assert checkpoint.find_step(tmp_path / "run").name == "step-000003"


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
def test_the_sample_at_the_end_is_as_long_as_the_positions_allow(book, tmp_path, monkeypatch, positions):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, printed, _ = run("train", "--data", book, *flags(**TINY | {"positions": positions}), "--out", tmp_path / "run")
    sample = printed.split("a sample from the best checkpoint:\n")[1].rsplit("\n\n", 1)[0]
    assert code == 0
    assert len(sample) <= 8 if positions == "learned" else 300 < len(sample) <= 400


# ------------------------------------------------------------------------------------------------ memory

PROGRAM = """
import sys
sys.modules["matplotlib"] = None
from numllama.system.processes import peak_memory_mb
from numllama.training.trainer import Trainer
from numllama.cli import app
step = Trainer._step
peaks = []
def noted(trainer):
    report = step(trainer)
    peaks.append(peak_memory_mb())
    return report
Trainer._step = noted
code = app(sys.argv[1:], result_action="return_value")
print(code, peaks[-1] if peaks else 0, peak_memory_mb())
"""


def peaks_of(*arguments):
    """The most memory that a command has held by the end of its last training step, and by its own end, in MB."""
    env = os.environ | {"PYTHONPATH": str(Path(nl.__file__).parents[1]), "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    answer = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    code, *peaks = answer.stdout.splitlines()[-1].split()
    assert code == "0", answer.stderr
    return map(float, peaks)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peaks from /proc")
def test_no_phase_of_a_run_takes_much_more_memory_than_its_training(tmp_path):
    """On one core, for there a step takes least: 1024 rows in 128 shards, of which evaluation too runs one at a time."""
    (tmp_path / "book.txt").write_text(TEXT * 20)
    shape = dict(dim=64, n_layers=1, n_heads=2, max_seq_len=32, workers=1)
    settings = dict(batch_size=1024, shards=128, steps=2, eval_every=2, eval_batches=1, keep=1)
    training, whole = peaks_of("train", "--data", tmp_path / "book.txt", *flags(**shape | settings), "--out", tmp_path / "run")
    assert whole < 1.5 * training
    _, evaluation = peaks_of("eval", tmp_path / "run", tmp_path / "book.txt")
    assert evaluation < 1.5 * training
