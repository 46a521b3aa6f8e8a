"""What is wrong with a file is one sentence that names it; what is written is there as a whole or not at all."""

import json
import math
import os

import pytest

from numllama.errors import CheckpointError, DamagedError, DataError, shown
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


def test_a_checksum_holds_after_writing_and_reading(tmp_path):
    files.write_json(tmp_path / "x.json", files.with_checksum({"a": math.nan, "b": 1}))
    values = files.read_json(tmp_path / "x.json")
    assert files.verified(values) == {"a": None, "b": 1}
    with pytest.raises(ValueError, match="checksum"):
        files.verified({**values, "b": 2})


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


# ------------------------------------------------------------------------------------------------ checksums


def damaged(content, at, mask=1):
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def test_every_flipped_bit_of_a_file_with_a_checksum_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, files.with_checksum({"lr": 1e-05, "name": "é", "list": [1, None, True], "much": 1e300}))
    assert files.read_verified(path)["lr"] == 1e-05
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(damaged(content, at, 1 << bit))
            with pytest.raises(DamagedError, match=r"x\.json"):
                files.read_verified(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match=r"x\.json"):
            files.read_verified(path)


def test_an_older_file_may_lack_its_checksum_if_it_holds_nothing_newer(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"folder": "step-000001"})
    assert files.read_verified(path, unsealed=("folder", "loss")) == {"folder": "step-000001"}
    for values in ({}, {"folder": "step-000001", "sefl": "0" * 64}):
        files.write_json(path, values)
        with pytest.raises(DamagedError, match="lacks its checksum"):
            files.read_verified(path, unsealed=("folder", "loss"))


def test_numbers_that_json_does_not_have_were_written_once_and_are_still_read(tmp_path):
    values = {"clip": math.inf}
    (tmp_path / "x.json").write_text(json.dumps({**values, "seal": files.checksum(values)}, indent=1) + "\n")
    assert files.read_verified(tmp_path / "x.json") == values


@pytest.fixture
def listed(tmp_path):
    """A folder with three files and their checksums."""
    for name, content in (("tokenizer.json", b"{}"), ("train.bin", b"\0" * 5000), ("sub/template.jinja", b"{{ x }}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    files.write_checksums(tmp_path, ["tokenizer.json", "train.bin", "sub/template.jinja"], id="abc")
    return tmp_path


def test_files_that_are_what_was_written_pass(listed):
    assert files.check_files(listed)["id"] == "abc"
    (listed / files.CHECKSUMS).unlink()
    assert files.check_files(listed) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "train.bin", "sub/template.jinja", files.CHECKSUMS])
@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "another's"])
def test_a_file_that_is_not_what_was_written_is_named(listed, name, change):
    path = listed / name
    content = path.read_bytes()
    other = (listed / "train.bin").read_bytes()[:100]
    changes = {"flipped": damaged(content, len(content) // 2), "cut": content[:-1], "longer": content + b"\n", "another's": other}
    path.write_bytes(changes[change])
    with pytest.raises(DataError, match=path.name):
        files.check_files(listed, DataError)


def test_a_listed_file_that_is_missing_or_no_file_is_named(listed):
    (listed / "tokenizer.json").unlink()
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not there"):
        files.check_files(listed)
    os.mkfifo(listed / "tokenizer.json")
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not there"):
        files.check_files(listed)


def test_large_files_are_left_out_where_only_small_ones_are_read(listed):
    (listed / "train.bin").write_bytes(b"")
    assert files.check_files(listed, large=False)
    (listed / "tokenizer.json").write_bytes(b"[]")
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not what was written"):
        files.check_files(listed, large=False)


@pytest.mark.parametrize("sums", [None, 3, [], {"a": 3}, {"a" * 300: "0"}])
def test_a_list_of_checksums_that_is_none_is_damaged(tmp_path, sums):
    files.write_json(tmp_path / files.CHECKSUMS, files.with_checksum({"files": sums}))
    with pytest.raises(DamagedError, match=r"checksums\.json|is not there|cannot be read"):
        files.check_files(tmp_path)


def test_checksums_of_a_file_that_is_missing_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        files.write_checksums(tmp_path, ["nothing.json"])
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize("values", [{"model.safetensors": "0" * 64}, {"by": "md5", "a.bin": "ab" * 16}, {"x": f"sha256:{0:064}"}])
def test_another_program_may_have_a_file_of_that_name(tmp_path, values):
    (tmp_path / files.CHECKSUMS).write_text(json.dumps(values))
    assert files.check_files(tmp_path) is None


@pytest.mark.parametrize("values", [{}, {"eos_token_id": 3}, {"dtype": "uint16", "tokens": 3}])
def test_a_file_that_lists_nothing_is_no_list_of_checksums(tmp_path, values):
    (tmp_path / files.CHECKSUMS).write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=r"checksums\.json is damaged: it lacks its checksum"):
        files.check_files(tmp_path)
