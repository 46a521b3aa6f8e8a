"""A file or folder that differs from what was written is named; one without checksums, from an older version, is read."""

import json
import math
import os

import pytest

from numllama.errors import CheckpointError, DamagedError, DataError
from numllama.storage import checksums, files


def test_a_checksum_holds_after_writing_and_reading(tmp_path):
    files.write_json(tmp_path / "x.json", checksums.with_checksum({"a": math.nan, "b": 1}))
    values = files.read_json(tmp_path / "x.json")
    assert checksums.verified(values) == {"a": None, "b": 1}
    with pytest.raises(ValueError, match="checksum"):
        checksums.verified({**values, "b": 2})


def damaged(content, at, mask=1):
    return content[:at] + bytes([content[at] ^ mask]) + content[at + 1 :]


def test_every_flipped_bit_of_a_file_with_a_checksum_is_noticed(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, checksums.with_checksum({"lr": 1e-05, "name": "é", "list": [1, None, True], "much": 1e300}))
    assert checksums.read_verified(path)["lr"] == 1e-05
    content = path.read_bytes()
    for at in range(len(content)):
        for bit in range(8):
            path.write_bytes(damaged(content, at, 1 << bit))
            with pytest.raises(DamagedError, match=r"x\.json"):
                checksums.read_verified(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError, match=r"x\.json"):
            checksums.read_verified(path)


def test_an_older_file_may_lack_its_checksum_if_it_holds_nothing_newer(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"folder": "step-000001"})
    assert checksums.read_verified(path, legacy_keys=("folder", "loss")) == {"folder": "step-000001"}
    for values in ({}, {"folder": "step-000001", "sefl": "0" * 64}):
        files.write_json(path, values)
        with pytest.raises(DamagedError, match="lacks its checksum"):
            checksums.read_verified(path, legacy_keys=("folder", "loss"))


def test_numbers_that_json_does_not_have_were_written_once_and_are_still_read(tmp_path):
    values = {"clip": math.inf}
    (tmp_path / "x.json").write_text(json.dumps({**values, "seal": checksums.checksum(values)}, indent=1) + "\n")
    assert checksums.read_verified(tmp_path / "x.json") == values


@pytest.fixture
def listed(tmp_path):
    """A folder with three files and their checksums."""
    for name, content in (("tokenizer.json", b"{}"), ("train.bin", b"\0" * 5000), ("sub/template.jinja", b"{{ x }}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    checksums.write_checksums(tmp_path, ["tokenizer.json", "train.bin", "sub/template.jinja"], id="abc")
    return tmp_path


def test_files_that_are_what_was_written_pass(listed):
    assert checksums.check_files(listed)["id"] == "abc"
    (listed / checksums.CHECKSUMS).unlink()
    assert checksums.check_files(listed) is None


@pytest.mark.parametrize("name", ["tokenizer.json", "train.bin", "sub/template.jinja", checksums.CHECKSUMS])
@pytest.mark.parametrize("change", ["flipped", "cut", "longer", "another's"])
def test_a_file_that_is_not_what_was_written_is_named(listed, name, change):
    path = listed / name
    content = path.read_bytes()
    other = (listed / "train.bin").read_bytes()[:100]
    changes = {"flipped": damaged(content, len(content) // 2), "cut": content[:-1], "longer": content + b"\n", "another's": other}
    path.write_bytes(changes[change])
    with pytest.raises(DataError, match=path.name):
        checksums.check_files(listed, DataError)


def test_a_listed_file_that_is_missing_or_no_file_is_named(listed):
    (listed / "tokenizer.json").unlink()
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not there"):
        checksums.check_files(listed)
    os.mkfifo(listed / "tokenizer.json")
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not there"):
        checksums.check_files(listed)


def test_large_files_are_left_out_where_only_small_ones_are_read(listed):
    (listed / "train.bin").write_bytes(b"")
    assert checksums.check_files(listed, large=False)
    (listed / "tokenizer.json").write_bytes(b"[]")
    with pytest.raises(DamagedError, match=r"tokenizer\.json is not what was written"):
        checksums.check_files(listed, large=False)


@pytest.mark.parametrize("sums", [None, 3, [], {"a": 3}, {"a" * 300: "0"}])
def test_a_list_of_checksums_that_is_none_is_damaged(tmp_path, sums):
    files.write_json(tmp_path / checksums.CHECKSUMS, checksums.with_checksum({"files": sums}))
    with pytest.raises(DamagedError, match=r"checksums\.json|is not there|cannot be read"):
        checksums.check_files(tmp_path)


def test_checksums_of_a_file_that_is_missing_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        checksums.write_checksums(tmp_path, ["nothing.json"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [{"model.safetensors": "0" * 64}, {"by": "md5", "a.bin": "ab" * 16}, {"x": f"sha256:{0:064}"}])
def test_another_program_may_have_a_file_of_that_name(tmp_path, values):
    (tmp_path / checksums.CHECKSUMS).write_text(json.dumps(values))
    assert checksums.check_files(tmp_path) is None


@pytest.mark.parametrize("values", [{}, {"eos_token_id": 3}, {"dtype": "uint16", "tokens": 3}])
def test_a_file_that_lists_nothing_is_no_list_of_checksums(tmp_path, values):
    (tmp_path / checksums.CHECKSUMS).write_text(json.dumps(values))
    with pytest.raises(DamagedError, match=r"checksums\.json is damaged: it lacks its checksum"):
        checksums.check_files(tmp_path)
