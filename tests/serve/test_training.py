"""A run in progress, as another process writes it."""

import asyncio
import json
import os

from serve.served import small_engine

import numllama as nl
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
            trainer._end_save()  # which else goes on beside the next steps
            assert watch.is_due
            asyncio.run(watch.sample(engine))
            assert not watch.is_due
    assert [step for step, _ in watch.samples] == [4, 2]
    assert all(len(text) > 50 and set(text) <= set("abcd \n") for _, text in watch.samples)
    engine.close()
