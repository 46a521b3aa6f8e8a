"""The command line, from the flags to what lies on the disk in the end."""

import errno
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import numllama
from numllama.backend import array_module
from numllama.cli import main
from numllama.commands import progress, train_run
from numllama.commands.run_folders import only_run_in
from numllama.data import shakespeare, synthetic
from numllama.data.prepare import prepare_texts
from numllama.errors import CheckpointError, DeviceError
from numllama.install import install_command
from numllama.interop import load_run
from numllama.model import ModelConfig
from numllama.parallel import launched
from numllama.parallel.communicator import Communicator
from numllama.parallel.shards import Workers
from numllama.system.signals import TO_END, exit_code
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.train_bpe import train_on_text
from numllama.training import TrainConfig, Trainer, load_dataset, write_tokens
from numllama.training.checkpoint import find_step

PROJECT = Path(__file__).resolve().parents[1]
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 30
TINY_FLAGS = dict(
    dim=16, n_layers=1, n_heads=2, ffn_dim=16, max_seq_len=8, dropout=0.1,
    batch_size=4, workers=1, eval_every=4, eval_batches=2, warmup_steps=2, lr=1e-2, min_lr=1e-2, steps=8,
)  # fmt: skip
MODEL_FLAGS = [field.name for field in fields(ModelConfig) if field.name not in ("vocab_size", "rope_scaling")]
LAST_LINE = r"^validation loss: \d+\.\d{4}$"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


def tiny(**changes) -> list[str]:
    """The flags of a tiny run of eight steps, with some of them changed."""
    return [str(part) for name, value in (TINY_FLAGS | changes).items() for part in (f"--{name.replace('_', '-')}", value)]


def numllama_train(*arguments) -> Result:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(["train", *map(str, arguments)])
    return Result(end.value.code, out.getvalue(), err.getvalue())


def finished(result) -> Result:
    """The result, if the run came to its end."""
    assert result.code == 0, result.err
    assert re.match(LAST_LINE, result.last_line)
    return result


def refused(result, sentence="") -> str:
    """What the user reads who has asked for something impossible: one sentence, and no traceback."""
    assert result.code == 2, result
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert result.err.endswith(f"{lines[0]}\n")
    assert sentence in lines[0]
    return lines[0]


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder) -> bytes:
    return (find_step(folder) / "weights.safetensors").read_bytes()


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps_in(folder) -> list[int]:
    return [line["step"] for line in log_of(folder)]


def environment() -> dict[str, str]:
    """Of a process that shall import the same numllama as this one."""
    paths = [str(Path(numllama.__file__).parents[1]), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def done(book, tmp_path_factory) -> tuple[Path, Result]:
    """A run of eight steps and what it printed."""
    out = tmp_path_factory.mktemp("done") / "run"
    return out, finished(numllama_train("--data", book, *tiny(steps=8), "--out", out))


@pytest.fixture
def copy(done, tmp_path) -> Path:
    """A copy of that run."""
    return shutil.copytree(done[0], tmp_path / "run")


@pytest.fixture
def without_network(monkeypatch, tmp_path):
    """No cache, and a port that nobody listens at for a proxy."""
    monkeypatch.setenv("NUMLLAMA_CACHE", str(tmp_path / "cache"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setattr(shakespeare, "write_play", lambda: synthetic.write_play(30_000))


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_ends_with_its_validation_loss(done):
    out, result = done
    assert result.last_line == f"validation loss: {json.loads((out / 'result.json').read_text())['validation_loss']:.4f}"


def test_the_validation_loss_is_that_of_the_latest_checkpoint(done, book):
    out, _ = done
    trainer = Trainer(load_run(out, which="latest"), load_dataset(book), TrainConfig(batch_size=3, workers=1))
    assert json.loads((out / "result.json").read_text())["validation_loss"] == pytest.approx(trainer.evaluate(), rel=1e-6)


def test_a_run_leaves_everything_that_people_look_at(done):
    out, _ = done
    steps = {"step-000004", "step-000008"}
    files = {"config.json", "metrics.jsonl", "result.json", "tokenizer.json", "loss.png", "latest.json", "best.json"}
    assert {path.name for path in out.iterdir()} == files | steps
    assert {find_step(out, which).name for which in ("latest", "best")} <= steps


def test_there_is_one_line_in_the_log_for_each_step(done):
    lines = log_of(done[0])
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["step"] for line in lines if "val_loss" in line] == [4, 8]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_the_loss_curve_is_a_whole_picture(done):
    content = (done[0] / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert len(content) > 5000


def test_the_sample_is_made_of_characters_of_the_book(done):
    out, result = done
    sample = result.out.split("a sample from the best checkpoint:\n")[1].rsplit("\nvalidation loss", 1)[0]
    assert len(sample) > 100
    assert set(sample) <= set(TEXT)
    assert CharTokenizer.load(out).characters == "".join(sorted(set(TEXT)))


def test_the_flags_are_kept_in_the_run(done, book):
    about = json.loads((done[0] / "config.json").read_text())
    assert about["version"] == numllama.__version__
    assert about["data"] == str(book)
    assert (about["model"]["dim"], about["model"]["dropout"], about["model"]["vocab_size"]) == (16, 0.1, len(set(TEXT)))
    assert (about["train"]["steps"], about["train"]["lr"], about["train"]["seq_len"]) == (8, 0.01, 8)


def test_a_run_computes_in_the_dtype_that_is_asked_for_and_remembers_it(book, done, tmp_path):
    finished(numllama_train("--data", book, "--out", tmp_path / "run", *tiny(compute_dtype="bfloat16", steps=4)))
    about = [json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (done[0], tmp_path / "run")]
    assert [one["train"]["compute_dtype"] for one in about] == ["float32", "bfloat16"]
    assert load_run(tmp_path / "run", compute_dtype="bfloat16").compute_dtype == "bfloat16"


def test_token_files_without_a_tokenizer_are_trained_on_without_a_sample(tmp_path):
    for split, n in (("train", 300), ("val", 50)):
        write_tokens(tmp_path / f"{split}.bin", np.arange(n) % 7, vocab_size=7)
    result = finished(numllama_train("--data", tmp_path, *tiny(steps=2), "--out", tmp_path / "run"))
    assert "sample" not in result.out
    assert not (tmp_path / "run" / "tokenizer.json").exists()


def test_new_runs_get_new_folders_and_resume_takes_the_newest(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("shakespeare-cpu", "shakespeare-cpu-2"):
        finished(numllama_train("--data", book, *tiny(steps=1)))
        assert steps_in(tmp_path / "runs" / name) == [1]
    finished(numllama_train("--resume", "--steps", 2))
    assert steps_in(tmp_path / "runs" / "shakespeare-cpu") == [1]
    assert steps_in(tmp_path / "runs" / "shakespeare-cpu-2") == [1, 2]


def test_without_data_and_network_a_run_says_what_the_best_predictor_of_the_stand_in_reaches(without_network, tmp_path):
    arguments = (*tiny(steps=2, batch_size=100), "--out", tmp_path / "run")
    result = finished(numllama_train(*arguments))
    assert result.out.startswith("DATA: NOT Shakespeare but a synthetic play")
    best = synthetic.best_loss(synthetic.write_play(30_000)[27_000:], 8)
    assert f"loss of the best possible predictor on the same windows: {best:.4f}\n" in result.out
    assert float(result.last_line.split()[-1]) > best


def test_a_run_on_other_data_has_no_best_predictor(done):
    assert "best possible" not in done[1].out


def test_the_example_is_the_same_as_the_command(done, book, tmp_path):
    command = [sys.executable, PROJECT / "examples" / "train_shakespeare.py", "--data", book, *tiny(steps=3), "--out", "run"]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert re.match(LAST_LINE, result.stdout.splitlines()[-1])
    assert [line["loss"] for line in log_of(tmp_path / "run")] == [line["loss"] for line in log_of(done[0])[:3]]


def test_the_help_names_every_flag():
    out = numllama_train("--help").out
    others = ["data", "tokenizer", "preset", "device", "out", "resume"]
    for name in [*MODEL_FLAGS, *(field.name for field in fields(TrainConfig)), *others]:
        assert f"--{name.replace('_', '-')}" in out


def test_sizes_that_a_preset_leaves_open_follow_the_ones_that_are_given(book, tmp_path):
    finished(numllama_train("--data", book, *tiny(dim=24, n_heads=2, steps=1), "--out", tmp_path / "run"))
    model = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (model["dim"], model["n_heads"], model["n_kv_heads"], model["head_dim"]) == (24, 2, 2, 12)


# ------------------------------------------------------------------------------------------------ tokenizers


def bpe_loss(result) -> float:
    """What makes losses of different vocabularies comparable."""
    (line,) = [line for line in result.out.splitlines() if line.startswith("validation loss per byte of text: ")]
    return float(line.split()[-1])


def test_a_text_is_learnt_with_bpe_if_it_is_asked_for(book, tmp_path):
    out = tmp_path / "run"
    result = finished(numllama_train("--data", book, "--tokenizer", "bpe", *tiny(steps=4), "--out", out))
    tokenizer = Tokenizer.load(out)
    n = int(0.9 * len(TEXT))
    assert tokenizer.merges == train_on_text(TEXT[:n], 1024).merges
    assert load_run(out).config.vocab_size == tokenizer.vocab_size
    data = load_dataset(book, "bpe")
    assert data.tokenizer.decode(data.val) == TEXT[n:]
    per_token = float(result.last_line.split()[-1])
    assert bpe_loss(result) == pytest.approx(per_token * len(data.val) / len(TEXT[n:]), abs=2e-4)


def test_a_text_is_encoded_with_the_tokenizer_that_is_named(book, tmp_path):
    made = Tokenizer({i: bytes([i]) for i in range(256)} | {256: b"th", 257: b"the"}, [(b"t", b"h"), (b"th", b"e")], ["<s>"])
    made.save(tmp_path / "tokenizer")
    finished(numllama_train("--data", book, "--tokenizer", tmp_path / "tokenizer", *tiny(steps=1), "--out", tmp_path / "run"))
    assert Tokenizer.load(tmp_path / "run").merges == made.merges
    assert load_run(tmp_path / "run").config.vocab_size == 259


def test_char_is_the_default(book, done, tmp_path):
    finished(numllama_train("--data", book, "--tokenizer", "char", *tiny(steps=8), "--out", tmp_path / "run"))
    assert weights(tmp_path / "run") == weights(done[0])


def test_a_run_with_bpe_goes_on_with_its_own_tokenizer(book, tmp_path):
    arguments = ("--data", book, "--tokenizer", "bpe")
    finished(numllama_train(*arguments, *tiny(steps=4), "--out", tmp_path / "run"))
    finished(numllama_train("--resume", "--steps", 6, "--out", tmp_path / "run"))
    finished(numllama_train(*arguments, *tiny(steps=6), "--out", tmp_path / "straight"))
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
    refused(numllama_train("--resume", "--tokenizer", "char", "--out", tmp_path / "run"), "keeps its tokenizer")


def test_a_vocabulary_of_any_size_is_trained_on_the_text_and_kept(book, tmp_path):
    arguments, out = ("--data", book, "--vocab-size", 280), tmp_path / "run"
    finished(numllama_train(*arguments, *tiny(steps=2), "--out", out))
    made = Tokenizer.load(out)
    assert made.merges == train_on_text(TEXT[: int(0.9 * len(TEXT))], 280).merges
    assert load_run(out).config.vocab_size == made.vocab_size == 280
    refused(numllama_train("--resume", "--vocab-size", 280, "--out", out), "keeps its tokenizer, so vocab_size cannot change")
    refused(numllama_train("--resume=auto", "--vocab-size", 300, "--out", out), "so vocab_size cannot change")
    finished(numllama_train("--resume=auto", *arguments, "--tokenizer", "bpe", "--steps", 3, "--out", out))
    finished(numllama_train(*arguments, *tiny(steps=3), "--out", tmp_path / "straight"))
    assert weights(out) == weights(tmp_path / "straight")
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 280


@pytest.mark.parametrize(("flags", "words"), [
    (["--vocab-size", 300, "--tokenizer", "char"], "the size of a BPE vocabulary to train, but tokenizer is 'char'"),
    (["--vocab-size", 300, "--tokenizer", "some/folder"], "but tokenizer is 'some/folder': give one of them"),
    (["--vocab-size", 255], "vocab_size is 255, but 256 bytes and 0 special tokens need 256"),
])  # fmt: skip
def test_a_vocabulary_that_cannot_be_trained_is_refused_before_any_data_is_read(flags, words, tmp_path, monkeypatch):
    monkeypatch.setattr(train_run, "_open_data", None)
    assert words in refused(numllama_train(*flags, *tiny(), "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_tokens_need_no_vocabulary(book, tmp_path):
    prepare_texts([book], tmp_path / "tokens", vocab_size=300)
    said = refused(numllama_train("--data", tmp_path / "tokens", "--vocab-size", 300, *tiny(), "--out", tmp_path / "x"))
    assert "vocab_size is for texts" in said


def test_a_folder_that_was_prepared_is_trained_on_with_its_tokenizer(book, tmp_path):
    assert prepare_texts([book], tmp_path / "tokens", vocab_size=300) == 0
    result = finished(numllama_train("--data", tmp_path / "tokens", *tiny(steps=2), "--out", tmp_path / "run"))
    assert "a sample from the best checkpoint" in result.out
    assert Tokenizer.load(tmp_path / "run").merges == Tokenizer.load(tmp_path / "tokens").merges
    sentence = refused(numllama_train("--data", tmp_path / "tokens", "--tokenizer", "bpe", *tiny(), "--out", tmp_path / "x"))
    assert "holds tokens already" in sentence


def test_the_stand_in_can_be_learnt_with_bpe_and_then_has_no_best_predictor(without_network, tmp_path):
    result = finished(numllama_train("--tokenizer", "bpe", *tiny(steps=1), "--out", tmp_path / "run"))
    assert "best possible" not in result.out
    assert bpe_loss(result) > 0


def test_a_tokenizer_that_is_not_there_is_named(book, tmp_path):
    refused(numllama_train("--data", book, "--tokenizer", tmp_path / "no.json", *tiny()), "no.json does not exist")


# ------------------------------------------------------------------------------------------------ going on


def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(copy, book, tmp_path):
    finished(numllama_train("--resume", "--steps", 11, "--out", copy))
    straight = finished(numllama_train("--data", book, *tiny(steps=11), "--out", tmp_path / "straight"))
    assert weights(copy) == weights(tmp_path / "straight")
    assert (copy / "result.json").read_bytes() == (tmp_path / "straight" / "result.json").read_bytes()
    assert steps_in(copy) == list(range(1, 12))
    assert re.match(LAST_LINE, straight.last_line)


def test_to_resume_a_finished_run_says_its_loss_again(copy, done):
    assert finished(numllama_train("--resume", "--out", copy)).last_line == done[1].last_line
    assert steps_in(copy) == list(range(1, 9))


@pytest.mark.parametrize("steps", [[], ["--steps", 8], ["--steps", 5]])
def test_to_resume_a_finished_run_says_at_once_that_nothing_is_left(copy, monkeypatch, steps):
    monkeypatch.setattr(Trainer, "evaluate", lambda *_: pytest.fail("it is said before the evaluation"))
    out = io.StringIO()
    with redirect_stdout(out), pytest.raises(pytest.fail.Exception):
        main(["train", "--resume", *map(str, steps), "--out", str(copy)])
    most = steps[1] if steps else 8
    assert f"run: {copy}, 8 of {most} steps are done: nothing is left to train, unless you raise --steps\n" in out.getvalue()


@pytest.mark.parametrize("steps", [12, 100])
def test_to_lengthen_the_schedule_says_what_happens_to_the_learning_rate(book, tmp_path, steps):
    out = tmp_path / "run"
    finished(numllama_train("--data", book, *tiny(steps=8, min_lr=1e-4), "--out", out))
    result = finished(numllama_train("--resume", "--steps", steps, "--out", out))
    rates = [line["lr"] for line in log_of(out)]
    words = f"the learning rate goes from {rates[7]:.2e} in step 8 to {rates[8]:.2e} in step 9"
    assert f"the schedule now ends at step {steps}, not 8: {words}\n" in result.out
    assert rates[8] > 2 * rates[7]
    assert "the schedule" not in finished(numllama_train("--resume", "--out", out)).out


CHECKED_FIRST = [
    *(dict(flag) for flag in (dict(steps=0), dict(lr=-1), dict(n_heads=3), dict(dropout=2), dict(seq_len=9), dict(eval_every=0))),
    dict(tokenizer="no.json"), dict(device="tpu"), dict(preset="none"), dict(parallel="mpi", workers=3),
    dict(compute_dtype="float8"),
]  # fmt: skip


@pytest.mark.parametrize("flags", CHECKED_FIRST, ids=str)
def test_flags_are_checked_before_any_data_are_downloaded(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(train_run, "shakespeare_dataset", lambda **_: pytest.fail("it was downloaded"))
    refused(numllama_train(*tiny(**flags), "--out", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--steps", 0], ["--lr", -1], ["--seq-len", 9], ["--n-heads", 3], ["--optimizer", "adam"]])
def test_flags_of_a_resumed_run_are_checked_before_its_data_are_read(copy, monkeypatch, flags):
    monkeypatch.setattr(train_run, "load_dataset", lambda *_, **__: pytest.fail("it was read"))
    refused(numllama_train("--resume", *flags, "--out", copy))


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT between processes")
def test_ctrl_c_saves_and_resume_comes_to_the_same_end(book, tmp_path):
    arguments = ["--data", str(book), *tiny(steps=300, eval_every=1000)]
    command = [sys.executable, "-m", "numllama.cli", "train", *arguments, "--out", str(tmp_path / "stopped")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, patience = tmp_path / "stopped" / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 5) and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    step = int(re.search(r"interrupted after step (\d+): saved as .*; continue with --resume --out ", out)[1])
    assert 5 < step < 300
    assert steps_in(tmp_path / "stopped") == list(range(1, step + 1))
    assert find_step(tmp_path / "stopped").name == f"step-{step:06d}"

    rest = finished(numllama_train("--resume", "--out", tmp_path / "stopped"))
    straight = finished(numllama_train(*arguments, "--out", tmp_path / "straight"))
    assert rest.last_line == straight.last_line
    assert weights(tmp_path / "stopped") == weights(tmp_path / "straight")
    assert steps_in(tmp_path / "stopped") == list(range(1, 301))


def test_a_second_ctrl_c_does_not_wait():
    before = signal.getsignal(signal.SIGINT)
    with progress.interrupts() as caught:
        signal.raise_signal(signal.SIGTERM)  # however often it comes, the step in hand is finished
        signal.raise_signal(signal.SIGTERM)
        caught.clear()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first one, and what was begun is saved
        assert caught == [signal.SIGTERM, signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def interrupt_after(step, monkeypatch, number=signal.SIGINT):
    """Press Ctrl-C, or send another signal, in a step of every run from now on."""
    plain = Workers.loss_and_grads

    def pressing(*args, key, **kwargs):
        if key[1] == step:
            signal.raise_signal(number)
        return plain(*args, key=key, **kwargs)

    monkeypatch.setattr(Workers, "loss_and_grads", pressing)


@pytest.mark.parametrize("number", TO_END)
def test_a_signal_to_end_saves_and_exits_with_its_code(copy, book, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        interrupt_after(10, patch, number)
        result = numllama_train("--resume", "--steps", 12, "--out", copy)
    assert result.code == exit_code(number) == (129 if number == signal.SIGHUP else 0)
    assert "interrupted after step 10: saved as" in result.out
    assert "validation loss:" not in result.out
    assert find_step(copy).name == "step-000010"
    finished(numllama_train("--resume", "auto", "--out", copy))
    finished(numllama_train("--data", book, *tiny(steps=12), "--out", tmp_path / "straight"))
    assert weights(copy) == weights(tmp_path / "straight")


@pytest.mark.parametrize("moment", ["load_dataset", "sample"])
def test_sigterm_where_there_is_nothing_to_save_exits_with_0_too(copy, monkeypatch, moment):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train_run, moment, lambda *args, **options: signal.raise_signal(signal.SIGTERM))
    assert numllama_train("--resume", "--steps", 9, "--out", copy).code == 0
    assert find_step(copy).name == ("step-000008" if moment == "load_dataset" else "step-000009")
    assert signal.getsignal(signal.SIGTERM) == before


def test_auto_begins_where_there_is_no_run_and_goes_on_where_there_is_one(book, tmp_path):
    out = tmp_path / "run"
    arguments = ("--data", book, "--out", out, "--resume", "auto")
    finished(numllama_train(*arguments, *tiny(steps=5)))
    finished(numllama_train(*arguments, *tiny(steps=8)))  # the same model is no change
    finished(numllama_train("--data", book, *tiny(steps=8), "--out", tmp_path / "straight"))
    assert steps_in(out) == list(range(1, 9))
    assert weights(out) == weights(tmp_path / "straight")
    refused(numllama_train(*arguments, *tiny(dim=24)), "a resumed run keeps its model, so dim cannot change")
    refused(numllama_train(*arguments, *tiny(), "--preset", "117m"), "keeps its model, so tie_embeddings, init_std cannot change")
    finished(numllama_train(*arguments, *tiny(), "--preset", "shakespeare-cpu"))
    refused(numllama_train(*arguments, "--tokenizer", "bpe"), "keeps its tokenizer")


@pytest.mark.parametrize("resume", [("--resume",), ("--resume", "auto")])
def test_a_run_that_was_begun_with_some_workers_goes_on_with_ranks(copy, monkeypatch, resume):
    for module in (train_run, launched):
        monkeypatch.setattr(module, "communicator", lambda parallel: Communicator())
    finished(numllama_train(*resume, "--steps", 9, "--workers", 2, "--out", copy))
    finished(numllama_train(*resume, "--steps", 10, "--parallel", "mpi", "--out", copy))
    assert steps_in(copy) == list(range(1, 11))


@pytest.mark.parametrize("arguments", [("--resume", "--steps", 9), ("--resume", "auto")])
def test_a_folder_in_which_another_process_trains_is_refused_and_left_alone(copy, arguments):
    before = contents(copy)
    with only_run_in(copy, begun=True):
        refused(numllama_train(*arguments, "--out", copy), f"{copy} is in use: another process trains there")
        assert contents(copy) | {".lock": b""} == before | {".lock": b""}
    finished(numllama_train(*arguments, "--out", copy))


def test_two_new_runs_that_begin_in_one_folder_at_once_do_not_both_write_there(book, tmp_path, monkeypatch):
    out, second = tmp_path / "run", []

    def at_the_last_moment(*arguments, **options):
        monkeypatch.undo()
        second.append(numllama_train("--data", book, *tiny(), "--out", out))
        return only_run_in(*arguments, **options)

    monkeypatch.setattr(train_run, "only_run_in", at_the_last_moment)
    refused(numllama_train("--data", book, *tiny(), "--out", out), "already holds a run")
    finished(second[0])
    assert steps_in(out) == list(range(1, 9))


def test_auto_without_a_folder_takes_the_newest_run_or_a_new_one(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for steps in (1, 2):
        finished(numllama_train("--data", book, *tiny(steps=steps), "--resume", "auto"))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["shakespeare-cpu"]
    assert steps_in(tmp_path / "runs" / "shakespeare-cpu") == [1, 2]


def test_auto_names_what_is_damaged_and_goes_on_from_the_checkpoint_before_it(copy, done):
    path = copy / "step-000008" / "optimizer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"???")
    result = finished(numllama_train("--resume", "auto", "--out", copy))
    assert f"{path} is damaged: its checksum is wrong; resuming from step 4\n" in result.out
    assert weights(copy) == weights(done[0])
    assert steps_in(copy) == list(range(1, 9))


def test_a_wrong_byte_in_the_config_is_noticed_or_harmless(copy):
    path = copy / "config.json"
    content, expected = path.read_bytes(), train_run._read_about(copy)
    rng, noticed = np.random.default_rng(0), 0
    for at in rng.integers(0, len(content), 300):
        flipped = bytearray(content)
        flipped[at] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        try:
            assert train_run._read_about(copy) == expected
        except CheckpointError as error:
            assert "config.json is damaged" in str(error)
            noticed += 1
    assert noticed > 150


def test_the_keep_flag_says_how_many_checkpoints_stay(book, tmp_path):
    finished(numllama_train("--data", book, *tiny(steps=8, eval_every=1), "--keep", 3, "--out", tmp_path / "run"))
    best = find_step(tmp_path / "run", "best").name
    kept = {path.name for path in (tmp_path / "run").glob("step-*")}
    assert kept == {"step-000006", "step-000007", "step-000008", best}


def test_changes_of_a_resumed_run_hold_when_it_is_resumed_again(copy, monkeypatch):
    interrupt_after(10, monkeypatch)
    assert numllama_train("--resume", "--steps", 12, "--lr", 2e-2, "--min-lr", 2e-2, "--out", copy).code == 130
    finished(numllama_train("--resume", "--out", copy))
    lines = log_of(copy)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["lr"] for line in lines[8:]] == [2e-2] * 4


def test_lines_of_the_log_that_are_done_again_are_replaced(copy):
    with open(copy / "metrics.jsonl", "a") as log:  # a kill came after step 10, and the checkpoint is of step 8
        log.writelines(json.dumps({"step": step, "loss": 0.0}) + "\n" for step in (9, 10))
        log.write('{"step": 11, "lo')
    finished(numllama_train("--resume", "--steps", 10, "--out", copy))
    lines = log_of(copy)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all(line["loss"] > 0 for line in lines)


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\0\0\0\0", b"7", b"null", b"[]", b'{"loss": 1.0}', b'{"step": "x"}'], ids=str)
def test_a_damaged_log_does_not_keep_a_run_from_going_on(copy, damage):
    with open(copy / "metrics.jsonl", "ab") as log:
        log.write(damage + b"\n")
    finished(numllama_train("--resume", "--steps", 9, "--out", copy))
    assert steps_in(copy) == list(range(1, 10))


def test_a_run_whose_log_is_gone_still_comes_to_its_end(copy):
    (copy / "metrics.jsonl").unlink()
    finished(numllama_train("--resume", "--out", copy))


@pytest.mark.parametrize("name", MODEL_FLAGS)
def test_a_resumed_run_keeps_its_model(copy, name):
    kind = {field.name: field.type for field in fields(ModelConfig)}[name]
    value = [] if kind is bool else ["3"]
    before = contents(copy)
    flags = [f"--{name.replace('_', '-')}", *value]
    refused(numllama_train("--resume", "--out", copy, *flags), f"a resumed run keeps its model, so {name} cannot change")
    assert contents(copy) == before


def test_a_run_is_not_gone_on_with_on_other_data(copy, tmp_path):
    (tmp_path / "other.txt").write_text(TEXT[:-45])
    before = contents(copy)
    refused(numllama_train("--resume", "--steps", 9, "--out", copy, "--data", tmp_path / "other.txt"), "other data")
    assert contents(copy) == before


DAMAGED = {
    "empty": b"",
    "cut short": b'{"data": null, "mod',
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "nothing in it": b"{}",
    "no model": b'{"data": null, "train": {}}',
    "a number for a model": b'{"data": null, "model": 3, "train": {}}',
    "an unknown field": b'{"data": null, "model": %(model)s, "train": {"speed": 3}}',
    "text for a number": b'{"data": null, "model": %(model)s, "train": {"steps": "many"}}',
    "null for a number": b'{"data": null, "model": %(model)s, "train": {"steps": null}}',
    "text for rope_scaling": b'{"data": null, "train": {}, "model": {"vocab_size": 3, "dim": 8, "n_layers": 1, "n_heads": 2, '
    b'"rope_scaling": "x"}}',
    "a number for a path": b'{"data": 5, "model": %(model)s, "train": {}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_named(copy, content):
    model = json.dumps(json.loads((copy / "config.json").read_text())["model"]).encode()
    (copy / "config.json").write_bytes(content.replace(b"%(model)s", model))
    before = contents(copy)
    refused(numllama_train("--resume", "--out", copy), "config.json is damaged")
    assert contents(copy) == before


def test_a_damaged_pointer_is_named(copy):
    (copy / "latest.json").write_text("{")
    refused(numllama_train("--resume", "--out", copy), "latest.json is damaged")


# ------------------------------------------------------------------------------------------------ what cannot be


def test_a_folder_that_holds_a_run_is_left_alone(copy, book):
    before = contents(copy)
    sentence = refused(numllama_train("--data", book, *tiny(steps=1), "--out", copy), "already holds a run")
    assert str(copy) in sentence
    assert contents(copy) == before


IMPOSSIBLE = {
    "preset": (dict(preset="tiny"), "preset is 'tiny', but must be one of shakespeare-cpu, "),
    "steps": (dict(steps=0), "steps is 0"),
    "lr": (dict(lr=-1), "lr is -1"),
    "heads": (dict(n_heads=3), "n_heads is 3"),
    "dropout": (dict(dropout=1), "dropout is 1"),
    "seq_len": (dict(seq_len=9), "seq_len is 9, but the model's max_seq_len is 8"),
    "device": (dict(device="tpu"), "device is 'tpu', but must be 'cpu', 'cuda' or 'cuda:N'"),
    "memory": (dict(dim=10_000_000), "memory"),
    "long": (dict(max_seq_len=5000), "the train split of"),
}


@pytest.mark.parametrize(("flags", "sentence"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_flag_is_one_sentence_and_leaves_no_folder(book, tmp_path, flags, sentence):
    refused(numllama_train("--data", book, *tiny(**flags), "--out", tmp_path / "run"), sentence)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"", b"x", b"abcab", b"caf\xe9"])
def test_data_that_cannot_be_used_is_one_sentence_that_names_it(tmp_path, content):
    path = tmp_path / "data.txt"
    if content is not None:
        path.write_bytes(content)
    refused(numllama_train("--data", path, *tiny(), "--out", tmp_path / "run"), str(path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--steps", "many"], ["--no-such-flag", "3"], ["--lr"], ["stray"]], ids=" ".join)
def test_a_flag_that_cannot_be_read_is_told_in_a_box(book, flags):
    result = numllama_train("--data", book, *flags)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert any(word.lstrip("-") in result.err for word in flags)


def test_a_missing_gpu_is_one_sentence(book, tmp_path):
    try:
        array_module("cuda")
    except DeviceError:
        refused(numllama_train("--data", book, "--device", "cuda", "--out", tmp_path / "run"), "device 'cuda' needs")
        assert not (tmp_path / "run").exists()
    else:
        pytest.skip("there is a GPU")


def test_to_resume_where_there_is_no_run_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(numllama_train("--resume"), "no run to resume under runs/shakespeare-cpu")
    refused(numllama_train("--resume", "--out", "nowhere"), "nowhere holds no run to resume")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_a_folder_that_cannot_be_made_is_one_sentence(book, tmp_path, out):
    (tmp_path / "file").write_text("not a folder")
    refused(numllama_train("--data", book, *tiny(), "--out", tmp_path / out), "cannot be written")
    assert (tmp_path / "file").read_text() == "not a folder"


def failing_with(code):
    """A method of Path that the system refuses."""

    def refuse(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    return refuse


def test_a_disk_that_is_read_only_is_one_sentence(book, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "mkdir", failing_with(errno.EROFS))
    sentence = refused(numllama_train("--data", book, *tiny(), "--out", tmp_path / "run"), "cannot be written")
    assert os.strerror(errno.EROFS) in sentence


def test_a_book_that_may_not_be_read_is_one_sentence(book, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", failing_with(errno.EACCES))
    refused(numllama_train("--data", book, *tiny(), "--out", tmp_path / "run"), f"{book} cannot be read")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ trouble on the way


@contextmanager
def files_no_larger_than(n):
    """Let the system refuse to write more than n bytes to a file, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limits for files on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_a_checkpoint_is_one_sentence_and_the_run_goes_on_later(book, copy, done):
    before = contents(find_step(copy))
    with files_no_larger_than(5000):
        result = numllama_train("--resume", "--steps", 12, "--out", copy)
    refused(result, f"the checkpoint of step 12 could not be saved in {copy}: {os.strerror(errno.EFBIG)}")
    assert contents(find_step(copy)) == before
    assert list(copy.glob(".*")) == []
    finished(numllama_train("--resume", "--steps", 12, "--out", copy))
    assert steps_in(copy) == list(range(1, 13))


@pytest.mark.parametrize("room", [50, 1000, 5000])
def test_a_disk_that_is_full_when_a_run_is_resumed_loses_nothing(copy, room):
    lines = [json.dumps({"step": step % 8 + 1, "loss": 1.0, "padding": "x" * 100}) + "\n" for step in range(100)]
    (copy / "metrics.jsonl").write_text("".join(lines))
    before = contents(copy)
    with files_no_larger_than(room):
        refused(numllama_train("--resume", "--steps", 9, "--out", copy))
    after = contents(copy)
    assert [name for name in before if before[name] != after[name] and name != "config.json"] == []
    finished(numllama_train("--resume", "--steps", 9, "--out", copy))


def loss_at(step, value, monkeypatch):
    """Let the loss of one step be `value`."""
    plain = Workers.loss_and_grads

    def broken(*args, key, **kwargs):
        loss, grads = plain(*args, key=key, **kwargs)
        return value if key[1] == step else loss, grads

    monkeypatch.setattr(Workers, "loss_and_grads", broken)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_told_and_survived(book, tmp_path, monkeypatch, value):
    loss_at(3, value, monkeypatch)
    result = finished(numllama_train("--data", book, *tiny(steps=5), "--out", tmp_path / "run"))
    assert "step 3: skipped" in result.err
    assert "1 step(s) were skipped" in result.out


def test_a_spike_is_told(book, tmp_path, monkeypatch):
    loss_at(30, 99.0, monkeypatch)
    result = finished(numllama_train("--data", book, *tiny(steps=32), "--out", tmp_path / "run"))
    assert re.search(r"step 30: a spike, its loss of 99\.0000 is \d+\.\d standard deviations above the mean", result.err)
    assert [line["step"] for line in log_of(tmp_path / "run") if "spike" in line] == [30]


def test_a_picture_that_cannot_be_written_does_not_hide_the_validation_loss(copy):
    (copy / "loss.png").unlink()
    (copy / "loss.png").mkdir()
    finished(numllama_train("--resume", "--out", copy))


def test_without_matplotlib_a_run_says_how_to_get_the_picture(copy, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    (copy / "loss.png").unlink()
    assert f"it needs {install_command('plot')}" in finished(numllama_train("--resume", "--out", copy)).out


def test_a_terminal_that_cannot_show_the_characters_of_a_book_still_gets_the_loss(tmp_path):
    (tmp_path / "book.txt").write_text("\u4e2d\u6587\u5b57\n" * 100, encoding="utf-8")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with redirect_stdout(terminal), redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as end:
        main(["train", "--data", str(tmp_path / "book.txt"), *tiny(steps=2), "--out", str(tmp_path / "run")])
    assert end.value.code == 0, err.getvalue()
    terminal.flush()
    assert re.match(LAST_LINE, terminal.buffer.getvalue().decode().splitlines()[-1])
