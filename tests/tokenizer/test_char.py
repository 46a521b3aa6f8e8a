"""CharTokenizer: what goes in comes out, and what cannot go in is named."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data

from numllama.errors import DataError
from numllama.tokenizer import CharTokenizer

ANY_TEXT = st.text(st.characters(), max_size=60)  # every code point, lone surrogates among them


@given(ANY_TEXT)
def test_decoding_what_was_encoded_gives_the_text_back(text):
    tokenizer = CharTokenizer(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(ANY_TEXT)
def test_ids_are_places_in_the_sorted_characters(text):
    tokenizer = CharTokenizer(text)
    characters = sorted(set(text))
    assert tokenizer.vocab_size == len(characters)
    assert tokenizer.encode(text) == [characters.index(character) for character in text]


@given(ANY_TEXT)
def test_encode_array_gives_the_same_ids_as_encode(text):
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode_array(text)
    assert ids.dtype.kind == "i"
    assert ids.tolist() == tokenizer.encode(text)


def test_order_and_repetitions_of_the_characters_do_not_matter():
    assert CharTokenizer("banana").characters == CharTokenizer(["n", "b", "a"]).characters == "abn"


def test_each_code_point_is_one_token_whatever_its_size():
    text = "a\u00e9\u4e2d\U0001f600\0\r\n"
    assert len(CharTokenizer(text).encode(text)) == len(text) == 7


def test_a_lone_surrogate_is_a_character_like_any_other():
    tokenizer = CharTokenizer("a\ud800b")
    assert tokenizer.decode(tokenizer.encode("\ud800ab")) == "\ud800ab"


@pytest.mark.parametrize(("text", "position"), [("?ab", 0), ("ab?a?", 2), ("\U0001f600", 0), ("ab\0", 2), ("bb\ud800", 2)])
def test_an_unknown_character_is_named_with_its_position(text, position):
    with pytest.raises(ValueError, match=f"at position {position} is not among the 2") as error:
        CharTokenizer("ab").encode(text)
    assert repr(text[position]) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_position_of_an_unknown_character_counts_characters_not_bytes():
    with pytest.raises(ValueError, match="at position 3 "):
        CharTokenizer("\U0001f600").encode("\U0001f600" * 3 + "x")


def test_a_tokenizer_without_characters_encodes_the_empty_text_only():
    tokenizer = CharTokenizer("")
    assert tokenizer.encode("") == []
    with pytest.raises(ValueError, match="no characters"):
        tokenizer.encode("a")


@pytest.mark.parametrize("wrong", [-1, 1.0, True, "a"])
def test_what_is_no_id_is_named_instead_of_counted_from_the_end(wrong):
    with pytest.raises(ValueError, match=f"ids hold {wrong!r}, but must be whole numbers"):
        CharTokenizer("abc").decode([0, wrong])


@pytest.mark.parametrize("nobody", [3, 10**9, np.uint16(4)])
def test_an_id_that_no_character_has_stands_for_nothing(nobody):
    assert CharTokenizer("abc").decode([0, nobody, 2]) == "ac"
    assert list(CharTokenizer("abc").decode_stream([0, nobody, 2])) == ["a", "c"]


def test_decode_takes_arrays_and_iterators():
    tokenizer = CharTokenizer("abc")
    assert tokenizer.decode(np.array([2, 0], dtype="uint16")) == tokenizer.decode(iter([2, 0])) == "ca"


@given(text=ANY_TEXT)
def test_a_saved_tokenizer_loads_as_the_same_one(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("tokenizer")
    path = CharTokenizer(text).save(folder)
    assert path == folder / "tokenizer.json"
    assert CharTokenizer.load(folder).characters == CharTokenizer.load(path).characters == CharTokenizer(text).characters


def test_two_surrogates_that_would_make_a_pair_stay_two_characters_on_disk(tmp_path):
    tokenizer = CharTokenizer("\ud83d\ude00")
    tokenizer.save(tmp_path)
    assert CharTokenizer.load(tmp_path).vocab_size == tokenizer.vocab_size == 2


DAMAGED = {
    "empty": b"",
    "cut short": b'{"type": "characters", "chara',
    "not JSON": b"characters: abc",
    "not UTF-8": b'{"type": "characters", "characters": "\xff"}',
    "a list": b"[1, 2]",
    "another type": b'{"type": "bpe", "characters": "abc"}',
    "no type": b'{"characters": "abc"}',
    "no characters": b'{"type": "characters"}',
    "a number for characters": b'{"type": "characters", "characters": 3}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        CharTokenizer.load(tmp_path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        CharTokenizer.load(tmp_path)


def test_the_file_is_plain_ascii_json(tmp_path):
    path = CharTokenizer("a\u4e2d").save(tmp_path)
    assert json.loads(path.read_bytes().decode("ascii"))["type"] == "characters"


def test_tinyshakespeare_has_65_characters():
    text = real_data("tinyshakespeare.txt").read_text(encoding="utf-8")
    tokenizer = CharTokenizer(text)
    assert tokenizer.vocab_size == 65
    assert tokenizer.characters[:13] == "\n !$&',-.3:;?"
    assert tokenizer.decode(tokenizer.encode(text)) == text
