"""Data: token files, text files, random batches, and the windows of a validation."""

import json
import os
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.errors import DataError
from numllama.model import ModelConfig, Transformer
from numllama.tokenizer import CharTokenizer
from numllama.training import TrainConfig, Trainer, data, load_dataset, read_tokens, text_dataset, write_tokens
from numllama.training.data import TokenShards, all_windows, checksum, describe_tokens, random_batch

IDS = np.array([5, 0, 3, 3, 1, 5, 2, 4, 0, 1, 2, 3])


# ------------------------------------------------------------------------------------------------ token files


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


def error_of(path) -> str:
    """The sentence that opening `path` ends with; it names the path."""
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


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
}


@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
def test_a_token_file_needs_a_whole_json_beside_it(tmp_path, side):
    path = write_tokens(tmp_path / "a.bin", IDS, 6)
    (tmp_path / "a.json").unlink()
    if side is not None:
        (tmp_path / "a.json").write_bytes(side)
    assert "a.json" in error_of(path)


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


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"plain text", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<i8'}"])
def test_a_damaged_npy_file_is_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    error_of(tmp_path / "a.npy")


def test_an_npz_archive_under_the_name_of_an_npy_file_is_refused(tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.savez(file, ids=IDS)
    error_of(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["a.txt", "a.bin", "a.npy", "folder/a.txt"])
def test_a_path_that_does_not_exist_is_named(tmp_path, name):
    error_of(tmp_path / name)


# ------------------------------------------------------------------------------------------------ folders


def test_a_folder_holds_a_train_and_a_val_file(tmp_path):
    write_tokens(tmp_path / "train.bin", IDS, 6)
    write_tokens(tmp_path / "val.bin", IDS[::-1], 6)
    CharTokenizer("abcdef").save(tmp_path)
    dataset = load_dataset(tmp_path)
    assert dataset.train.tolist() == IDS.tolist()
    assert dataset.val.tolist() == IDS[::-1].tolist()
    assert dataset.vocab_size == 6
    assert dataset.tokenizer.characters == "abcdef"


def test_a_folder_of_npy_files_has_the_vocabulary_of_both(tmp_path):
    np.save(tmp_path / "train.npy", np.array([0, 1, 2]))
    np.save(tmp_path / "val.npy", np.array([0, 7]))
    assert load_dataset(tmp_path).vocab_size == 8


def test_a_folder_of_npy_files_has_the_vocabulary_of_its_tokenizer(tmp_path):
    np.save(tmp_path / "train.npy", np.array([0, 1, 2]))
    np.save(tmp_path / "val.npy", np.array([0, 1]))
    CharTokenizer("abcdef").save(tmp_path)
    assert load_dataset(tmp_path).vocab_size == 6


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_folder_without_one_of_the_two_says_which(tmp_path, missing):
    write_tokens(tmp_path / ("val.bin" if missing == "train" else "train.bin"), IDS, 6)
    assert f"neither {missing}.bin nor {missing}.npy" in error_of(tmp_path)


def test_train_and_val_of_different_vocabularies_are_refused(tmp_path):
    write_tokens(tmp_path / "train.bin", IDS, 6)
    write_tokens(tmp_path / "val.bin", IDS, 7)
    assert "vocabular" in error_of(tmp_path)


def test_a_tokenizer_of_another_vocabulary_than_the_tokens_is_refused(tmp_path):
    write_tokens(tmp_path / "train.bin", IDS, 6)
    write_tokens(tmp_path / "val.bin", IDS, 6)
    CharTokenizer("abc").save(tmp_path)
    assert "vocabular" in error_of(tmp_path)


# ------------------------------------------------------------------------------------------------ text files


def test_the_last_tenth_of_a_text_is_the_validation_split(tmp_path):
    text = "".join(chr(97 + i * i % 26) for i in range(200))
    (tmp_path / "a.txt").write_text(text)
    dataset = load_dataset(tmp_path / "a.txt")
    assert dataset.tokenizer.decode(dataset.train) == text[:180]
    assert dataset.tokenizer.decode(dataset.val) == text[180:]
    assert dataset.vocab_size == len(set(text))


@given(st.text(min_size=2, max_size=200))
def test_the_two_splits_are_the_text_whatever_it_is(text):
    dataset = text_dataset(text, "a text")
    assert dataset.tokenizer.decode(chain(dataset.train, dataset.val)) == text
    assert abs(len(dataset.val) - len(text) / 10) <= 1


def test_line_ends_and_marks_of_a_text_are_kept_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n\0".encode())
    dataset = load_dataset(tmp_path / "a.txt")
    assert dataset.tokenizer.decode(chain(dataset.train, dataset.val)) == "\ufeffone\r\ntwo\rthree\n\0"


def test_a_text_that_is_not_utf_8_says_which_byte_and_where(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 noir")
    assert "byte 3 is 0xe9" in error_of(tmp_path / "a.txt")


@pytest.mark.parametrize(("content", "word"), [(b"", "empty"), (b"x", "single")])
def test_a_text_with_nothing_to_learn_is_refused(tmp_path, content, word):
    (tmp_path / "a.txt").write_bytes(content)
    assert word in error_of(tmp_path / "a.txt")


# ------------------------------------------------------------------------------------------------ data and model


def trainer_of(text, vocab_size=None, seq_len=8) -> Trainer:
    dataset = text_dataset(text, "a book")
    model = Transformer(ModelConfig(vocab_size or dataset.vocab_size, 8, 1, 1, max_seq_len=17))
    return Trainer(model, dataset, TrainConfig(seq_len=seq_len, workers=1, steps=1, batch_size=2, eval_batches=1))


def test_one_window_to_train_on_and_two_tokens_to_validate_are_enough():
    trainer = trainer_of("ab" * 9 + "ab", seq_len=17)  # 18 and 2 tokens
    assert len(trainer.data.val) == 2
    assert [report.step for report in trainer] == [1]
    assert trainer.evaluate() == trainer.estimate()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("ab" * 5, "the val split of a book has 1 tokens"), ("aba" * 3, "the train split of a book has 8 tokens, but at least 9")],
)
def test_a_text_that_is_too_short_says_how_much_is_needed(text, sentence):
    with pytest.raises(DataError, match=sentence):
        trainer_of(text)


def test_data_of_a_larger_vocabulary_than_the_models_is_refused():
    with pytest.raises(DataError, match="vocabulary of 26, but the model's is 25"):
        trainer_of("abcdefghijklmnopqrstuvwxyz" * 3, vocab_size=25)


# ------------------------------------------------------------------------------------------------ batches


def test_a_batch_is_a_function_of_seed_and_step():
    tokens = np.arange(1000)
    first = random_batch(tokens, 4, 8, seed=1, step=2)
    random_batch(tokens, 4, 8, seed=9, step=9)  # what was drawn before does not matter
    again = random_batch(tokens, 4, 8, seed=1, step=2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, random_batch(tokens, 4, 8, seed=1, step=3))
    assert not np.array_equal(first, random_batch(tokens, 4, 8, seed=2, step=2))


def test_batches_of_a_seed_and_a_step_stay_what_they_are():
    inputs, _ = random_batch(np.arange(1000), 4, 3, seed=1, step=2)
    starts = np.random.default_rng([1, 2]).integers(0, 997, size=4)
    assert inputs.tolist() == [[start, start + 1, start + 2] for start in starts]


@given(n=st.integers(2, 40), batch=st.integers(1, 5), seq_len=st.integers(1, 39), seed=st.integers(0, 99))
def test_targets_are_the_tokens_that_follow_the_inputs(n, batch, seq_len, seed):
    seq_len = min(seq_len, n - 1)
    inputs, targets = random_batch(np.arange(n, dtype="uint16"), batch, seq_len, seed, step=1)
    assert inputs.shape == targets.shape == (batch, seq_len)
    assert np.array_equal(targets, inputs + 1)
    assert np.array_equal(inputs, inputs[:, :1] + np.arange(seq_len))


def test_every_window_is_drawn_the_last_one_too():
    inputs, _ = random_batch(np.arange(12), 500, 4, seed=0, step=1)
    assert set(inputs[:, 0].tolist()) == set(range(8))  # the last one, 7, asks for token 11


def test_tokens_as_long_as_one_window_give_that_window():
    inputs, targets = random_batch(np.arange(5), 2, 4, seed=0, step=1)
    assert inputs.tolist() == [[0, 1, 2, 3]] * 2
    assert targets.tolist() == [[1, 2, 3, 4]] * 2


@given(n=st.integers(1, 60), batch=st.integers(1, 5), seq_len=st.integers(1, 12))
def test_windows_ask_for_every_token_but_the_first_exactly_once(n, batch, seq_len):
    windows = list(all_windows(np.arange(n, dtype="uint16"), batch, seq_len))
    asked = [t for _, targets in windows for t in targets.ravel().tolist()]
    assert asked == list(range(1, n))
    for inputs, targets in windows:
        assert np.array_equal(targets, inputs + 1)
        assert 1 <= len(inputs) <= batch
        assert 1 <= inputs.shape[1] <= seq_len


@given(n=st.integers(2, 60), batch=st.integers(1, 5), seq_len=st.integers(1, 12))
def test_windows_are_neighbours_and_only_the_last_may_be_shorter(n, batch, seq_len):
    rows = [row for inputs, _ in all_windows(np.arange(n), batch, seq_len) for row in inputs.tolist()]
    assert [row[0] for row in rows] == list(range(0, n - 1, seq_len))
    assert {len(row) for row in rows[:-1]} <= {seq_len}


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
    with pytest.raises(DataError, match=r"train-00001\.bin holds the token 6, but its vocabulary is 6$"):
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
    with pytest.raises(DataError, match=r"train-00001\.bin (is shorter|cannot be read)"):
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
    monkeypatch.setattr(data, "CHECKED_PIECES", 8)
    monkeypatch.setattr(data, "CHECKED_PIECE", 10)
    tokens = np.zeros(1000, dtype="uint16")
    noticed = []
    for i in range(1000):
        changed = tokens.copy()
        changed[i] = 1
        noticed.append(checksum(changed) != checksum(tokens))
    assert sum(noticed) == 80
    assert noticed[0] and noticed[-1]
    assert checksum(tokens) != checksum(tokens[:-1])
