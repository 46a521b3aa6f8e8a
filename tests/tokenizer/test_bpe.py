"""Tokenizer: ids there and text back, special tokens, streams, bytes, and what cannot be."""

import pickle
from collections import UserDict
from unittest.mock import patch

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from realdata import real_data
from tokenizer.bpe_reference import naive_encode

from numllama import Tokenizer
from numllama.tokenizer import bpe, core, merging

BYTES = {i: bytes([i]) for i in range(256)}
WORDS = [b"th", b"the", b" the", b" a", b"an", b"aa", b"aaaa", b"\xe4\xb8", b"  "]
MERGES = [
    (b"t", b"h"), (b"th", b"e"), (b" ", b"the"), (b" ", b"a"), (b"a", b"n"), (b"a", b"a"), (b"aa", b"aa"),
    (b"\xe4", b"\xb8"), (b" ", b" "),
]  # fmt: skip
VOCAB = BYTES | {256 + i: word for i, word in enumerate(WORDS)}
SPECIAL = {"<|end|>": 300, "<|end|><|end|>": 301, "<s>": 302, "the cat": 303}
TOKENIZER = Tokenizer(VOCAB, MERGES, SPECIAL)
PLAIN = Tokenizer(VOCAB, MERGES)
TEXT = st.one_of(st.text(), st.text(st.sampled_from("the an aa\n中é'1<s>|"), max_size=60))
SPECIAL_TEXT = st.lists(st.sampled_from([*SPECIAL, "the ", "a", "<", "s>", "é", "<|end"]), max_size=12).map("".join)


# ------------------------------------------------------------------------------------------------ there and back


KINDS = {
    "GPT-2's pattern": PLAIN,
    "Llama 3's pattern, whole words": Tokenizer(VOCAB, MERGES, pattern="llama3", ignore_merges=True),
    "a pattern that leaves out much": Tokenizer(VOCAB, MERGES, pattern=r"(th)e|a+"),
}


@pytest.mark.parametrize("tokenizer", KINDS.values(), ids=KINDS)
@settings(max_examples=500)
@given(text=TEXT)
def test_decoding_what_was_encoded_gives_the_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=TEXT)
def test_ids_are_those_of_each_merge_in_turn(text):
    assert PLAIN.encode(text) == naive_encode(text, MERGES, {token: i for i, token in VOCAB.items()})


def test_100_000_random_byte_strings_come_back():
    rng = np.random.default_rng(0)
    ends = np.cumsum(rng.integers(0, 12, 100_000))
    data = rng.integers(0, 256, ends[-1], dtype="uint8")
    data[rng.random(len(data)) < 0.5] &= 0x7F  # half of them text
    data = data.tobytes()
    strings = [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert len(strings) == 100_000
    wrong = [string for string in strings if PLAIN.decode_bytes(PLAIN.encode_bytes(string)) != string]
    assert wrong == []


@given(text=TEXT)
def test_the_bytes_of_a_text_have_the_texts_ids(text):
    assert TOKENIZER.encode_bytes(text.encode()) == PLAIN.encode(text)


def test_a_stray_byte_does_not_change_what_text_around_it_becomes():
    assert PLAIN.encode_bytes(b"the\xff the") == [*PLAIN.encode("the"), 255, *PLAIN.encode(" the")]
    assert PLAIN.encode("\udcff") == PLAIN.encode("\ufffd")  # what stood for the byte above means nothing in a text


SURROGATES = [
    ("a\ud800b", "a\ufffdb"), ("\udc00", "\ufffd"), ("\ud83d" + "\ude00", "\U0001f600"), ("\ude00" + "\ud83d", "\ufffd\ufffd")
]  # fmt: skip


@pytest.mark.parametrize(("text", "same"), SURROGATES, ids=ascii)
def test_surrogates_are_handled_as_tiktoken_does(text, same):
    assert PLAIN.encode(text) == PLAIN.encode(same)
    assert list(PLAIN.encode_iterable(text)) == PLAIN.encode(same)


def test_gpt2s_ids_of_tinyshakespeare():
    tokenizer = Tokenizer.load(real_data("gpt2_vocab.json"))
    text = real_data("tinyshakespeare.txt").read_text(encoding="utf-8")
    ids, n = tokenizer.encode(text), int(0.9 * len(text))
    assert len(ids) == 338_025
    assert (len(tokenizer.encode(text[:n])), len(tokenizer.encode(text[n:]))) == (301_966, 36_059)
    assert tokenizer.encode("Hello world") == [15496, 995]
    same = tokenizer.decode(ids) == text
    assert same


@pytest.mark.parametrize(("character", "ids"), [("a", [262] * 25_000), (" ", [264] * 50_000), ("1", [49] * 100_000)])
def test_a_run_of_100_000_equal_characters(monkeypatch, character, ids):
    monkeypatch.setattr(merging, "merge_steps", None)  # takes quadratic time
    same = PLAIN.encode(character * 100_000) == ids
    assert same
    assert PLAIN.decode(ids) == character * 100_000


# ------------------------------------------------------------------------------------------------ what a tokenizer is


def test_a_vocabulary_may_map_ids_to_bytes_or_bytes_to_ids():
    turned = Tokenizer({token: i for i, token in VOCAB.items()}, MERGES, SPECIAL)
    assert turned.vocab == TOKENIZER.vocab == VOCAB
    assert turned.encode("the an") == TOKENIZER.encode("the an") == [257, 259, 110]


def test_ids_may_be_in_any_order_and_have_gaps():
    ids = {token: 1000 - 3 * i for i, token in enumerate(VOCAB.values())}
    tokenizer = Tokenizer(ids, MERGES)
    assert tokenizer.encode("the an") == [ids[b"the"], ids[b" a"], ids[b"n"]]
    assert tokenizer.decode(tokenizer.encode("the an")) == "the an"
    assert tokenizer.vocab_size == 1001


def test_special_tokens_without_ids_follow_the_vocabulary_unless_they_are_in_it():
    tokenizer = Tokenizer(VOCAB | {400: b"<s>"}, MERGES, ["<a>", "<s>", "<b>"])
    assert tokenizer.special_tokens == {"<a>": 401, "<s>": 400, "<b>": 402}
    assert tokenizer.vocab_size == 403
    assert tokenizer.encode("<s>", disallowed_special=()) == [60, 115, 62]


def test_the_same_bytes_as_a_special_token_are_ordinary_too():
    tokenizer = Tokenizer(VOCAB, MERGES, {"the": 300})
    assert tokenizer.encode("the", disallowed_special=()) == [257]
    assert tokenizer.encode("the", allowed_special="all") == [300]


def test_a_whole_pre_token_is_looked_up_only_if_merges_are_to_be_ignored():
    vocab = VOCAB | {270: b" cat"}  # no merge makes it
    assert Tokenizer(vocab, MERGES).encode("the cat") == [257, 32, 99, 97, 116]
    assert Tokenizer(vocab, MERGES, ignore_merges=True).encode("the cat") == [257, 270]
    assert Tokenizer(vocab, MERGES, ignore_merges=True).encode("the cats") == [257, 32, 99, 97, 116, 115]


@pytest.mark.parametrize(("largest", "dtype"), [(2**16 - 1, "uint16"), (2**16, "uint32")])
def test_packed_ids_have_the_smallest_dtype_that_holds_them(largest, dtype):
    tokenizer = Tokenizer(VOCAB, MERGES, {"<x>": largest})
    ids = tokenizer.encode_array("the<x>", allowed_special="all")
    assert ids.dtype == tokenizer.dtype == dtype
    assert ids.tolist() == tokenizer.encode("the<x>", "all") == [257, largest]


def test_a_tokenizer_can_be_sent_to_another_process():
    TOKENIZER.encode("the")
    assert pickle.loads(pickle.dumps(TOKENIZER)).encode("the an<s>", "all") == TOKENIZER.encode("the an<s>", "all")


def test_a_cache_that_is_full_starts_again(monkeypatch):
    monkeypatch.setattr(core, "CACHED_PIECES", 3)
    tokenizer = Tokenizer(VOCAB, MERGES)
    text = "the an aa a the b c d e f the"
    assert tokenizer.encode(text) == tokenizer.encode(text) == PLAIN.encode(text)
    assert len(tokenizer._cache) <= 3


# ------------------------------------------------------------------------------------------------ special tokens


def with_special(text):
    """The definition: cut at special tokens, longest first, and encode what lies between."""
    ids = []
    for part in regex.split("(" + "|".join(map(regex.escape, sorted(SPECIAL, key=len, reverse=True))) + ")", text):
        ids += [SPECIAL[part]] if part in SPECIAL else PLAIN.encode(part)
    return ids


@given(text=SPECIAL_TEXT)
def test_special_tokens_that_are_allowed_become_their_ids_longest_first(text):
    ids = TOKENIZER.encode(text, allowed_special="all")
    assert ids == with_special(text)
    assert TOKENIZER.decode(ids) == text


@given(text=SPECIAL_TEXT)
def test_a_special_token_that_is_not_allowed_is_an_error_that_names_it(text):
    if not any(token in text for token in SPECIAL):
        assert TOKENIZER.encode(text) == PLAIN.encode(text)
        return
    with pytest.raises(ValueError, match="special token") as caught:
        TOKENIZER.encode(text)
    assert any(repr(token) in str(caught.value) for token in SPECIAL)
    assert "\n" not in str(caught.value)


def test_some_may_be_allowed_and_others_ordinary():
    text = "the<s>the<|end|>"
    assert TOKENIZER.encode(text, allowed_special={"<s>"}, disallowed_special=()) == [257, 302, 257, *b"<|end|>"]
    with pytest.raises(ValueError, match=r"<\|end\|>"):
        TOKENIZER.encode(text, allowed_special={"<s>"})
    with pytest.raises(ValueError, match="<s>"):
        TOKENIZER.encode(text, disallowed_special={"<s>"})
    assert TOKENIZER.encode(text, disallowed_special=()) == PLAIN.encode(text)


@pytest.mark.parametrize("name", ["allowed_special", "disallowed_special"])
@pytest.mark.parametrize("value", [{"<x>"}, "<s>"])
def test_special_tokens_that_the_tokenizer_does_not_know_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        TOKENIZER.encode("the", **{name: value})


# ------------------------------------------------------------------------------------------------ many texts, and streams


def test_a_batch_is_each_text_by_itself():
    texts = ["the an", "", "a" * 99, "é<s>"]
    assert TOKENIZER.encode_batch(texts, "all") == [TOKENIZER.encode(text, "all") for text in texts]


@given(text=st.one_of(TEXT, SPECIAL_TEXT), step=st.integers(1, 9), size=st.integers(1, 20))
def test_a_stream_in_any_parts_has_the_ids_of_the_whole(text, step, size):
    parts = (text[i : i + step] for i in range(0, len(text), step))
    with patch.object(bpe, "CHUNK", size):  # small chunks, so that a short text has several
        ids = list(TOKENIZER.encode_iterable(parts, "all"))
    assert ids == TOKENIZER.encode(text, "all")


def test_a_stream_is_read_only_as_far_as_needed():
    taken = 0

    def parts():
        nonlocal taken
        while True:
            taken += 1
            yield "the cat an " * 100

    ids = TOKENIZER.encode_iterable(parts(), "all")
    first = [next(ids) for _ in range(200_000)]
    assert first == TOKENIZER.encode("the cat an " * 100_000, "all")[:200_000]
    assert taken < 1000


def test_a_special_token_in_a_stream_is_found_across_parts():
    with pytest.raises(ValueError, match="<s>"):
        list(TOKENIZER.encode_iterable(["the <", "s> the"]))


@given(ids=st.lists(st.sampled_from([*VOCAB, *SPECIAL.values()]), max_size=40))
def test_a_stream_of_ids_is_decoded_to_the_same_text_in_whole_characters(ids):
    parts = list(TOKENIZER.decode_stream(iter(ids)))
    assert "".join(parts) == TOKENIZER.decode(ids)
    assert "" not in parts


def test_a_streamed_character_comes_when_its_last_byte_does():
    stream = TOKENIZER.decode_stream(iter([*"a中".encode(), 97, *"😀".encode()[:2]]))
    assert list(stream) == ["a", "中", "a", "\ufffd"]


# ------------------------------------------------------------------------------------------------ the steps of a word


@given(text=TEXT)
def test_the_steps_of_a_word_lead_from_its_bytes_to_its_tokens(text):
    tokens = [bytes([byte]) for byte in text.encode()]
    for step in PLAIN.merges_of(text):
        assert MERGES[step.rank] == (step.left, step.right)
        places = [i for i in range(len(tokens) - 1) if tokens[i : i + 2] == [step.left, step.right]]
        after = [[*tokens[:i], step.left + step.right, *tokens[i + 2 :]] for i in places]
        assert step.tokens in after
        tokens = step.tokens
    assert tokens == [VOCAB[i] for i in PLAIN.encode(text)]


def test_the_steps_of_a_word_come_in_the_order_they_were_learnt():
    steps = PLAIN.merges_of(" the")
    assert [(step.left, step.right) for step in steps] == MERGES[:3]
    assert [step.tokens for step in steps] == [[b" ", b"th", b"e"], [b" ", b"the"], [b" the"]]


def test_a_word_that_is_looked_up_and_that_no_merges_lead_to_takes_no_steps():
    tokenizer = Tokenizer(VOCAB | {270: b"thee"}, MERGES, ignore_merges=True)
    assert tokenizer.merges_of("thee") == []
    assert [step.tokens for step in tokenizer.merges_of("the")] == [[b"th", b"e"], [b"the"]]
    assert [step.tokens for step in tokenizer.merges_of("thee an")][-1] == [b"thee", b" a", b"n"]


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize("wrong", [-1, "a", None, [1], 1.5, True])
def test_what_is_no_id_is_named(wrong):
    for decode in (PLAIN.decode, PLAIN.decode_bytes, lambda ids: list(PLAIN.decode_stream(ids))):
        with pytest.raises(ValueError, match="but must be whole numbers that are not negative") as caught:
            decode([97, wrong])
        assert repr(wrong) in str(caught.value)


@pytest.mark.parametrize("nobody", [265, 10**9, np.int64(300)])
def test_an_id_that_no_token_has_stands_for_nothing(nobody):
    assert PLAIN.decode([97, nobody, 98]) == "ab"
    assert PLAIN.decode_bytes([nobody]) == b""
    assert list(PLAIN.decode_stream([0xC3, nobody, 0xBC])) == ["ü"]
    assert list(PLAIN.decode_each([97, nobody])) == [b"a", b""]


def test_an_error_of_whoever_gives_the_ids_stays_what_it_is():
    def broken():
        yield 97
        raise KeyError("their own")

    with pytest.raises(KeyError, match="their own"):
        PLAIN.decode(broken())
    with pytest.raises(TypeError, match="not iterable"):
        PLAIN.decode(97)


def test_decode_takes_arrays_and_iterators():
    ids = TOKENIZER.encode_array("the an")
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(iter(ids)) == TOKENIZER.decode(list(ids)) == "the an"


@pytest.mark.parametrize("text", [b"the", None, 3, ["the"]])
def test_what_is_not_a_text_is_refused(text):
    with pytest.raises(TypeError, match="text must be a string"):
        TOKENIZER.encode(text)


@pytest.mark.parametrize("data", ["the", 3, None])
def test_what_are_not_bytes_is_refused(data):
    with pytest.raises(TypeError, match=f"^data must be bytes, not {type(data).__name__}$"):
        TOKENIZER.encode_bytes(data)


WRONG = {
    "an id of five bytes": (BYTES, [], {"<s>": 2**32}, ValueError, "the largest id is 4294967296, but must be below"),
    "a list for a vocabulary": (list(BYTES.values()), [], (), TypeError, "vocab must be a dictionary"),
    "text for tokens": ({i: chr(i) for i in range(256)}, [], (), TypeError, "vocab must map"),
    "a special token for a byte": (BYTES, [], {"a": 97}, ValueError, "holds 'a', but that is the token of a byte"),
    "a token twice": (BYTES | {256: b"a"}, [], (), ValueError, "holds b'a' twice"),
    "an id twice": ({token: i for i, token in BYTES.items()} | {b"aa": 3}, [], (), ValueError, "same id"),
    "an empty token": (BYTES | {256: b""}, [], (), ValueError, "not empty"),
    "an id below zero": (BYTES | {-1: b"aa"}, [], (), ValueError, "not negative"),
    "a merge of unknown tokens": (BYTES, [(b"ab", b"c")], (), ValueError, "merges need the token b'ab'"),
    "a merge into nothing": (BYTES, [(b"a", b"b")], (), ValueError, "merges need the token b'ab'"),
    "a merge twice": (VOCAB, [*MERGES, MERGES[0]], (), ValueError, "twice"),
    "a merge of text": (VOCAB, [("t", "h")], (), TypeError, "pairs of bytes"),
    "a merge of three": (VOCAB, [(b"t", b"h", b"e")], (), TypeError, "pairs of bytes"),
    "a special token twice": (BYTES, [], ["<s>", "<s>"], ValueError, "'<s>' twice"),
    "two special tokens with one id": (BYTES, [], {"<s>": 300, "<e>": 300}, ValueError, "same id"),
    "a special token with another's id": (BYTES, [], {"<s>": 97}, ValueError, "that is b'a' in vocab"),
    "an empty special token": (BYTES, [], [""], ValueError, "not empty"),
    "a special token of bytes": (BYTES, [], [b"<s>"], ValueError, "must be a string"),
    "one string for special tokens": (BYTES, [], "<s>", TypeError, "special_tokens"),
}


@pytest.mark.parametrize(("vocab", "merges", "special", "error", "sentence"), WRONG.values(), ids=WRONG)
def test_a_tokenizer_that_cannot_be_is_one_sentence(vocab, merges, special, error, sentence):
    with pytest.raises(error) as caught:
        Tokenizer(vocab, merges, special)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_without_a_token_is_left_out_or_unknown(tmp_path):
    vocab = {i: token for i, token in BYTES.items() if i not in (0xC3, 4)}
    assert Tokenizer(vocab, []).encode("a\x04b\u00e9") == [97, 98, 0xA9]
    unknown = Tokenizer(vocab, [], ["<unk>"], unk_token="<unk>")
    assert unknown.encode("a\x04b\u00e9") == [97, 256, 98, 256, 0xA9]
    assert Tokenizer.load(unknown.save(tmp_path)).encode("a\x04b\u00e9") == [97, 256, 98, 256, 0xA9]
    with pytest.raises(ValueError, match=r"^unk_token is '<unk>', but must be one of special_tokens$"):
        Tokenizer(vocab, [], unk_token="<unk>")


def test_any_mapping_will_do():
    assert Tokenizer(UserDict(VOCAB), tuple(map(list, MERGES)), UserDict(SPECIAL)).encode("<s>", "all") == [302]
