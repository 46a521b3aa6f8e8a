"""A trainer's checkpoints, where it stands in its data, and its guards: what a run survives."""

import errno
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training.test_trainer import DATA, SMALL, T, bits, build, go, train

from numllama.data.token_files import checksum
from numllama.errors import CheckpointError
from numllama.model import ModelConfig
from numllama.training import TrainConfig, checkpoint, load_dataset, write_tokens
from numllama.training.checkpoint import Snapshot
from numllama.training.report import spike

DAMAGED = int(os.environ.get("NUMLLAMA_DAMAGE", 200))  # CI asks for 2000

# ------------------------------------------------------------------------------------------------ saved while training goes on


def everything(trainer) -> tuple:
    return bits(trainer), trainer.step, trainer.windows, trainer.optimizer.steps


def held_back(monkeypatch) -> threading.Event:
    """Let no checkpoint be written before the event is set."""
    plain, go_on = Snapshot.write, threading.Event()
    monkeypatch.setattr(Snapshot, "write", lambda self, run: (go_on.wait(30), plain(self, run))[1])
    return go_on


def test_steps_are_done_while_a_checkpoint_is_written_and_it_is_of_its_own_step(tmp_path, monkeypatch):
    go_on, trainer = held_back(monkeypatch), train(tmp_path, eval_every=2, steps=4)
    loop = iter(trainer)
    next(loop), next(loop)
    then = everything(trainer)
    next(loop)
    assert trainer.step == 3
    assert not checkpoint.step_folders(tmp_path)
    go_on.set()
    loop.close()
    assert checkpoint.find_step(tmp_path).name == "step-000002"
    other = train(tmp_path)
    other.resume()
    assert everything(other) == then


def test_there_are_never_two_saves_at_once_and_none_is_left_out(tmp_path, monkeypatch):
    plain, now, most = Snapshot.write, [], []

    def write(self, run):
        now.append(self.step)
        most.append(list(now))
        time.sleep(0.01)
        folder = plain(self, run)
        now.remove(self.step)
        return folder

    monkeypatch.setattr(Snapshot, "write", write)
    go(train(tmp_path, eval_every=1, steps=8))
    assert most == [[step] for step in range(1, 9)]


def full_disk(self, run):
    raise CheckpointError(f"the checkpoint of step {self.step} could not be saved in {run}: No space left on device")


def test_a_save_that_failed_ends_the_loop_at_the_next_step_with_the_last_good_checkpoint_intact(tmp_path, monkeypatch):
    trainer = train(tmp_path, eval_every=4)
    go(trainer, until=4)
    good = {path: path.read_bytes() for path in checkpoint.find_step(tmp_path).iterdir()}
    monkeypatch.setattr(Snapshot, "write", full_disk)
    with pytest.raises(CheckpointError, match=r"step 8 could not be saved in .*: No space left on device"):
        for _ in trainer:
            time.sleep(0.02)
    assert trainer.step in (9, 10, 11)
    assert {path: path.read_bytes() for path in checkpoint.find_step(tmp_path).iterdir()} == good
    monkeypatch.undo()
    trainer.save()  # somebody made room
    assert checkpoint.find_step(tmp_path).name == f"step-{trainer.step:06d}"


def test_the_error_of_a_save_is_not_lost_when_the_loop_is_left(tmp_path, monkeypatch):
    trainer = train(tmp_path, eval_every=2)
    monkeypatch.setattr(Snapshot, "write", full_disk)
    next(report for report in trainer if report.step == 2)
    with pytest.raises(CheckpointError, match="step 2 could not be saved"):
        trainer.close()


def test_a_folder_that_vanishes_ends_the_loop_and_is_not_made_anew(tmp_path):
    out = tmp_path / "run"
    trainer = train(out, eval_every=2)
    go(trainer, until=3)
    out.rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=f"the checkpoint of step 4 could not be saved: the folder {out} is gone"):
        go(trainer)
    assert not out.exists()
    other = train(tmp_path / "moved")
    other.resume()
    assert other.step == 2


@pytest.mark.parametrize("call", ["mkdir", "replace"])
def test_a_folder_that_becomes_read_only_ends_the_loop_with_one_sentence(tmp_path, monkeypatch, call):
    trainer = train(tmp_path, eval_every=2)
    go(trainer, until=2)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path if call == "mkdir" else os, call, refuse)
    with pytest.raises(CheckpointError, match=f"step 4 could not be saved in .*: {os.strerror(errno.EROFS)}"):
        go(trainer)
    monkeypatch.undo()
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == ["step-000002"]
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept_and_the_best(tmp_path, keep):
    trainer = train(tmp_path, keep=keep)
    for loss in (3.0, 2.0, 4.0, 4.0, 4.0, 4.0):
        go(trainer, until=trainer.step + 1)
        trainer.save(val_loss=loss)
    kept = [int(folder.name[-6:]) for folder in checkpoint.step_folders(tmp_path)]
    assert kept == [*range(6, 6 - keep, -1), 2]


def test_a_checkpoint_says_all_that_is_needed_to_do_it_again(tmp_path):
    trainer = train(tmp_path, seed=3)
    go(trainer, until=2)
    state = checkpoint.read_state(trainer.save())
    assert TrainConfig(**state["train"]) == trainer.config
    assert state["train"]["seed"] == 3
    assert ModelConfig.from_dict(state["model"]) == trainer.model.config
    assert state["versions"]["numpy"] == np.__version__
    assert "openblas" in state["versions"]["blas"] or state["versions"]["blas"]
    assert set(state["versions"]) == {"numllama", "python", "numpy", "blas", "system"}
    assert state["data"]["sha256"] == {"train": checksum(DATA.train), "val": checksum(DATA.val)}
    assert state["data"]["windows"] == 2 * SMALL.batch_size


# ------------------------------------------------------------------------------------------------ damage


def flip(path, at=-40):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.OPTIMIZER, checkpoint.STATE])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, name):
    straight = train()
    go(straight)
    go(train(tmp_path, eval_every=3), until=7)
    flip(tmp_path / "step-000006" / name)
    with pytest.raises(CheckpointError, match=f"step-000006.{name} is damaged"):
        train(tmp_path).resume()
    second = train(tmp_path)
    (sentence,) = second.resume(fall_back=True)
    assert f"step-000006/{name} is damaged" in sentence
    assert second.step == 3
    assert checkpoint.find_step(tmp_path).name == checkpoint.find_step(tmp_path, "best").name == "step-000003"
    assert (tmp_path / "damaged-step-000006" / name).exists()
    go(second)
    assert bits(second) == bits(straight)
    assert checkpoint.find_step(tmp_path).name == "step-000012"


def test_where_all_checkpoints_are_damaged_the_run_begins_anew_and_deletes_nothing(tmp_path):
    go(train(tmp_path, eval_every=3), until=7)
    for step in (3, 6):
        (tmp_path / f"step-{step:06d}" / checkpoint.WEIGHTS).unlink()
    second = train(tmp_path)
    assert [f"step-{step:06d}" in sentence for step, sentence in zip((6, 3), second.resume(fall_back=True), strict=True)]
    assert second.step == 0
    straight = train()
    go(straight)
    go(second)
    assert bits(second) == bits(straight)
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == ["damaged-step-000003", "damaged-step-000006"]


def test_a_step_that_is_damaged_twice_is_quarantined_twice(tmp_path):
    for _ in range(2):
        trainer = train(tmp_path, eval_every=3)
        trainer.resume(fall_back=True)
        go(trainer, until=6)
        flip(tmp_path / "step-000006" / checkpoint.STATE)
    train(tmp_path).resume(fall_back=True)
    assert sorted(path.name for path in tmp_path.glob("damaged-*")) == ["damaged-step-000006", "damaged-step-000006-2"]


def test_damaged_pointers_are_written_anew(tmp_path):
    go(train(tmp_path, eval_every=3), until=7)
    for name in ("latest", "best"):
        flip(tmp_path / f"{name}.json")
    second = train(tmp_path)
    assert second.resume(fall_back=True) == []
    assert checkpoint.find_step(tmp_path).name == "step-000006"
    assert checkpoint.find_step(tmp_path, "best").name == f"step-{second._writer.best_step:06d}"


def test_a_checkpoint_that_was_whole_but_not_yet_named_when_the_kill_came_is_used(tmp_path):
    go(train(tmp_path, eval_every=3), until=7)
    checkpoint.write_pointer(tmp_path, "latest", tmp_path / "step-000003")
    second = train(tmp_path)
    second.resume()
    assert second.step == 6
    assert checkpoint.find_step(tmp_path).name == "step-000006"


def test_a_kill_before_the_first_pointer_loses_nothing(tmp_path):
    go(train(tmp_path, eval_every=3), until=4)
    for name in ("latest", "best"):
        (tmp_path / f"{name}.json").unlink()
    second = train(tmp_path)
    second.resume()
    assert second.step == 3
    assert checkpoint.find_step(tmp_path).name == checkpoint.find_step(tmp_path, "best").name == "step-000003"


def test_data_with_one_token_changed_are_other_data(tmp_path):
    go(train(tmp_path, eval_every=2), until=2)
    tokens = DATA.train.copy()
    tokens[17] = (tokens[17] + 1) % DATA.vocab_size
    for fall_back in (False, True):
        with pytest.raises(CheckpointError, match="other data: a fox"):
            train(tmp_path, data=replace(DATA, train=tokens)).resume(fall_back)
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == ["step-000002"]


def test_wrong_bytes_are_each_noticed_or_harmless(tmp_path, monkeypatch):
    """One at a time, in any file of a step folder and in the pointers: what is gone on from is always what was saved."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    expected = {}
    first = train(tmp_path / "run", eval_every=1, model=build(dim=8))
    for report in first:
        expected[report.step] = everything(first)
        if report.step == 3:
            break
    whole = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    rng, second = np.random.default_rng(0), train(tmp_path / "run", model=build(dim=8))
    noticed = 0
    for _ in range(DAMAGED):
        path = list(whole)[rng.integers(len(whole))]
        content = bytearray(whole[path])
        content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        strict = second.step, everything(second)
        try:
            second.resume()
        except CheckpointError as error:
            assert "\n" not in str(error)
            assert everything(second) == strict[1]
            noticed += 1
            damaged = second.resume(fall_back=True)
            assert len(damaged) == path.is_relative_to(tmp_path / "run" / "step-000003")
            assert second.step == (2 if damaged else 3)
        assert everything(second) == expected[second.step]
        for aside in (tmp_path / "run").glob("damaged-*"):
            aside.rename(aside.with_name(aside.name.removeprefix("damaged-")))
        for file, content in whole.items():
            if file == path or file.suffix == ".json":
                file.write_bytes(content)
    assert noticed > 0.3 * DAMAGED


# ------------------------------------------------------------------------------------------------ before the first step


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_was_saved_before_its_first_step_goes_on(tmp_path, stopped):
    straight, first = train(), train(tmp_path)
    go(straight)
    first.save()
    second = train(tmp_path) if stopped else first
    if stopped:
        second.resume()
    go(second)
    assert bits(second) == bits(straight)


def test_what_is_saved_before_the_first_step_never_stands_in_the_folder_of_another_run(tmp_path):
    go(train(tmp_path, eval_every=3))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=f"{tmp_path} already holds a run"):
        train(tmp_path).save()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------------------------ other settings


@pytest.mark.parametrize(
    ("dtypes", "scale"), [(("float32", "float16"), 2.0**16), (("float16", "float32"), 1), (("float16", "float16"), 2.0**10)]
)
def test_the_scale_of_gradients_is_gone_on_with_in_float16_alone(tmp_path, dtypes, scale):
    first, second = (train(tmp_path, model=build(compute_dtype=dtype), compute_dtype=dtype) for dtype in dtypes)
    first.loss_scale.value = min(first.loss_scale.value, 2.0**10)
    go(first, until=2)
    first.save()
    second.resume()
    assert second.loss_scale.value == scale


def test_another_optimizer_is_refused_by_name(tmp_path):
    go(train(tmp_path, eval_every=2), until=2)
    with pytest.raises(CheckpointError, match=r"step-000002 was trained with adamw, .* optimizer is 'sgd'"):
        train(tmp_path, optimizer="sgd").resume(fall_back=True)


def test_settings_that_are_numbers_of_numpy_are_saved_as_any_others(tmp_path):
    trainer = train(tmp_path, steps=np.int64(4), lr=np.float32(0.5))
    go(trainer)
    assert checkpoint.read_state(checkpoint.find_step(tmp_path))["train"]["lr"] == 0.5


def test_a_best_checkpoint_that_somebody_has_deleted_does_not_let_the_disk_fill_up(tmp_path):
    trainer = train(tmp_path)
    for step in range(1, 8):
        go(trainer, until=step)
        trainer.save(val_loss=float(step))
        if step == 2:
            shutil.rmtree(tmp_path / "step-000001")
    assert [folder.name for folder in checkpoint.step_folders(tmp_path)] == ["step-000007", "step-000006"]


# ------------------------------------------------------------------------------------------------ windows without replacement


EPOCHS = dict(sampling="epochs", batch_size=5, steps=48)  # 103 windows: a bit more than two epochs


def batches_of(trainer, monkeypatch) -> list:
    """What the model sees, from now on."""
    seen, plain = [], trainer.workers.loss_and_grads
    note = lambda batch, *args, **options: (seen.append(batch.tokens.tolist()), plain(batch, *args, **options))[1]  # noqa: E731
    monkeypatch.setattr(trainer.workers, "loss_and_grads", note)
    return seen


def test_each_window_comes_once_in_an_epoch(monkeypatch):
    trainer = train(**EPOCHS)
    seen = batches_of(trainer, monkeypatch)
    go(trainer)
    windows = [tuple(row) for batch in seen for row in batch]
    n = (len(DATA.train) - 1) // T
    assert len(windows) > 2 * n
    expected = sorted(tuple(DATA.train[w * T : (w + 1) * T].tolist()) for w in range(n))
    assert sorted(windows[:n]) == expected
    assert windows[:n] != windows[n : 2 * n]


@pytest.mark.parametrize("stop", [1, 21, 22, 23])
def test_a_run_that_was_stopped_sees_the_batches_that_it_would_have_seen(tmp_path, monkeypatch, stop):
    straight = train(**EPOCHS)
    expected = batches_of(straight, monkeypatch)
    go(straight)
    first = train(tmp_path, **EPOCHS)
    seen = batches_of(first, monkeypatch)
    go(first, until=stop)
    first.save()
    second = train(tmp_path, **EPOCHS, workers=2)
    rest = batches_of(second, monkeypatch)
    second.resume()
    go(second)
    assert seen + rest == expected
    assert bits(second) == bits(straight)


def test_a_run_that_goes_on_with_another_batch_size_leaves_out_no_window_and_takes_none_twice(tmp_path, monkeypatch):
    first = train(tmp_path, **EPOCHS)
    seen = batches_of(first, monkeypatch)
    go(first, until=7)
    first.save()
    second = train(tmp_path, **EPOCHS | dict(batch_size=3, steps=100))
    rest = batches_of(second, monkeypatch)
    second.resume()
    go(second)
    windows = [tuple(row) for batch in seen + rest for row in batch]
    n = (len(DATA.train) - 1) // T
    assert sorted(windows[:n]) == sorted(tuple(DATA.train[w * T : (w + 1) * T].tolist()) for w in range(n))


def test_data_of_many_files_are_sampled_without_replacement_and_one_file_at_random(tmp_path):
    for i, part in enumerate(np.array_split(DATA.train, 3)):
        write_tokens(tmp_path / f"train-{i:05d}.bin", part, DATA.vocab_size)
    write_tokens(tmp_path / "val.bin", DATA.val, DATA.vocab_size)
    many = train(data=load_dataset(tmp_path), steps=3)
    one = train(steps=3, sampling="epochs")
    assert (many.config.sampling, train().config.sampling) == ("epochs", "random")
    assert [report.loss for report in go(many)] == [report.loss for report in go(one)]
    assert many.evaluate() == one.evaluate()


# ------------------------------------------------------------------------------------------------ spikes


@pytest.mark.parametrize(
    ("loss", "before", "height"),
    [
        (9.0, [1.0, 3.0] * 10, 7.0),  # mean 2, deviation 1
        (8.0, [1.0, 3.0] * 10, None),  # six are none
        (9.0, [1.0, 3.0] * 9, None),  # too few
        (-9.0, [1.0, 3.0] * 10, None),
        (2.2, [2.0] * 20, 10.0),  # at least a hundredth of the mean
        (2.1, [2.0] * 20, None),
        (1.0, [0.0] * 20, None),
    ],
)
def test_a_spike_is_a_loss_of_more_than_six_deviations_above_those_before(loss, before, height):
    assert spike(loss, before) == (None if height is None else pytest.approx(height))


def spiking_at(trainer, step, monkeypatch):
    plain = trainer.workers.loss_and_grads

    def higher(*args, key, **options):
        loss, grads = plain(*args, key=key, **options)
        return (50.0 if key[1] == step else loss), grads

    monkeypatch.setattr(trainer.workers, "loss_and_grads", higher)


def test_a_spike_is_reported_and_its_step_is_done(monkeypatch):
    trainer = train(steps=40)
    spiking_at(trainer, 30, monkeypatch)
    reports = go(trainer)
    assert [report.step for report in reports if report.spike] == [30]
    assert reports[29].spike > 6
    assert not reports[29].skipped
    assert "spike" in reports[29].to_dict()
    assert "spike" not in reports[28].to_dict()


def test_what_a_spike_is_compared_with_survives_a_stop(tmp_path, monkeypatch):
    straight = train(steps=40)
    spiking_at(straight, 30, monkeypatch)
    expected = [report.spike for report in go(straight)]
    first = train(tmp_path, steps=40)
    go(first, until=28)
    first.save()
    second = train(tmp_path, steps=40)
    second.resume()
    spiking_at(second, 30, monkeypatch)
    assert [report.spike for report in go(second)] == expected[28:]
