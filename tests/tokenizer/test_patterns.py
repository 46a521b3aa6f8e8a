"""Splitting and cutting: the split is the pattern's own, and no cut changes it."""

import sys

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from numllama.tokenizer.cutting import SpecialTokens, next_cut
from numllama.tokenizer.patterns import PATTERNS, Splitter

SPLITTERS = {name: Splitter(name) for name in PATTERNS}
ASCII = st.text(st.sampled_from("aZs'tlrevdmST 0129\n\r\t\x0b\x1c\x85.,!_-"), max_size=30)
MIXED = st.text(st.sampled_from("aZs'tl 12\n\r.,é中ſ’\u0301\u00a0\u3000\u2028٣½ _-<|e>"), max_size=30)
ANY = st.one_of(ASCII, MIXED, st.text(max_size=30))
NAMES = st.sampled_from(sorted(PATTERNS))
SPECIAL = SpecialTokens(["<|e|>", "<|e|>a", "a b"])


@settings(max_examples=300)
@given(text=ANY, name=NAMES)
@example(text="a \x1c b\x1f", name="gpt2")
def test_a_text_is_split_as_its_pattern_says(text, name):
    assert SPLITTERS[name].split(text) == regex.findall(PATTERNS[name], text)


@settings(max_examples=300)
@given(text=ANY, name=NAMES)
@example(text="a   b", name="gpt2")
def test_no_place_where_a_text_may_be_cut_changes_the_split(text, name):
    splitter = SPLITTERS[name]
    for start in range(len(text)):
        if cut := next_cut(text, start, 1, splitter._cut):
            assert splitter.split(text[:cut]) + splitter.split(text[cut:]) == splitter.split(text)


@given(text=ANY, name=NAMES, size=st.integers(1, 9), step=st.integers(1, 9))
def test_a_stream_in_any_parts_is_split_as_the_whole(text, name, size, step):
    chunks = list(SPLITTERS[name].chunks([text[i : i + step] for i in range(0, len(text), step)], size=size))
    assert "".join(chunks) == text
    assert [piece for chunk in chunks for piece in SPLITTERS[name].split(chunk)] == SPLITTERS[name].split(text)
    assert all(len(chunk) >= size for chunk in chunks[:-1])


@given(
    parts=st.lists(st.sampled_from(["<|e|>", "<|e|>a", "<|e", "a b", "a ", "b", " ", "x", "|>"]), max_size=20),
    size=st.integers(1, 9),
    step=st.integers(1, 9),
    pattern=st.sampled_from(["gpt2", "llama3", r"[a-z]+|."]),
)
def test_special_tokens_are_never_cut_through(parts, size, step, pattern):
    text, splitter = "".join(parts), Splitter(pattern)
    chunks = list(splitter.chunks([text[i : i + step] for i in range(0, len(text), step)], SPECIAL, size))
    assert "".join(chunks) == text
    assert [chunk[a:b] for chunk in chunks for a, b in SPECIAL.spans(chunk)] == [text[a:b] for a, b in SPECIAL.spans(text)]


def test_cutting_a_long_text_looks_for_special_tokens_only_where_it_cuts():
    looked_at = 0

    class Counted(SpecialTokens):
        def spans(self, text, start=0, end=sys.maxsize):
            nonlocal looked_at
            looked_at += min(end, len(text)) - start
            return super().spans(text, start, end)

    text = "the cat and a bird " * 5000
    assert "".join(SPLITTERS["gpt2"].chunks([text], Counted(["<|e|>"]), 100)) == text
    assert looked_at < 2 * len(text)


@pytest.mark.parametrize("text", ["The cat. ", "a,b;", "天地玄黄，宇宙洪荒。", "1 2 3\n", "x\ny\n"])
def test_natural_text_is_cut_into_pieces_of_about_the_size_that_is_asked_for(text):
    assert max(len(chunk) for chunk in SPLITTERS["gpt2"].chunks([text * 1000], size=100)) < 130


def test_the_longest_special_token_is_found_first():
    assert [SPECIAL.first(text) for text in ("x<|e|>ab", "x<|e|>b", "x")] == ["<|e|>a", "<|e|>", None]


@given(text=st.text(st.sampled_from("ab1 \n"), max_size=20))
def test_what_a_pattern_does_not_match_is_a_piece_too(text):
    pieces = Splitter(r"(a)(b)?").split(text)
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece.startswith("a")] == [found.group() for found in regex.finditer("ab?", text)]
    assert "" not in pieces


def test_a_text_with_a_pattern_of_its_own_is_cut_at_special_tokens_only():
    text = "x y z " * 9 + "<|e|>" + "x y " * 9
    assert list(Splitter(r"\w+ \w+|.").chunks([text], SPECIAL, 4)) == ["x y z " * 9, "<|e|>" + "x y " * 9]
    assert list(Splitter(r"\w+ \w+|.").chunks(["x y z " * 9], None, 4)) == ["x y z " * 9]


@pytest.mark.parametrize(("pattern", "error"), [("(", ValueError), ("[a", ValueError), (3, TypeError)])
def test_a_wrong_pattern_is_one_sentence(pattern, error):
    with pytest.raises(error, match=r"^pattern (is|must be) ") as caught:
        Splitter(pattern)
    assert "\n" not in str(caught.value)
