"""Files of tokens: written and mapped, one or many, and what is wrong with them in one sentence."""

import json
import os
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from data.test_dataset import IDS, error_of
from hypothesis import given
from hypothesis import strategies as st

from numllama.data import token_files
from numllama.data.batches import all_windows, random_batch
from numllama.data.token_files import TokenShards, checksum, describe_tokens, read_tokens, write_tokens
from numllama.errors import DataError
from numllama.training import load_dataset


@pytest.mark.parametrize(("vocab_size", "dtype"), [(6, "<u2"), (2**16, "<u2"), (2**16 + 1, "<u4"), (200_000, "<u4")])
def test_a_token_file_gives_back_what_was_written(tmp_path, vocab_size, dtype):
    ids = np.append(IDS, vocab_size - 1)
    tokens, about = read_tokens(write_tokens(tmp_path / "a.bin", ids, vocab_size))
    assert tokens.dtype == dtype
    assert tokens.tolist() == ids.tolist()
    assert about["vocab_size"] == vocab_size


def test_the_bytes_on_disk_are_plain_little_endian_numbers(tmp_path):
    assert write_tokens(tmp_path / "a.bin", np.array([1, 258]), 300).read_bytes() == b"\x01\x00\x02\x01"
    about = json.loads((tmp_path / "a.json").read_text())
    assert about == {"dtype": "uint16", "tokens": 2, "vocab_size": 300}


@pytest.mark.parametrize("name", ["a.bin", "a.npy"])
def test_a_token_file_is_memory_mapped_also_when_it_is_split(tmp_path, name):
    if name == "a.npy":
        np.save(tmp_path / name, IDS)
    else:
        write_tokens(tmp_path / name, IDS, 6)
    dataset = load_dataset(tmp_path / name)
    assert isinstance(read_tokens(tmp_path / name)[0], np.memmap)
    assert isinstance(dataset.train, np.memmap)
    assert isinstance(dataset.val, np.memmap)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">u2", "int32", "uint32", "int64", "uint64"])
def test_an_npy_file_of_any_integers_is_read(tmp_path, dtype):
    np.save(tmp_path / "a.npy", IDS.astype(dtype))
    tokens, about = read_tokens(tmp_path / "a.npy")
    assert tokens.tolist() == IDS.tolist()
    assert about["vocab_size"] == 6
    inputs, targets = random_batch(tokens, 2, 4, seed=0, step=1)
    assert inputs.dtype == targets.dtype == np.int64


@pytest.mark.parametrize("wrong", [[[1, 2]], 3, [1, 6], [-1, 2], [0.5, 1.5]], ids=str)
def test_ids_that_a_token_file_cannot_hold_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="ids"):
        write_tokens(tmp_path / "a.bin", np.array(wrong), 6)
    assert not (tmp_path / "a.bin").exists()


def test_a_truncated_token_file_is_told_from_a_whole_one(tmp_path):
    path = write_tokens(tmp_path / "a.bin", IDS, 6)
    os.truncate(path, 23)
    assert "has 23 bytes, but a.json says 24" in error_of(path)


def test_an_empty_token_file_is_refused(tmp_path):
    assert "empty" in error_of(write_tokens(tmp_path / "a.bin", np.array([], int), 6))


SIDES = {
    "missing": None,
    "empty": b"",
    "cut short": b'{"dtype": "uint16", "tok',
    "not UTF-8": b'{"dtype": "\xff"}',
    "a list": b"[]",
    "a number": b"3",
    "no dtype": b'{"tokens": 12, "vocab_size": 6}',
    "no tokens": b'{"dtype": "uint16", "vocab_size": 6}',
    "no vocabulary": b'{"dtype": "uint16", "tokens": 12}',
    "another dtype": b'{"dtype": "float32", "tokens": 6, "vocab_size": 6}',
    "a list for a dtype": b'{"dtype": ["uint16"], "tokens": 12, "vocab_size": 6}',
    "text for a number": b'{"dtype": "uint16", "tokens": "12", "vocab_size": 6}',
    "null for the vocabulary": b'{"dtype": "uint16", "tokens": 12, "vocab_size": null}',
    "a count below zero": b'{"dtype": "uint16", "tokens": -12, "vocab_size": 6}',
    "a count of many digits": b'{"dtype": "uint16", "tokens": 1' + b"0" * 400 + b', "vocab_size": 6}',
    "a count of more digits": b'{"dtype": "uint16", "tokens": 1' + b"0" * 9000 + b', "vocab_size": 6}',
    "truth for a number": b'{"dtype": "uint16", "tokens": 12, "vocab_size": true}',
    "a vocabulary for no machine": b'{"dtype": "uint16", "tokens": 12, "vocab_size": 100000000}',
    "no vocabulary at all": b'{"dtype": "uint16", "tokens": 12, "vocab_size": 0}',
    "text for the shards": b'{"dtype": "uint16", "tokens": 12, "vocab_size": 6, "shards": "x"}',
    "null for the shards": b'{"dtype": "uint16", "tokens": 12, "vocab_size": 6, "shards": null}',
    "a long dtype": b'{"dtype": "' + b"x" * 10_000 + b'", "tokens": 12, "vocab_size": 6}',
    "nested deeply": b'{"dtype": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_token_file_needs_a_whole_json_beside_it(tmp_path, side):
    path = write_tokens(tmp_path / "a.bin", IDS, 6)
    (tmp_path / "a.json").unlink()
    if side is not None:
        (tmp_path / "a.json").write_bytes(side)
    assert "a.json" in error_of(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", ["a.bin", "a.json", "b.npy"])
def test_what_is_no_regular_file_is_refused_unread(tmp_path, name, kind):
    write_tokens(tmp_path / "a.bin", IDS, 6)
    (tmp_path / name).unlink(missing_ok=True)
    {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](tmp_path / name)
    with pytest.raises(DataError, match=r"is not a regular file$|is a folder, but a file is needed$"):
        read_tokens(tmp_path / name.replace("json", "bin"))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(6, "<u2"), (70_000, "<u4")])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_a_token_beyond_the_vocabulary_is_found_before_it_is_trained_on(tmp_path, monkeypatch, vocab_size, dtype, place):
    monkeypatch.setattr(token_files, "CHECKED_AT_ONCE", 5)
    ids = np.where(np.arange(12) == place, vocab_size, IDS)
    ids.astype(dtype).tofile(tmp_path / "a.bin")
    describe_tokens(tmp_path / "a.bin", 12, vocab_size)
    sentence = f"a.bin holds the token {vocab_size} at place {place}, but its vocabulary is {vocab_size}"
    assert error_of(tmp_path / "a.bin").endswith(sentence)


NOT_IDS = {
    "two axes": np.zeros((3, 4), int),
    "no axis": np.array(3),
    "empty": np.array([], int),
    "floats": np.array([1.0, 2.0]),
    "booleans": np.array([True, False]),
    "text": np.array(["a", "b"]),
    "objects": np.array([1, None], dtype=object),
    "below zero": np.array([3, -1, 2]),
}


@pytest.mark.parametrize("array", NOT_IDS.values(), ids=NOT_IDS)
def test_an_npy_file_that_holds_no_ids_is_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    error_of(tmp_path / "a.npy")


HEADER = "{'descr': '<u2', 'fortran_order': False, 'shape': (12,), }"
DAMAGED = {
    "empty": b"",
    "cut short": b"\x93NUMPY",
    "text": b"plain text and more of it",
    "no expression": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8'}",
    "a longer header than the file": b"\x93NUMPY\x01\x00\xff\xff" + HEADER.encode(),
    "a header of gigabytes": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + HEADER.encode(),
    "brackets": "((((",
    "minus signs": "-" * 9000 + "1",
    "a shape of many digits": HEADER.replace("12", "9" * 19),
    "a shape of more digits": HEADER.replace("12", "9" * 400),
    "a shape of bytes": HEADER.replace("12", "13"),
    "a negative shape": HEADER.replace("12", "-12"),
    "huge texts": HEADER.replace("<u2", "<U999999999"),
    "objects": HEADER.replace("<u2", "O"),
    "two axes": HEADER.replace("(12,)", "(3, 4)"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_npy_file_is_refused(tmp_path, name):
    content = DAMAGED[name]
    if isinstance(content, str):
        content = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content.encode() + bytes(24)
    (tmp_path / "a.npy").write_bytes(content)
    assert len(error_of(tmp_path / "a.npy")) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_every_version_of_an_npy_files_header_is_read(tmp_path, version):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, IDS.astype("uint16"), version=version)
    tokens, about = read_tokens(tmp_path / "a.npy")
    assert (tokens.tolist(), about) == (IDS.tolist(), {"vocab_size": 6})


def test_an_npy_file_of_ids_that_no_vocabulary_has_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1, 10**9]))
    assert error_of(tmp_path / "a.npy").endswith("holds 1000000000, but ids are below 16777216")


def test_an_npz_archive_under_the_name_of_an_npy_file_is_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, ids=IDS)
    error_of(tmp_path / "a.npy")



# ------------------------------------------------------------------------------------------------ many files


def write_parts(folder, name, ids, bounds, vocab_size=6):
    """`NAME-00000.bin` and so on, cut at some places."""
    folder.mkdir(exist_ok=True)
    cuts = [0, *bounds, len(ids)]
    for i, (start, stop) in enumerate(pairwise(cuts)):
        write_tokens(folder / f"{name}-{i:05d}.bin", ids[start:stop], vocab_size)


@given(bounds=st.sets(st.integers(1, 11), max_size=6), start=st.integers(-13, 13), stop=st.integers(-13, 13))
def test_many_files_are_read_as_one(tmp_path_factory, bounds, start, stop):
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder, "train", IDS, sorted(bounds))
    tokens = TokenShards(sorted(folder.glob("*.bin")))
    assert len(tokens) == len(IDS)
    assert tokens[start:stop].tolist() == IDS[start:stop].tolist()
    assert tokens[:].dtype == np.uint16


def test_a_folder_of_many_files_is_a_dataset(tmp_path):
    write_parts(tmp_path, "train", IDS, [3, 4, 9])
    write_tokens(tmp_path / "val.bin", IDS, 6)
    data = load_dataset(tmp_path)
    assert isinstance(data.train, TokenShards)
    assert (data.train[:].tolist(), data.val.tolist(), data.vocab_size) == (IDS.tolist(), IDS.tolist(), 6)
    parts, whole = random_batch(data.train, 3, 4, 0, 1), random_batch(IDS, 3, 4, 0, 1)
    assert np.array_equal(parts, whole)
    assert [t.tolist() for _, t in all_windows(data.train, 2, 3)] == [t.tolist() for _, t in all_windows(IDS, 2, 3)]


def test_a_file_that_is_missing_among_many_is_named(tmp_path):
    write_parts(tmp_path, "train", IDS, [3, 6, 9])
    write_tokens(tmp_path / "val.bin", IDS, 6)
    (tmp_path / "train-00002.bin").unlink()
    assert "has 3 files train-*.bin, but number 2 is missing" in error_of(tmp_path)


@pytest.mark.parametrize("shards", [10**9, 2**62, 4])
def test_a_number_of_shards_is_not_believed(tmp_path, shards):
    write_parts(tmp_path, "train", IDS, [3, 6])
    write_tokens(tmp_path / "val.bin", IDS, 6)
    describe_tokens(tmp_path / "train-00000.bin", 3, 6, shards=shards)
    tracemalloc.start()
    try:
        assert "has 3 files train-*.bin, but number 3 is missing: train-00003.bin" in error_of(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", ["99999999999", "9" * 200])
def test_a_number_in_a_name_is_not_believed(tmp_path, number):
    write_tokens(tmp_path / f"train-{number}.bin", IDS, 6)
    write_tokens(tmp_path / "val.bin", IDS, 6)
    assert "has 1 files train-*.bin, but number 0 is missing: train-00000.bin" in error_of(tmp_path)


@pytest.mark.parametrize("shards", ["x", None, 0, -1, True, 1.5, [3], 10**400])
def test_a_number_of_shards_that_is_none_is_named(tmp_path, shards):
    write_parts(tmp_path, "train", IDS, [3, 6])
    write_tokens(tmp_path / "val.bin", IDS, 6)
    describe_tokens(tmp_path / "train-00000.bin", 3, 6, shards=shards)
    assert "train-00000.json beside it that describes it: shards is" in error_of(tmp_path)


@pytest.mark.parametrize("other", ["train.bin", "train-1.bin", "train.npy"])
def test_a_split_that_is_there_twice_is_refused(tmp_path, other):
    write_parts(tmp_path, "train", IDS, [3, 6])
    write_tokens(tmp_path / "val.bin", IDS, 6)
    if other.endswith(".npy"):
        np.save(tmp_path / other, IDS)
    else:
        write_tokens(tmp_path / other, IDS, 6)
    assert f"{other} and train-0000" in error_of(tmp_path)


def test_a_file_that_holds_what_is_not_in_its_vocabulary_is_named_when_that_is_read(tmp_path):
    write_parts(tmp_path, "train", IDS, [6])
    np.array([5, 6], dtype="<u2").tofile(path := tmp_path / "train-00001.bin")
    describe_tokens(path, 2, 6)
    tokens = TokenShards(sorted(tmp_path.glob("*.bin")))
    assert tokens[:7].tolist() == [*IDS[:6].tolist(), 5]
    with pytest.raises(DataError, match=r"train-00001\.bin holds the token 6 at place 1, but its vocabulary is 6$"):
        tokens[4:8]


def test_files_of_different_vocabularies_are_refused(tmp_path):
    write_parts(tmp_path, "train", IDS, [6])
    write_tokens(tmp_path / "train-00001.bin", IDS, 7)
    write_tokens(tmp_path / "val.bin", IDS, 6)
    assert "disagree on the size of the vocabulary" in error_of(tmp_path)


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 2), lambda path: path.unlink()], ids=["short", "gone"])
def test_a_file_that_changes_while_it_is_trained_on_is_named(tmp_path, change):
    write_parts(tmp_path, "train", IDS, [6])
    tokens = TokenShards(sorted(tmp_path.glob("*.bin")))
    change(tmp_path / "train-00001.bin")
    assert tokens[:6].tolist() == IDS[:6].tolist()
    with pytest.raises(DataError, match=r"train-00001\.bin (is shorter|does not exist)"):
        tokens[4:9]


def test_many_files_are_never_open_for_longer_than_a_slice_takes(tmp_path):
    resource = pytest.importorskip("resource", reason="no limits on this system")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    write_parts(tmp_path, "train", np.arange(600) % 6, range(1, 600))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        tokens = TokenShards(sorted(tmp_path.glob("*.bin")))
        assert tokens[:].tolist() == (np.arange(600) % 6).tolist()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_checksum_of_tokens_is_that_of_their_values(tmp_path):
    write_parts(tmp_path, "train", IDS, [5])
    same = [IDS, IDS.astype("uint16"), TokenShards(sorted(tmp_path.glob("*.bin")))]
    assert len({checksum(tokens) for tokens in same}) == 1
    others = [IDS[:-1], np.append(IDS, 0), np.where(np.arange(12) == 7, 1, IDS)]
    assert len({checksum(tokens) for tokens in (IDS, *others)}) == 4


def test_of_very_many_tokens_the_checksum_reads_pieces_that_are_spread_over_all(monkeypatch):
    monkeypatch.setattr(token_files, "CHECKED_PIECES", 8)
    monkeypatch.setattr(token_files, "CHECKED_PIECE", 10)
    tokens = np.zeros(1000, dtype="uint16")
    noticed = []
    for i in range(1000):
        changed = tokens.copy()
        changed[i] = 1
        noticed.append(checksum(changed) != checksum(tokens))
    assert sum(noticed) == 80
    assert noticed[0] and noticed[-1]
    assert checksum(tokens) != checksum(tokens[:-1])
