"""Data: folders, text files, random batches, and the windows of a validation."""

import os
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.data.batches import all_windows, random_batch
from numllama.data.dataset import read_text
from numllama.errors import DataError
from numllama.model import ModelConfig, Transformer
from numllama.tokenizer import CharTokenizer
from numllama.training import TrainConfig, Trainer, load_dataset, text_dataset, write_tokens

IDS = np.array([5, 0, 3, 3, 1, 5, 2, 4, 0, 1, 2, 3])


def error_of(path) -> str:
    """The sentence that opening `path` ends with; it names the path."""
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


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


# ------------------------------------------------------------------------------------------------ no regular file


@pytest.mark.parametrize("name", ["text.txt", "ids.bin", "ids.npy", "folder"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_is_refused_unread(tmp_path, name, kind):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
        write_tokens(path / "val.bin", IDS, 6)
        path = path / "train.bin"
    if path.suffix == ".bin":
        path.with_suffix(".json").write_text('{"dtype": "uint16", "tokens": 12, "vocab_size": 6}')
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=rf"{path.name} is not a regular file$"):
        load_dataset(tmp_path / name)


def test_what_a_shell_has_opened_is_read():
    code = "from pathlib import Path; from numllama.data.dataset import read_text; print(read_text(Path('/dev/stdin')))"
    done = subprocess.run([sys.executable, "-c", code], input="a text\n", capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("a text\n\n", 0)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".bin", "a\0b", "a\0b.npy"])
def test_a_name_that_no_file_can_have_is_one_sentence(tmp_path, name):
    with pytest.raises(DataError, match=r"(cannot be read: File name too long|does not exist|is damaged: )"):
        load_dataset(tmp_path / name)
    with pytest.raises(DataError, match=r"(cannot be read: File name too long|does not exist|is damaged: )"):
        read_text(tmp_path / name)


def test_an_archive_of_arrays_is_named(tmp_path):
    np.savez(tmp_path / "a.npz", ids=IDS)
    assert error_of(tmp_path / "a.npz").endswith("is an archive of arrays, but a single array is needed: save it with numpy.save")
