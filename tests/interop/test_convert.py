"""Models that are written: a folder is the old one or the new one at every moment, and what is in it belongs together."""

import os
import shutil
import sys

import numpy as np
import pytest
from helpers import assert_same_bits
from interop.checkpoints import random_model, tokens
from moments import at_each_moment, files_no_larger_than, is_killed_at

import numllama as nl
from numllama.errors import CheckpointError, NumllamaError
from numllama.interop import huggingface
from numllama.interop.convert import convert
from numllama.storage import folders
from numllama.storage.folders import locked

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def tokenizer(end="<end>"):
    return nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], [end])


def model(seed=0, theta=10000.0):
    """Of one shape and several bases of RoPE, whose files would fit each other and give wrong numbers."""
    return nl.Transformer(nl.ModelConfig(257, 16, 1, 2, ffn_dim=24, max_seq_len=32, rope_theta=theta), seed=seed)


def answer(model):
    return model.forward(np.array([[1, 2, 3]])).tolist()


@pytest.fixture
def source(tmp_path):
    model().save(tmp_path / "source", tokenizer())
    return tmp_path / "source"


def seen(folder):
    """The files that people see."""
    return {path.name for path in folder.iterdir() if path.name[0] != "."} if folder.exists() else set()


# ------------------------------------------------------------------------------------------------ save


def test_at_every_moment_a_model_that_is_saved_again_is_the_old_one_or_the_new_one(tmp_path):
    old, new, folder, found = model(0), model(1, theta=500.0), tmp_path / "x", []
    old.save(folder, tokenizer("<old>"))

    def look():
        special = min(nl.Tokenizer.load(folder).special_tokens)
        found.append((answer(nl.load(folder)) == answer(old), special))

    with at_each_moment(look):
        new.save(folder, tokenizer("<new>"))
    assert answer(nl.load(folder)) == answer(new)
    assert set(found) == {(True, "<old>"), (False, "<new>")}
    assert seen(folder) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("why", ["a folder in it", "no exchange"])
def test_where_a_folder_cannot_be_replaced_at_once_no_moment_has_old_weights_with_new_settings(tmp_path, monkeypatch, why):
    old, new, folder, found = model(0), model(1, theta=500.0), tmp_path / "x", []
    old.save(folder)
    if why == "no exchange":
        monkeypatch.setattr(folders, "exchange", lambda a, b: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    else:
        (folder / ".git").mkdir()

    def look():
        try:
            found.append(answer(nl.load(folder)) in (answer(old), answer(new)))
        except CheckpointError as error:
            found.append("has no config.json" in str(error))

    with at_each_moment(look):
        new.save(folder)
    assert set(found) <= {True}
    assert answer(nl.load(folder)) == answer(new)


def test_a_model_that_is_replaced_while_it_is_read_is_read_as_one(tmp_path, monkeypatch):
    folder, read, new = tmp_path / "x", huggingface.read, [model(1, theta=500.0)]
    model(0).save(folder)

    def read_while_it_is_replaced(*arguments):
        found = read(*arguments)
        if new:
            new.pop().save(folder)
        return found

    monkeypatch.setattr(huggingface, "read", read_while_it_is_replaced)
    assert answer(nl.load(folder)) == answer(model(1, theta=500.0))


def test_what_people_keep_beside_a_model_stays(source):
    (source / "README.md").write_text("mine")
    (source / "link").symlink_to("README.md")
    model(1).save(source)
    assert (source / "README.md").read_text() == (source / "link").read_text() == "mine"
    assert (source / "link").is_symlink()
    assert nl.Tokenizer.load(source).vocab_size == 257


def test_a_folder_in_which_another_process_writes_is_refused(source):
    with locked(source), pytest.raises(CheckpointError, match="source is in use: another process writes there"), locked(source):
        pass
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    with locked(source):
        with pytest.raises(NumllamaError, match="in use"):
            _in_a_thread(lambda: model(1).save(source))
        with pytest.raises(NumllamaError, match="in use"):
            _in_a_thread(lambda: tokenizer("<other>").save(source))
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def _in_a_thread(function):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


@pytest.mark.parametrize("room", [0, 300, 700, 3000])
def test_a_full_disk_leaves_the_old_model(tmp_path, room):
    folder = tmp_path / "x"
    model(0).save(folder, tokenizer())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_no_larger_than(room), pytest.raises(CheckpointError, match=r"x could not be written: File too large$"):
        model(1).save(folder, tokenizer("<new>"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ------------------------------------------------------------------------------------------------ convert


def test_at_every_moment_what_is_converted_is_there_as_a_whole_or_not_at_all(source, tmp_path):
    folder, file, found = tmp_path / "x", tmp_path / "x.bin", []
    with at_each_moment(lambda: found.append(frozenset(seen(folder)))):
        convert(source, folder)
    assert set(found) == {frozenset(), frozenset(FILES)}
    found.clear()
    with at_each_moment(lambda: found.append(file.stat().st_size if file.exists() else 0)):
        convert(source, file)
    assert set(found) - {0} <= {file.stat().st_size}
    assert seen(tmp_path) == {"source", "x", "x.bin"}


def test_of_two_converts_into_one_folder_the_second_is_refused(source, tmp_path, monkeypatch):
    real, said = nl.load, []

    def slow(*arguments, **options):
        try:
            if not said:
                said.append("")
                convert(source, tmp_path / "x")
        except NumllamaError as error:
            said.append(str(error))
        return real(*arguments, **options)

    monkeypatch.setattr(sys.modules["numllama.interop.convert"], "load", slow)
    convert(source, tmp_path / "x")
    assert "is in use: another process writes there" in said[1]
    assert answer(real(tmp_path / "x")) == answer(real(source))


def test_what_a_killed_convert_has_left_is_not_in_the_way(source, tmp_path):
    (tmp_path / "x" / f".part-new-1-{2**22 + 1}").mkdir(parents=True)
    (tmp_path / "x" / ".lock").touch()
    convert(source, tmp_path / "x")
    assert {path.name for path in (tmp_path / "x").iterdir()} == FILES


@pytest.mark.parametrize("target", ["x", "x.bin"])
@pytest.mark.parametrize("kills", [[4, 12], pytest.param(range(1, 60), marks=pytest.mark.soak)])
def test_a_kill_leaves_nothing_or_all_and_convert_does_it_again(source, tmp_path, kills, target):
    convert(source, tmp_path / f"whole-{target}")
    expected, killed = answer(nl.load(tmp_path / f"whole-{target}")), 0
    for n in kills:
        killed += is_killed_at(n, "convert", source, tmp_path / target)
        left = tmp_path / target
        if left.is_file() or seen(left):
            assert answer(nl.load(left)) == expected
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        convert(source, left)
        assert answer(nl.load(left)) == expected
        assert {path.name for path in tmp_path.iterdir()} == {"source", f"whole-{target}", target}
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert killed


@pytest.mark.parametrize("room", [0, 300, 3000])
@pytest.mark.parametrize("target", ["x", "new/x", "x.bin"])
def test_a_full_disk_leaves_nothing(source, tmp_path, room, target):
    with files_no_larger_than(room), pytest.raises(CheckpointError, match=r"x(\.bin)? could not be written: File too large$"):
        convert(source, tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ------------------------------------------------------------------------------------------------ checksums


@pytest.fixture
def adapter(tmp_path):
    """A model's folder and its adapter's."""
    made = random_model()
    made.save(tmp_path / "base")
    made.add_adapter(nl.LoraConfig(rank=3, alpha=5.0, targets=("wq", "w_down")))
    made.adapter.params.flat[...] = np.random.default_rng(1).standard_normal(made.adapter.params.flat.size)
    made.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    return tmp_path / "adapter"


def test_a_wrong_byte_in_any_file_of_an_adapter_is_noticed(adapter):
    rng = np.random.default_rng(0)
    for path in sorted(adapter.iterdir()):
        content = path.read_bytes()
        for at in rng.integers(0, len(content), 25).tolist():
            changed = bytearray(content)
            changed[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            with pytest.raises(CheckpointError, match="adapter"):
                nl.load(adapter)
        path.write_bytes(content)
    nl.load(adapter)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "generation_config.json", "checksums.json"])
def test_files_of_two_adapters_are_told_apart(adapter, tmp_path, name):
    other = random_model()
    other.add_adapter(nl.LoraConfig(rank=3, alpha=7.0, targets=("wq", "w_down")))
    other.generation_config = {"eos_token_id": 5}
    other.save_adapter(tmp_path / "other", base=tmp_path / "base")
    shutil.copyfile(tmp_path / "other" / name, adapter / name)
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        nl.load(adapter)


def test_an_adapter_without_checksums_opens_as_peft_and_older_versions_write_it(adapter):
    expected = nl.load(adapter).forward(tokens())
    (adapter / "checksums.json").unlink()
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace("\n", " "))
    assert_same_bits(nl.load(adapter).forward(tokens()), expected)


def test_at_every_moment_an_adapter_that_is_saved_again_is_the_old_one_or_the_new_one(adapter):
    new, found = nl.load(adapter), []
    new.adapter.params.flat[...] *= 2
    old = nl.load(adapter).adapter.params.flat.tolist()
    with at_each_moment(lambda: found.append(nl.load(adapter).adapter.params.flat.tolist() == old)):
        new.save_adapter(adapter, base=adapter.parent / "base")
    assert set(found) == {True, False}
    assert_same_bits(nl.load(adapter).adapter.params.flat, new.adapter.params.flat)
    assert set(os.listdir(adapter.parent)) == {"base", "adapter"}
