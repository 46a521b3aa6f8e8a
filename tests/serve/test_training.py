"""A training run that another process is writing."""

import asyncio
import json
import os
import re

import pytest
from serve.served import small_engine

import numllama as nl
from numllama.serve import training as module
from numllama.serve.training import Log, Watch, runs_in
from numllama.training import TrainConfig, Trainer, load_dataset


def line(step, loss=2.0):
    return json.dumps({"step": step, "loss": loss}) + "\n"


def steps(log):
    return [line["step"] for line in log.lines]


def test_a_log_is_read_as_it_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    assert not log.read()
    path.write_text(line(1) + line(2)[:9], encoding="utf-8")
    assert log.read()
    assert steps(log) == [1]
    assert not log.read()
    with open(path, "a", encoding="utf-8") as file:
        file.write(line(2)[9:] + "damaged\n[]\n" + line(3))
    assert log.read()
    assert steps(log) == [1, 2, 3]


@pytest.mark.parametrize(("odd", "why"), [
    ("damaged", "Expecting value"), ("[1, 2]", "it has no step and loss"), ("{}", "it has no step and loss"),
    ('{"step": true, "loss": 1.0}', "step is True, but must be a whole number"),
    ('{"step": -1, "loss": 1.0}', "step is -1"), ('{"step": 1e400, "loss": 1.0}', "step is"),
    ('{"step": 1' + "0" * 400 + ', "loss": 1.0}', "step is 1000"), ('{"step": 2, "loss": "low"}', "loss is 'low'"),
    ('{"step": 2, "loss": 1' + "0" * 400 + "}", "loss is 1000"), ('{"step": 2, "loss": 1.0, "val_loss": []}', "val_loss is []"),
    ('{"step": 2, "loss": 1.0, "tokens_per_second": {}}', "tokens_per_second is {}"), ("[" * 100_000, "nested too deeply"),
    ("\x00\x00", "Expecting value"), ("9" * 5000, "Exceeds the limit"),
])  # fmt: skip
def test_a_line_that_is_none_is_one_sentence_and_the_others_are_read(tmp_path, odd, why):
    log = Log(tmp_path / "metrics.jsonl")
    log.path.write_text(line(1) + odd + "\n" + line(3) + "more of it\n", encoding="utf-8")
    assert log.read()
    assert steps(log) == [1, 3]
    assert log.problem.startswith("metrics.jsonl has invalid lines, the first is line 2: ")
    assert why in log.problem
    assert len(log.problem) < 200
    log.path.write_text(line(1), encoding="utf-8")  # rewritten
    assert log.read()
    assert log.problem is None


def test_bytes_that_are_no_text_are_named(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    log.path.write_bytes(line(1).encode() + b"{\xff}\n")
    assert log.read()
    assert "the first is line 2: 'utf" in log.problem


def test_a_step_without_a_finite_loss_has_no_point(tmp_path):
    log = Log(tmp_path / "metrics.jsonl")
    log.path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 2, "val_loss": null}\n')
    assert log.read()
    assert log.lines == [{"step": 3, "loss": 2.0}]
    assert type(log.lines[0]["loss"]) is float
    assert log.problem is None


def test_what_is_no_file_is_not_waited_for(tmp_path):
    (tmp_path / "a folder").mkdir()
    os.mkfifo(tmp_path / "a pipe")
    for name in ("a folder", "a pipe", "/dev/zero"):
        log = Log(tmp_path / name)
        assert log.read()
        assert re.fullmatch("metrics.jsonl cannot be read: .+", log.problem)
        assert not log.read()  # nothing new


def test_a_line_without_end_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_READ", 100)
    log = Log(tmp_path / "metrics.jsonl")
    log.path.write_text("x" * 350 + "\n" + line(1), encoding="utf-8")
    while log.read():
        pass
    assert steps(log) == [1]
    assert "line 1: " in log.problem


def test_a_checkpoint_that_cannot_be_read_says_so_once(tmp_path, monkeypatch):
    watch = Watch(tmp_path)
    monkeypatch.setattr(watch, "_latest", lambda: 3)
    for error in (KeyError("weights"), MemoryError(), RecursionError("deep")):

        def fail(error=error):
            raise error

        monkeypatch.setattr(watch, "_load", fail)
        watch.samples = []
        assert watch.is_due
        asyncio.run(watch.sample(None))
        assert not watch.is_due
        assert watch.samples == [(3, f"({error or type(error).__name__})")]


def test_a_run_that_was_resumed_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(line, range(1, 9))), encoding="utf-8")
    log = Log(path)
    log.read()
    (tmp_path / "new").write_text("".join(map(line, range(1, 5))) + "".join(map(line, range(5, 20))), encoding="utf-8")
    os.replace(tmp_path / "new", path)
    log.read()
    assert steps(log) == list(range(1, 20))


def test_runs_are_named_the_latest_first(tmp_path):
    for i, name in enumerate(("one", "zwei ä", "three")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
        os.utime(tmp_path / name / "metrics.jsonl", (i, i))
    (tmp_path / "no run").mkdir()
    assert runs_in(tmp_path) == ["three", "zwei ä", "one"]
    assert runs_in(tmp_path / "nothing") == []


def test_each_checkpoint_writes_once(tmp_path):
    (tmp_path / "book.txt").write_text("abc abd\n" * 200, encoding="utf-8")
    data, run = load_dataset(tmp_path / "book.txt"), tmp_path / "run"
    model = nl.Transformer(nl.ModelConfig(data.vocab_size, dim=8, n_layers=1, n_heads=2, max_seq_len=8))
    trainer = Trainer(model, data, TrainConfig(steps=4, batch_size=2, eval_every=2, eval_batches=1, workers=1), run)
    engine, watch = small_engine(), Watch(run)
    assert not watch.is_due
    run.mkdir()
    data.tokenizer.save(run)
    for report in trainer:
        if report.val_loss is not None:
            trainer._writer.wait()  # else it overlaps with the next steps
            assert watch.is_due
            asyncio.run(watch.sample(engine))
            assert not watch.is_due
    assert [step for step, _ in watch.samples] == [4, 2]
    assert all(len(text) > 50 and set(text) <= set("abcd \n") for _, text in watch.samples)
    engine.close()
