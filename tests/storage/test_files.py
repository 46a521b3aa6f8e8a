"""What is wrong with a file is one sentence that names it; what is written is there as a whole or not at all."""

import json
import math
import os

import pytest

from numllama.errors import CheckpointError, DataError, shown
from numllama.storage import files


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"\xff", "is not JSON"),
        (b'{"a": ' + b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "is nested too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
    ],
)
def test_a_file_that_holds_no_json_is_named(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        files.read_json(path, DataError)
    assert str(path) in str(caught.value)


def test_a_pipe_a_device_a_folder_and_a_file_that_is_too_large_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "large.json").write_text("{}" + " " * 100)
    monkeypatch.setattr(files, "MOST_JSON", 100)
    expected = {"pipe": "regular", "zero": "regular", "folder": "folder", "no": "has no no.json", "x" * 300: "cannot be read"}
    for name, words in expected.items():
        with pytest.raises(CheckpointError, match=words):
            files.read_json(tmp_path / f"{name}.json")
    with pytest.raises(CheckpointError, match="at most 10 "):
        files.read_bytes(tmp_path / "large.json", most=10)


@pytest.mark.parametrize("failure", [KeyError("a"), IndexError("b"), OverflowError("d"), TypeError("e" * 10_000)])
def test_any_failure_within_reading_names_the_file(failure):
    with pytest.raises(DataError, match=r"^x\.bin is damaged: ") as caught, files.reading("x.bin", DataError):
        raise failure
    assert len(str(caught.value)) < 400
    with pytest.raises(DataError, match=r"^x+\.\.\. is damaged: ") as caught, files.reading("x" * 10_000, DataError):
        raise failure
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("failure", [CheckpointError("own"), MemoryError("memory"), KeyboardInterrupt()])
def test_reading_passes_on_what_is_said_already(failure):
    with pytest.raises(type(failure)) as caught, files.reading("x.bin"):
        raise failure
    assert caught.value is failure


def test_json_that_is_written_is_strict(tmp_path):
    files.write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1.0], "c": {"d": -math.inf}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.0], "c": {"d": None}}


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        files.write_text(path, "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.txt", "old")]


def test_long_values_are_cut():
    assert shown("x" * 10_000) == "'" + "x" * 56 + "..."
    assert shown(10**5000) == "a value of type int"
    assert shown("a\nb", quote=False) == "a b"


def test_a_folder_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    plain = os.fsync

    def fails(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(5, "Input/output error")
        plain(handle)

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        files.write_text(tmp_path / "x.txt", "new")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "nothing", "file/below", "loop"])
def test_a_name_that_no_file_can_have_is_not_there(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert files.is_there(tmp_path / "file") and files.is_there(tmp_path)
    assert not files.is_there(tmp_path / name)
