"""Which characters of a text each token stands for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data

import numllama as nl
from numllama.tokenizer.layout import Layout
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer
from numllama.tokenizer.spans import encode_spans
from numllama.tokenizer.train_bpe import train_on_text

BPE = train_on_text("the theme of the thesis is there, naïve café 🎉🎉 in the café " * 5, 300)
LEARNT = nl.Tokenizer(BPE.vocab, BPE.merges, ["<|a|>", "<|b|>"])
WORDS = st.sampled_from(["<|a|>", "<|b|>", " the", "theme", "é", "🎉", " ", "naïve", "日本"])
TEXTS = st.lists(WORDS | st.text(max_size=3)).map("".join)


def pieces():
    """A small vocabulary as SentencePiece has it."""
    names = [b"<0x%02X>" % byte for byte in range(256)] + ["▁".encode(), b"t", b"h", b"e", "▁t".encode(), b"he", "▁the".encode()]
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    merges = [(left.encode(), right.encode()) for left, right in pairs]
    return dict(enumerate(names)), merges, ["<|a|>", "<|b|>"]


PREFIXES = ("always", "unless spaced", "first unless spaced", "never")


@given(TEXTS)
def test_spans_of_bytes_are_what_the_tokens_decode_to(text):
    ids, spans = encode_spans(LEARNT, text, "all")
    assert ids.tolist() == LEARNT.encode(text, "all")
    whole, place = text.encode(), 0
    starts = np.cumsum([0] + [len(c.encode()) for c in text])          # where each character's bytes begin
    for i, (start, stop) in zip(ids.tolist(), spans.tolist(), strict=True):
        token = LEARNT.decode_bytes([i])
        assert whole[place : place + len(token)] == token
        assert starts[start] <= place < starts[start + 1]
        assert starts[stop - 1] < place + len(token) <= starts[stop]
        place += len(token)
    assert place == len(whole)


@pytest.mark.parametrize("prefix", PREFIXES)
@given(TEXTS)
def test_pieces_with_a_space_in_front_have_spans_too(prefix, text):
    tokenizer = SentencePieceTokenizer(*pieces(), prefix=prefix)
    ids, spans = encode_spans(tokenizer, text, "all")
    assert ids.tolist() == tokenizer.encode(text, "all")
    covered = set()
    for i, (start, stop) in zip(ids.tolist(), spans.tolist(), strict=True):
        token, seen = tokenizer._token[i], text[start:stop].encode()
        assert 0 <= start < stop <= len(text)
        assert token in (seen, b" " + seen, b" ") or token in [bytes([byte]) for byte in seen]
        covered |= set(range(start, stop))
    assert covered == set(range(len(text)))
    assert (np.diff(spans[:, 0]) >= 0).all()


def test_each_character_is_a_token_of_its_own():
    ids, spans = encode_spans(nl.CharTokenizer("abc"), "cab")
    assert ids.tolist() == [2, 0, 1]
    assert spans.tolist() == [[0, 1], [1, 2], [2, 3]]


@pytest.mark.parametrize("text", ["\ud800", "a\udfff the", "\udc80é\ud83d"])
def test_half_of_a_surrogate_pair_is_the_character_that_encode_makes_of_it(text):
    ids, spans = encode_spans(LEARNT, text)
    assert ids.tolist() == LEARNT.encode(text)
    assert spans[-1].tolist()[1] == len(text)


def test_a_special_token_that_is_not_allowed_is_refused():
    with pytest.raises(ValueError, match="the text holds the special token"):
        encode_spans(LEARNT, "a<|a|>")


def test_a_real_vocabulary():
    tokenizer = nl.Tokenizer.load(real_data("tok512.bin"))
    text = "Once upon a time"
    _, spans = encode_spans(tokenizer, text)
    assert [text[start:stop] for start, stop in spans.tolist()] == ["Once", " upon", " a", " time"]


def test_what_a_later_step_puts_in_front_of_words_belongs_to_their_first_characters():
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    words = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]}
    vocab, merges, _ = pieces()
    tokenizer = SentencePieceTokenizer.of_parts(vocab, merges, [], Layout({"pre_tokenizer": words}))
    ids, spans = encode_spans(tokenizer, "the  he é the")
    assert [tokenizer.name(i) for i in ids.tolist()] == ["▁the", "▁", "he", "▁", "<0xC3>", "<0xA9>", "▁the"]
    assert spans.tolist() == [[0, 3], [5, 6], [5, 7], [8, 9], [8, 9], [8, 9], [10, 13]]
