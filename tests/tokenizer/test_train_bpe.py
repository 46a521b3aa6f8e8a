"""Training: merge for merge what the plainest way of doing it gives, whatever the parts and the processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data
from tokenizer.bpe_reference import naive_train

from numllama import Tokenizer
from numllama.errors import DataError
from numllama.tokenizer import train_bpe
from numllama.tokenizer.train_bpe import find_merges, train_on_text


@pytest.fixture
def write(tmp_path):
    """Write text files, give their paths."""

    def write(*texts):
        paths = [tmp_path / f"{i}.txt" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return paths

    return write


def train(files, vocab_size, special_tokens=(), **how):
    return Tokenizer.train(files, vocab_size, special_tokens=special_tokens, **{"progress": False, "workers": 1, **how})


def numbers() -> str:
    rng = np.random.default_rng(0)
    return "\n".join(" ".join(map(str, rng.integers(0, 3000, 9))) for _ in range(300))


# ------------------------------------------------------------------------------------------------ the naive reference


CORPORA = {
    "shakespeare": lambda: real_data("tinyshakespeare.txt").read_text(encoding="utf-8")[:60_000],
    "numbers": numbers,
    "many scripts": lambda: "天地玄黄，宇宙洪荒。 été naïve straße σ 😀😀😀 aaaa aaaaaaa\r\n\r\n  x\ty's" * 20 + "中中 中中",
}


@pytest.mark.parametrize("pattern", ["gpt2", "llama3"])
@pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)
def test_merges_are_the_naive_ones(write, corpus, pattern):
    text = corpus()
    assert train(write(text), 256 + 120, pattern=pattern).merges == naive_train(text, 120, pattern)


@given(text=st.text(st.sampled_from("aaab é中\n<|e|>"), min_size=1, max_size=200))
def test_merges_of_short_texts_are_the_naive_ones_to_the_very_end(text):
    made = train_on_text(text, 1000)
    assert made.merges == naive_train(text, 1000)
    assert made.vocab_size == 256 + len(made.merges)


def test_equally_frequent_pairs_merge_from_the_end_of_the_alphabet():
    assert find_merges({"ab": 1, "cd": 1, "cda": 1, "é": 2}, 3) == [(b"\xc3", b"\xa9"), (b"c", b"d"), (b"cd", b"a")]
    assert find_merges({"ab": 1, "abc": 1, "ac": 2}, 1) == [(b"a", b"c")]
    assert find_merges({"xay": 1, "xabz": 1}, 3)[0] == (b"x", b"a")


def test_a_longer_string_comes_after_its_beginning():
    assert find_merges({"ab": 5, "abx": 1, "aby": 1, "xx": 1}, 2) == [(b"a", b"b"), (b"x", b"x")]
    assert find_merges({"ab": 5, "a,": 1, "ab,": 1}, 2) == [(b"a", b"b"), (b"ab", b",")]


def test_words_are_looked_at_only_when_a_merge_changes_them(monkeypatch):
    looked_at = 0

    def places(ids, first, second):
        nonlocal looked_at
        looked_at += 1
        return find(ids, first, second)

    find = train_bpe._places
    monkeypatch.setattr(train_bpe, "_places", places)
    words = {f"{number:08d}": 1 for number in range(0, 10**8, 10**5)}
    assert len(find_merges(words, 500)) == 500
    assert looked_at <= 2 * sum(map(len, words))  # each merge makes a word shorter; looking at all for each takes 500 000


def test_a_run_of_a_million_equal_characters(write):
    assert train(write("a" * 1_000_000), 258).merges == [(b"a", b"a"), (b"aa", b"aa")]


# ------------------------------------------------------------------------------------------------ ids


def test_ids_are_the_bytes_then_the_merges_then_the_special_tokens(write):
    made = train(write("the then they " * 20), 262, ["<|a|>", "<|b|>"])
    assert [made.vocab[i] for i in range(256)] == [bytes([i]) for i in range(256)]
    assert [made.vocab[256 + i] for i in range(4)] == [left + right for left, right in made.merges]
    assert made.special_tokens == {"<|a|>": 260, "<|b|>": 261}
    assert made.vocab_size == 262
    assert made.encode("the<|b|>", "all")[-1] == 261


def test_a_text_with_nothing_left_to_merge_gives_a_smaller_vocabulary(write):
    made = train(write("ab"), 1000, ["<|a|>"])
    assert (made.merges, made.special_tokens, made.vocab_size) == ([(b"a", b"b")], {"<|a|>": 257}, 258)
    assert train(write("ab"), 256).merges == []


# ------------------------------------------------------------------------------------------------ parts and processes


@pytest.mark.parametrize("part", [50, 1000, 2**21])
def test_the_parts_that_are_counted_do_not_matter(write, monkeypatch, part):
    monkeypatch.setattr(train_bpe, "PART", part)
    text = CORPORA["many scripts"]() + "<|e|>aaa<|e|>" + numbers()
    assert train(write(text), 340, ["<|e|>"]).merges == naive_train(text, 83, special_tokens=["<|e|>"])


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_matter(write, monkeypatch, workers):
    monkeypatch.setattr(train_bpe, "PART", 2000)
    paths = write(CORPORA["many scripts"](), numbers())
    assert train(paths, 356, workers=workers).merges == train(paths, 356).merges


def test_special_tokens_cut_the_text_and_are_not_learnt(write):
    text = "ab<|cut|>ab<|cut|>" * 50
    made = train(write(text), 300, ["<|cut|>"])
    assert made.merges == [(b"a", b"b")]
    assert (b"c", b"ut") in train(write(text), 300).merges


def test_several_files_are_several_texts(write):
    made = train(write("xa", "bx", "xa"), 300)
    assert made.merges == [(b"x", b"a"), (b"b", b"x")]
    assert train([str(path) for path in write("xa", "bx", "xa")], 300).merges == made.merges
    assert train(str(write("xaxa")[0]), 300).merges == train(write("xaxa"), 300).merges


def test_rare_words_are_forgotten_when_there_are_too_many(write, monkeypatch):
    monkeypatch.setattr(train_bpe, "DISTINCT", 100)
    monkeypatch.setattr(train_bpe, "PART", 500)
    text = "".join(f" the w{i}" for i in range(2000))
    kept = train_bpe.count_words(write(text), "gpt2", (), 1, False, "strict")
    assert kept[" the"] == 2000
    assert len(kept) <= 100
    assert kept == train_bpe.count_words(write(text), "gpt2", (), 2, False, "strict")


def test_progress_is_shown_if_it_is_wanted(write, capfd):
    train(write("the the"), 260)
    assert capfd.readouterr().err == ""
    train(write("the the"), 260, progress=True)
    assert "merging" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("text", "at", "byte"),
    [(b"caf\xe9 noir", 3, "e9"), (b"a" * 2**20 + b"\xff", 2**20, "ff"), ("é".encode() * 2**19 + b"x\xc3", 2**20 + 1, "c3"),
     (b"a" * (2**20 - 1) + b"\xe4\xb8x", 2**20 - 1, "e4"), (bytes(range(256)), 128, "80"), (b"\x89PNG\r\n\x1a\n\0\0", 0, "89")],
)  # fmt: skip
def test_a_file_that_is_not_utf_8_says_where_and_what_helps(write, text, at, byte):
    (path,) = write(text)
    with pytest.raises(DataError) as error:
        train(path, 300)
    assert str(error.value).startswith(f"{path} is not UTF-8 text: byte {at} is 0x{byte};")
    assert "--errors replace" in str(error.value)
    assert train(path, 300, errors="replace").vocab_size >= 256


def test_missing_and_empty_files_and_folders_are_named(write, tmp_path):
    path, other = write("", "")
    for files, sentence in [
        (path, f"{path} is empty"), ([path, other], "all the other files are empty"), (tmp_path, f"{tmp_path} is a folder"),
        (tmp_path / "x", "does not exist"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=r"^[^\n]*$") as error:
            train(files, 300)
        assert sentence in str(error.value)
    with pytest.raises(ValueError, match="files is empty"):
        train([], 300)
    assert train(write("", "abab"), 300).merges


def test_one_string_for_special_tokens_is_refused(write):
    with pytest.raises(TypeError, match=r"^special_tokens must be .* not a single string$"):
        train(write("abc"), 300, "<s>")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"vocab_size": 255}, "vocab_size is 255, but 256 bytes and 0 special tokens need 256"),
        ({"vocab_size": 257, "special_tokens": ["<a>", "<b>"]}, "vocab_size is 257, but 256 bytes and 2 special tokens need 258"),
        ({"vocab_size": "300"}, "vocab_size is '300'"),
        ({"special_tokens": ["<a>", "<a>"]}, "special_tokens holds '<a>' twice"),
        ({"special_tokens": [""]}, "special_tokens holds ''"),
        ({"pattern": "("}, r"pattern is '\('"),
        ({"workers": 0}, "workers is 0"),
        ({"errors": "ignore"}, "errors is 'ignore', but must be strict or replace"),
    ],
)
def test_impossible_settings_are_one_sentence(write, how, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}[^\n]*$"):
        train(write("abc"), **{"vocab_size": 300, **how})
