"""Checkpoints: whole or not at all, and damage of any kind is noticed before anything is changed."""

import errno
import json
import os
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_same_bits
from safetensors.numpy import load_file

from numllama.errors import CheckpointError, DamagedError, NumllamaError
from numllama.interop import load_run
from numllama.model import ModelConfig, Transformer
from numllama.optim import SGD, AdamW
from numllama.storage import files
from numllama.storage.checksums import with_checksum
from numllama.storage.files import write_json
from numllama.training import TrainConfig, Trainer, checkpoint, text_dataset
from numllama.training.checkpoint import OPTIMIZER, STATE, WEIGHTS, load_checkpoint, prune, save_checkpoint
from numllama.training.run_folder import write_result

CONFIG = ModelConfig(5, 8, 1, 2, ffn_dim=8, max_seq_len=4)
DATA = text_dataset("abcabdabce" * 10, "letters")
FILES = (WEIGHTS, OPTIMIZER, STATE)


def build(seed, config=CONFIG, dtype="float32", optimizer=AdamW) -> SimpleNamespace:
    """A model and an optimizer in the middle of something: every number is random."""
    model = Transformer(config, dtype=dtype)
    ours = SimpleNamespace(model=model, optimizer=optimizer(model.params))
    rng = np.random.default_rng(seed)
    for params in (model.params, *ours.optimizer.state.values()):
        params.flat[...] = rng.standard_normal(params.flat.size)
    ours.optimizer.steps = 10 + seed
    return ours


def bits(ours) -> tuple:
    """All that a checkpoint should give back."""
    state = {name: params.flat.tobytes() for name, params in ours.optimizer.state.items()}
    return ours.model.params.flat.tobytes(), state, ours.optimizer.steps


def save(out, step=7, ours=None, **state):
    ours = ours or build(seed=1)
    return save_checkpoint(out, step, ours.model, ours.optimizer, state)


def error_of(folder, ours) -> str:
    """The sentence that loading ends with; nothing was changed then."""
    before = bits(ours)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder, ours.model, ours.optimizer)
    assert bits(ours) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the round trip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [AdamW, SGD, lambda params: SGD(params, momentum=0.9)])
def test_a_checkpoint_gives_back_every_bit(tmp_path, optimizer, dtype):
    ours, other = build(1, dtype=dtype, optimizer=optimizer), build(2, dtype=dtype, optimizer=optimizer)
    folder = save(tmp_path, 7, ours, best=1.25)
    state = load_checkpoint(folder, other.model, other.optimizer)
    assert bits(other) == bits(ours)
    assert (state["step"], state["best"], state["model"]) == (7, 1.25, CONFIG.to_dict())


def test_saving_changes_nothing_in_memory(tmp_path):
    ours = build(1)
    before = bits(ours)
    save(tmp_path, 7, ours)
    assert bits(ours) == before


def test_a_model_loads_without_an_optimizer(tmp_path):
    ours, other = build(1), build(2)
    load_checkpoint(save(tmp_path, 7, ours), other.model)
    assert_same_bits(other.model.params.flat, ours.model.params.flat)
    assert bits(other)[1:] == bits(build(2))[1:]


def test_a_checkpoint_of_one_precision_loads_into_another(tmp_path):
    folder = save(tmp_path)
    assert load_run(folder).dtype == "float32"
    wide = load_run(folder, dtype="float64")
    assert wide.dtype == "float64"
    assert np.array_equal(wide.params.flat, load_run(folder).params.flat)


def test_a_step_folder_holds_three_files_and_a_run_nothing_else(tmp_path):
    folder = save(tmp_path / "new" / "run")
    assert folder == tmp_path / "new" / "run" / "step-000007"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert list(folder.parent.iterdir()) == [folder]


def test_the_same_step_again_keeps_what_is_there(tmp_path):
    folder = save(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert save(tmp_path) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(saved, tmp_path / saved.name)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(folder, name):
    (folder / name).unlink()
    assert name in error_of(folder, build(2))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_noticed(folder, name):
    content = (folder / name).read_bytes()
    ours = build(2)
    for length in (0, 1, 8, len(content) // 2, len(content) - 2):
        (folder / name).write_bytes(content[:length])
        assert name in error_of(folder, ours)


@pytest.mark.parametrize("name", FILES)
def test_a_longer_file_is_noticed(folder, name):
    with open(folder / name, "ab") as file:
        file.write(b"\0" * 100)
    assert name in error_of(folder, build(2))


@pytest.mark.parametrize("name", FILES)
def test_one_wrong_byte_anywhere_is_noticed_or_harmless(folder, name):
    content = (folder / name).read_bytes()
    expected, ours, rng = bits(build(1)), build(2), np.random.default_rng(0)
    noticed = 0
    for at in rng.integers(0, len(content), 60):
        flipped = bytearray(content)
        flipped[at] ^= int(rng.integers(1, 256))
        (folder / name).write_bytes(flipped)
        try:
            load_checkpoint(folder, ours.model, ours.optimizer)
        except CheckpointError as error:
            assert name in str(error)
            assert bits(ours) == bits(build(2))
            noticed += 1
        else:  # a space for another, say
            assert bits(ours) == expected
            ours = build(2)
    assert noticed > 50


def test_every_single_byte_of_the_state_matters_or_is_harmless(folder):
    content = (folder / STATE).read_bytes()
    expected = checkpoint.read_state(folder)
    for at in range(len(content)):
        (folder / STATE).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert checkpoint.read_state(folder) == expected
        except CheckpointError as error:
            assert STATE in str(error)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER])
def test_a_file_of_another_checkpoint_is_noticed(folder, tmp_path, name):
    shutil.copy(save(tmp_path / "other", 7, build(3)) / name, folder / name)
    assert name in error_of(folder, build(2))


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b'"text"', b"{}", b'{"seal": null}', b'{"seal": []}', b"\xff\xfe"])
def test_json_that_is_no_state_is_noticed(folder, content):
    (folder / STATE).write_bytes(content)
    assert f"{folder / STATE} is damaged" in error_of(folder, build(2))


def test_a_checkpoint_of_another_format_says_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    folder = save(tmp_path)
    monkeypatch.undo()
    assert "has format 2, but this version reads format 1" in error_of(folder, build(2))


@pytest.mark.parametrize("change", [dict(dim=12, n_heads=2), dict(n_layers=2), dict(norm_eps=1e-6), dict(rope_theta=5.0)])
def test_a_checkpoint_of_another_configuration_is_refused(folder, change):
    config = ModelConfig(**dict(vocab_size=5, dim=8, n_layers=1, n_heads=2, ffn_dim=8, max_seq_len=4) | change)
    assert "another configuration" in error_of(folder, build(2, config))


def test_a_checkpoint_of_another_optimizer_is_refused(folder):
    assert OPTIMIZER in error_of(folder, build(2, optimizer=lambda params: SGD(params, momentum=0.9)))


# ------------------------------------------------------------------------------------------------ failures while saving


def trainer_in(run) -> Trainer:
    """A trainer of a short run, gone on with if there is one."""
    config = TrainConfig(steps=99, batch_size=2, seq_len=4, workers=1, eval_every=99, warmup_steps=0)
    trainer = Trainer(Transformer(CONFIG), DATA, config, run)
    if run.exists():
        trainer.resume()
    return trainer


def advance(trainer):
    """Do one step, and save it as the best one so far."""
    next(iter(trainer))
    trainer.save(val_loss=2.0 - trainer.step / 100)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run with two steps done."""
    run = tmp_path_factory.mktemp("template") / "run"
    trainer = trainer_in(run)
    advance(trainer)
    advance(trainer)
    return run


@pytest.fixture
def runs(template, tmp_path):
    """Copies of that run, as many as are asked for."""
    return (shutil.copytree(template, tmp_path / f"run-{i}") for i in range(100))


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def loaded(folder) -> tuple:
    other = build(2)
    load_checkpoint(folder, other.model, other.optimizer)
    return bits(other)


class Failing:
    """Lets calls through until the n-th, which it makes fail, as all that follow while it is broken."""

    def __init__(self, n, error):
        self.left, self.error, self.broken = n, error, True

    def __call__(self):
        self.left -= 1
        if self.broken and self.left <= 0:
            raise self.error


def before_each(monkeypatch, owner, name, failing):
    """Ask `failing` before each call of a function."""
    plain = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: (failing(), plain(*args, **kwargs))[1])


def at_writes(monkeypatch, failing):
    """Ask `failing` at each write to a file, of which half arrives if it fails."""

    class File(FileIO):
        def write(self, content):
            try:
                failing()
            except OSError:
                super().write(content[: len(content) // 2])
                raise
            return super().write(content)

    monkeypatch.setattr(checkpoint, "open", File, raising=False)


def at_flushes(monkeypatch, failing):
    before_each(monkeypatch, os, "fsync", failing)


def at_renames(monkeypatch, failing):
    before_each(monkeypatch, os, "replace", failing)


@pytest.mark.parametrize(("install", "least"), [(at_writes, 5), (at_flushes, 5), (at_renames, 3)])
def test_a_full_disk_at_any_moment_loses_nothing(runs, monkeypatch, install, least):
    for n, run in enumerate(runs, start=1):
        earlier = contents(run / "step-000002")
        trainer, disk = trainer_in(run), Failing(n, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with monkeypatch.context() as patch:
            install(patch, disk)
            try:
                advance(trainer)
            except CheckpointError as error:
                assert os.strerror(errno.ENOSPC) in str(error)
                assert "\n" not in str(error)
                assert contents(run / "step-000002") == earlier
            reached = disk.left <= 0
            assert not list(run.glob(".part-*"))
            for folder in (*run.glob("step-*"), checkpoint.find_step(run), checkpoint.find_step(run, "best")):
                assert loaded(folder)
            disk.broken = False  # somebody has made room
            trainer.save(val_loss=2.0 - trainer.step / 100)
        for which in ("latest", "best"):
            assert checkpoint.find_step(run, which).name == "step-000003"
            assert loaded(checkpoint.find_step(run, which)) == bits(trainer)
        if not reached:  # there were fewer than n moments
            break
    assert n > least


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def killed(*args, **kwargs):
    raise Killed


def at_anything(monkeypatch, failing):
    at_writes(monkeypatch, failing)
    at_flushes(monkeypatch, failing)
    at_renames(monkeypatch, failing)
    before_each(monkeypatch, shutil, "rmtree", failing)


def test_a_run_goes_on_after_a_kill_at_any_moment(runs, monkeypatch):
    for n, run in enumerate(runs, start=1):
        with monkeypatch.context() as patch:
            kill = Failing(n, Killed())
            at_anything(patch, kill)
            with suppress(Killed):
                advance(trainer_in(run))
        if kill.left > 0:  # there were fewer than n moments
            break
        assert all(loaded(folder) for folder in run.glob("step-*"))
        trainer = trainer_in(run)
        assert trainer.step in (2, 3)
        advance(trainer)
        assert loaded(checkpoint.find_step(run)) == bits(trainer)
        assert [folder.name for folder in checkpoint.step_folders(run)] == [f"step-{trainer.step - i:06d}" for i in (0, 1)]
        assert not list(run.glob(".*")), "what the kill left behind is still there"
    assert n > 12


def test_a_step_folder_that_a_kill_left_unnamed_does_not_stand_for_the_step_that_is_done_again(runs, monkeypatch):
    run = next(runs)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_pointer", killed)
        with pytest.raises(Killed):
            advance(trainer_in(run))
    assert (run / "step-000003").is_dir()
    trainer = trainer_in(run)
    trainer.model.params.flat[...] += 1  # as if the run went on with another learning rate
    advance(trainer)
    assert loaded(checkpoint.find_step(run)) == bits(trainer)


def test_a_pointer_is_never_seen_half_written(tmp_path):
    folder, seen, done = save(tmp_path), set(), threading.Event()
    checkpoint.write_pointer(tmp_path, "latest", folder)

    def read():
        while not done.is_set():
            seen.add(checkpoint.find_step(tmp_path).name)

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        for _ in range(100):
            checkpoint.write_pointer(tmp_path, "latest", folder, val_loss=1.5, padding="x" * 5000)
        done.set()
        reader.result()
    assert seen == {folder.name}


def test_a_second_run_in_the_folder_of_a_first_is_refused(template, tmp_path):
    run = shutil.copytree(template, tmp_path / "run")
    config = TrainConfig(steps=2, batch_size=2, seq_len=4, workers=1, seed=5)
    with pytest.raises((NumllamaError, ValueError), match="run"):
        list(Trainer(Transformer(CONFIG, seed=5), DATA, config, run))
    assert loaded(checkpoint.find_step(run)) == loaded(checkpoint.find_step(template))


# ------------------------------------------------------------------------------------------------ what is deleted


def test_prune_keeps_the_latest_and_the_best_only(tmp_path):
    folders = [save(tmp_path, step) for step in (1, 2, 3, 4)]
    checkpoint.write_pointer(tmp_path, "best", folders[1])
    checkpoint.write_pointer(tmp_path, "latest", folders[3])
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "latest.json", "step-000002", "step-000004"]


def test_prune_leaves_what_it_did_not_make(tmp_path):
    folder = save(tmp_path, 1)
    checkpoint.write_pointer(tmp_path, "latest", folder)
    shutil.copytree(folder, tmp_path / "step-000001-before-I-tried-something")
    (tmp_path / "step-by-step.txt").write_text("my notes")
    before = sorted(path.name for path in tmp_path.iterdir())
    prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("which", ["latest", "best"])
def test_prune_deletes_nothing_while_a_pointer_is_damaged(tmp_path, which):
    folders = [save(tmp_path, step) for step in (1, 2, 3)]
    checkpoint.write_pointer(tmp_path, "latest", folders[2])
    checkpoint.write_pointer(tmp_path, "best", folders[1])
    (tmp_path / f"{which}.json").write_bytes(b"\0\0\0")
    prune(tmp_path)
    assert folders[1].is_dir()
    assert folders[2].is_dir()


# ------------------------------------------------------------------------------------------------ finding a checkpoint


def test_a_run_loads_its_best_or_its_latest_model(tmp_path):
    early, late = build(1), build(2)
    checkpoint.write_pointer(tmp_path, "best", save(tmp_path, 1, early))
    checkpoint.write_pointer(tmp_path, "latest", save(tmp_path, 2, late))
    assert_same_bits(load_run(tmp_path).params.flat, early.model.params.flat)
    assert_same_bits(load_run(str(tmp_path), which="latest").params.flat, late.model.params.flat)
    assert_same_bits(load_run(tmp_path / "step-000002").params.flat, late.model.params.flat)


def test_a_run_that_was_stopped_before_its_first_estimate_loads_as_it_is(tmp_path):
    checkpoint.write_pointer(tmp_path, "latest", save(tmp_path, 2, build(2)))
    assert_same_bits(load_run(tmp_path).params.flat, build(2).model.params.flat)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"folder": 3}', b'{"folder": null}', b"\xff"])
def test_a_damaged_pointer_is_named(tmp_path, content):
    save(tmp_path)
    (tmp_path / "best.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        load_run(tmp_path)


def test_a_pointer_to_a_folder_that_is_gone_says_so(tmp_path):
    folder = save(tmp_path)
    checkpoint.write_pointer(tmp_path, "best", folder)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match=r"best\.json names step-000007, which is not there"):
        load_run(tmp_path)


@pytest.mark.parametrize("which", ["best", "latest"])
def test_a_folder_without_a_checkpoint_is_no_run(tmp_path, which):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"no {which}.json"):
            load_run(path, which=which)


def test_files_are_plain_json_and_safetensors(tmp_path):
    folder = save(tmp_path, best=1.5)
    state = json.loads((folder / STATE).read_text())
    assert (state["format"], state["step"], state["best"]) == (1, 7, 1.5)
    weights = load_file(folder / WEIGHTS)
    assert {name: array.shape for name, array in weights.items()} == dict(build(1).model.params.shapes)


# ------------------------------------------------------------------------------------------------ what a state.json says


def with_state(folder, **changes):
    """Write a step folder's state.json anew, with a checksum that is right; None takes a field out."""
    state = {**checkpoint.read_state(folder), **changes}
    write_json(folder / STATE, with_checksum({name: value for name, value in state.items() if value is not None}))


@pytest.mark.parametrize("name", ["step", "model", "dtype", "optimizer_steps", "sha256"])
@pytest.mark.parametrize("value", [None, [], "x", -1, 10**400, 1e308, True, {"a": 1}])
def test_every_field_of_a_state_is_checked(folder, name, value):
    with_state(folder, **{name: value})
    assert f"{folder / STATE} is damaged" in error_of(folder, build(2))
    with pytest.raises(DamagedError, match="is damaged"):
        load_run(folder)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(n_layers=10**6), "3 tensors|tensors, which cannot be 1000000 layers"),
        (dict(vocab_size=10**8), "lacks embed of shape"),
        (dict(max_seq_len=10**9, positions="learned"), "lacks pos_embed of shape"),
        (dict(dim=10**400), "no number here may be so large"),
        (dict(nonsense=1), "unknown configuration key"),
        (dict(n_heads="2"), "n_heads is '2'"),
    ],
)
def test_no_model_is_made_before_the_file_of_weights_is_known_to_hold_one(folder, monkeypatch, change, words):
    def made(*_, **__):
        raise AssertionError("a model was made")

    with_state(folder, model=CONFIG.to_dict() | change)
    monkeypatch.setattr(checkpoint, "Transformer", made)
    with pytest.raises(CheckpointError, match=words):
        load_run(folder)


@pytest.mark.parametrize(
    "lora", [dict(rank=10**9, alpha=1.0, targets=["wq"]), dict(rank=0), dict(nonsense=1), dict(rank=2, targets=3)]
)
def test_no_adapter_is_made_before_the_file_of_weights_is_known_to_hold_one(folder, lora):
    with_state(folder, lora=lora)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors|is damaged"):
        load_run(folder)


def test_nothing_of_a_checkpoint_is_in_memory_twice(tmp_path):
    big = ModelConfig(5, 8, 1, 2, ffn_dim=100_000, max_seq_len=4)
    ours = build(1, big)
    folder = save(tmp_path, ours=ours)
    tracemalloc.start()
    try:
        load_checkpoint(folder, ours.model, ours.optimizer)
        assert tracemalloc.get_traced_memory()[1] < ours.model.params.flat.nbytes / 2
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------------------------------ folders that are not their own


def test_a_step_folder_that_was_renamed_is_refused(tmp_path):
    save(tmp_path, 7).rename(tmp_path / "step-000009")
    with pytest.raises(DamagedError, match="it is of step 7, so the folder was renamed"):
        load_run(tmp_path / "step-000009")
    (tmp_path / "step-000009").rename(tmp_path / "kept")  # a name of one's own claims nothing
    assert load_run(tmp_path / "kept")


def test_two_step_folders_that_have_changed_places_are_refused(tmp_path):
    for step in (1, 2):
        checkpoint.write_pointer(tmp_path, "latest", save(tmp_path, step, build(step)))
    (tmp_path / "step-000001").rename(tmp_path / "x")
    (tmp_path / "step-000002").rename(tmp_path / "step-000001")
    (tmp_path / "x").rename(tmp_path / "step-000002")
    for folder in (tmp_path, tmp_path / "step-000001"):
        with pytest.raises(DamagedError, match="renamed"):
            load_run(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_step_is_refused(tmp_path, name):
    first, second = save(tmp_path, 1, build(1)), save(tmp_path, 2, build(2))
    shutil.copy(first / name, second / name)
    assert name in error_of(second, build(3))


@pytest.fixture
def two_runs(tmp_path):
    """Two runs of the same settings; each has written a name of its own everywhere."""
    runs = []
    for i in (1, 2):
        run = tmp_path / f"run-{i}"
        run.mkdir()
        write_json(run / "config.json", with_checksum({"id": f"name{i}", "files": {}, "model": CONFIG.to_dict(), "train": {}}))
        folder = save(run, 7, build(i), run=f"name{i}")
        for which in ("latest", "best"):
            checkpoint.write_pointer(run, which, folder, run=f"name{i}")
        write_result(run, 7, 1.5)
        assert load_run(run)
        runs.append(run)
    return runs


@pytest.mark.parametrize(
    "name", ["config.json", "latest.json", "best.json", "result.json", "step-000007", "step-000007/state.json"]
)
def test_what_another_run_has_written_is_refused(two_runs, name):
    ours, other = two_runs
    (shutil.rmtree if (ours / name).is_dir() else os.remove)(ours / name)
    (shutil.copytree if (other / name).is_dir() else shutil.copy)(other / name, ours / name)
    with pytest.raises(DamagedError, match=r"belongs to another run|checksum is wrong"):
        load_run(ours)


def test_a_run_that_was_moved_or_copied_as_a_whole_opens(two_runs, tmp_path):
    shutil.copytree(two_runs[0], tmp_path / "copy")
    two_runs[0].rename(tmp_path / "moved")
    assert load_run(tmp_path / "copy")
    assert load_run(tmp_path / "moved")


def test_a_run_of_an_older_version_opens(tmp_path):
    """Neither names of runs nor checksums of the smallest files."""
    folder = save(tmp_path, 7)
    for name in ("latest", "best"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"folder": folder.name}, indent=1) + "\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"version": "0.1.0", "data_name": "x", "data": None, "model": CONFIG.to_dict(), "train": {}}, indent=1)
    )
    (tmp_path / "result.json").write_text(json.dumps({"step": 7, "validation_loss": 1.5}, indent=1))
    assert_same_bits(load_run(tmp_path).params.flat, build(1).model.params.flat)


@pytest.mark.parametrize("name", ["../run/step-000007", "step-000007/", ".", "x" * 300, "/", "step-7", 7, ["step-000007"]])
def test_a_pointer_names_a_step_folder_of_its_run_and_nothing_else(tmp_path, name):
    save(tmp_path / "run")
    write_json(tmp_path / "run" / "latest.json", with_checksum({"folder": name}))
    with pytest.raises(DamagedError, match=r"latest\.json is damaged: folder is"):
        checkpoint.find_step(tmp_path / "run")


def test_a_folder_that_cannot_be_flushed_is_an_error_until_it_can(tmp_path, monkeypatch):
    plain = files.flush_folder

    def fails(folder):
        if folder == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        plain(folder)

    for module in (files, checkpoint):
        monkeypatch.setattr(module, "flush_folder", fails)
    for _ in range(2):  # the second time the folder is there already
        with pytest.raises(CheckpointError, match=os.strerror(errno.EIO)):
            save(tmp_path)
    monkeypatch.undo()
    assert loaded(save(tmp_path)) == bits(build(1))
