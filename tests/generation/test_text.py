"""complete and stream_text: whole characters, spaces where they belong, stop strings, and what they count."""

import codecs
import json
from types import SimpleNamespace

import pytest
from generation.models import random_model, saying
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data
from tokenizer.test_sentencepiece import MERGES, SPECIAL, VOCAB

import numllama as nl
from numllama.generation.config import checkpoint_settings
from numllama.generation.text import (
    TextDecoder,
    TextStream,
    decode_behind,
    decode_one_by_one,
    default_settings,
    opening,
    overlap,
    stream_text,
    until,
)
from numllama.tokenizer.post_processors import template
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer

BYTES = nl.Tokenizer({i: bytes([i]) for i in range(256)}, [])
WORDS = st.text("ab", min_size=1, max_size=4)


def pieces_of(text, cuts):
    bounds = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[bounds[i] : bounds[i + 1]] for i in range(len(bounds) - 1)]


# ------------------------------------------------------------------------------------------------ stop strings


@given(st.text("ab", max_size=20), st.lists(st.integers(0, 50), max_size=8), st.lists(WORDS, max_size=3))
def test_a_text_ends_before_the_first_stop_string_wherever_it_is_cut(text, cuts, words):
    complete = [n for n in range(len(text) + 1) if any(text[:n].endswith(word) for word in words)]
    if complete:
        longest = max(len(word) for word in words if text[: complete[0]].endswith(word))
        expected = text[: complete[0] - longest]
    else:
        expected = text
    passed = list(until(pieces_of(text, cuts), words))
    assert "".join(passed) == expected
    assert "" not in passed


def test_nothing_is_passed_on_that_may_be_the_beginning_of_a_stop_string():
    def letters():
        for letter in "one two three":
            seen.append(letter)
            yield letter

    seen, passed = [], []
    for piece in until(letters(), ["two!"]):
        passed.append((piece, "".join(seen)))
    assert passed[:5] == [("o", "o"), ("n", "on"), ("e", "one"), (" ", "one "), ("two ", "one two ")]


def test_after_a_stop_string_no_more_tokens_are_made():
    made = []

    def letters():
        for letter in "stop here":
            made.append(letter)
            yield letter

    assert "".join(until(letters(), ["p"])) == "sto"
    assert "".join(made) == "stop"


@given(st.text("ab", max_size=8), WORDS)
def test_overlap_by_its_definition(text, word):
    lengths = [n for n in range(len(word)) if text.endswith(word[:n])]
    assert overlap(text, word) == max(lengths)


# ------------------------------------------------------------------------------------------------ characters


def model_for(tokenizer, **changes):
    return random_model("float32", vocab_size=tokenizer.vocab_size, max_seq_len=128, **changes)


@given(st.integers(0, 2**32 - 1))
def test_pieces_are_whole_characters_and_together_the_text(seed):
    """A random model of bytes writes what is hardly ever UTF-8."""
    model = model_for(BYTES)
    pieces = list(stream_text(model, BYTES, "ü", 30, seed=seed))
    ids = nl.generate(model, BYTES.encode("ü"), 30, seed=seed)
    assert "".join(pieces) == BYTES.decode(ids)
    assert "" not in pieces


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    ids = iter("Grüße 中 🎉".encode())
    seen = []
    taken = (seen.append(i) or i for i in ids)
    for piece in decode_behind(BYTES, [], taken):
        assert len(bytes(seen).decode()) >= 1                              # what was taken so far is whole
        assert bytes(seen).decode().endswith(piece)


def test_a_character_that_the_prompt_began_is_finished():
    first, second = "ü".encode()
    assert "".join(decode_behind(BYTES, [65, first], [second, 66])) == "üB"


@pytest.mark.parametrize("prefix", ["always", "first unless spaced", "never"])
def test_only_the_first_word_of_a_text_loses_its_space(prefix):
    tokenizer = SentencePieceTokenizer(VOCAB, MERGES, SPECIAL, prefix=prefix)
    t = tokenizer.encode("b t", "all")[-1]
    assert tokenizer.vocab[t] == "▁t".encode()
    assert "".join(decode_behind(tokenizer, tokenizer.encode("ab"), [t, t])) == " t t"
    assert "".join(decode_behind(tokenizer, [], [t, t])) == (" t t" if prefix == "never" else "t t")


def places(data):
    """Of each byte, which character of the text it is part of: what Python's own decoder says."""
    bad = []
    codecs.register_error("noted", lambda error: (bad.append((error.start, error.end)), ("\ufffd", error.end))[1])
    data.decode("utf-8", "noted")
    found, at = [], 0
    for i, text in enumerate(data.decode("utf-8", "replace")):
        n = next((end - start for start, end in bad if start == at), len(text.encode()))
        found += [i] * n
        at += n
    return found


@given(st.lists(st.one_of(st.binary(max_size=3), st.sampled_from(["ü".encode(), b"\xf0\x9f", b"\x8e\x89", b"a"])), max_size=12))
def test_each_token_begins_where_its_first_byte_is(tokens):
    data = b"".join(tokens)
    decoder = TextDecoder(SimpleNamespace(decode_each=lambda ids: (tokens[i] for i in ids)))
    expected, at, text = places(data), 0, ""
    for i, token in enumerate(tokens):
        text += decoder.push(i)
        if token:
            assert decoder.offset == expected[at]
        at += len(token)
    assert text + decoder.end() == data.decode("utf-8", "replace")


def test_each_token_gives_a_piece_even_if_it_says_nothing():
    assert list(decode_one_by_one(BYTES, [], [65, 0xC3, 999, 0xBC, 66, 0xC3])) == ["A", "", "", "ü", "B", "", "\ufffd"]
    assert list(decode_one_by_one(nl.CharTokenizer("ab"), [], [0, 2, 1])) == ["a", "", "b", ""]


# ------------------------------------------------------------------------------------------------ special tokens

SPECIAL_BYTES = nl.Tokenizer({i: bytes([i]) for i in range(256)}, [], {"<s>": 256, "</s>": 257, "<|im_end|>": 300})


@pytest.mark.parametrize(("ids", "text"), [
    ([65, 310, 66], "AB"), ([310, 65, 311], "A"), ([319], ""), ([0xC3, 301, 0xBC, 67], "üC"),
])  # fmt: skip
def test_an_id_that_no_token_has_adds_nothing_to_the_text(ids, text):
    """A padded vocabulary, or a hole in it."""
    assert nl.complete(saying(*ids), SPECIAL_BYTES, "?", len(ids), temperature=0) == text
    assert list(stream_text(saying(*ids), SPECIAL_BYTES, "?", len(ids), temperature=0)) == list(text)


def test_special_tokens_are_left_out_unless_they_are_wanted():
    model = saying(65, 256, 66, 300, 67)
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, temperature=0) == "ABC"
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, temperature=0, skip_special_tokens=False) == "A<s>B<|im_end|>C"
    assert nl.complete(saying(0xC3, 256, 0xBC), SPECIAL_BYTES, "?", 3, temperature=0) == "ü"
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, temperature=0, skip_special_tokens=False, stop="B<|") == "A<s>"


@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_may_be_a_stop_word(skip):
    """As ``stop=["<|im_end|>"]`` of many a client."""
    model = saying(65, 256, 66, 300, 67)
    how = dict(temperature=0, skip_special_tokens=skip)
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, stop=["x", "<s>"], **how) == "A"
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, stop="<|im_end|>", **how) == ("AB" if skip else "A<s>B")
    sampling = nl.SamplingConfig(temperature=0)
    assert nl.complete(model, SPECIAL_BYTES, "?", 5, stop="<|im_end|>", sampling=sampling) == "AB"
    assert nl.complete(saying(65, vocab_size=258), SPECIAL_BYTES, "?", 2, stop="<|im_end|>", **how) == "AA"


@pytest.mark.parametrize("prompt", ["<s>hi?", "<s>?</s>?", "<|im_end|>?"])
def test_special_tokens_of_a_prompt_are_taken_as_such_or_as_text(prompt):
    model = saying(65)
    special = stream_text(model, SPECIAL_BYTES, prompt, 2, temperature=0)
    plain = stream_text(model, SPECIAL_BYTES, prompt, 2, temperature=0, special=False)
    assert special.prompt_tokens == len(SPECIAL_BYTES.encode(prompt, allowed_special="all")) < len(prompt)
    assert plain.prompt_tokens == len(prompt)
    assert "".join(special) == "".join(plain) == "AA"


@pytest.mark.parametrize(("file", "values"), [
    ("tokenizer_config.json", {"eos_token": "<|im_end|>"}),
    ("tokenizer_config.json", {"eos_token": {"content": "<|im_end|>", "special": True}}),
    ("special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}}),
])  # fmt: skip
def test_the_tokenizers_end_of_turn_ends_a_text_beside_the_checkpoints(tmp_path, file, values):
    SPECIAL_BYTES.save(tmp_path)
    (tmp_path / file).write_text(json.dumps(values))
    tokenizer, model = nl.Tokenizer.load(tmp_path), saying(65, 300, 66)
    model.generation_config = {"eos_token_id": 257}
    assert nl.complete(model, tokenizer, "?", 5, temperature=0) == "A"
    assert nl.complete(saying(65, 257, 66), tokenizer, "?", 5, temperature=0) == "AB" + "B" * 2
    assert nl.complete(model, tokenizer, "?", 3, temperature=0, stop_ids=()) == "AB"
    assert default_settings(model, tokenizer)["stop_ids"] == (257, 300)


@pytest.mark.parametrize("values", [{}, {"eos_token": None}, {"eos_token": "</nothing>"}, {"eos_token": {}}])
def test_a_tokenizer_that_names_no_end_of_its_own_adds_none(tmp_path, values):
    SPECIAL_BYTES.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(values))
    model = saying(65)
    model.generation_config = {"eos_token_id": 257}
    assert default_settings(model, nl.Tokenizer.load(tmp_path))["stop_ids"] == (257,)
    model.generation_config = {}
    small = saying(65, vocab_size=258)  # a model that cannot say <|im_end|>
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    assert default_settings(small, nl.Tokenizer.load(tmp_path))["stop_ids"] == ()


@pytest.mark.parametrize(("eos", "stop_ids"), [
    ([257, 128009], (257,)), (128009, ()), (-1, ()), ([257, -1], (257,)), (None, ()), ([], ()), (320, ()), (319, (319,)),
])  # fmt: skip
def test_an_end_that_the_model_cannot_say_never_comes(eos, stop_ids):
    model = saying(65)
    model.generation_config = {"eos_token_id": eos}
    assert model.stop_ids == stop_ids
    assert nl.complete(model, SPECIAL_BYTES, "?", 3, temperature=0) == "AAA"


# ------------------------------------------------------------------------------------------------ the checkpoint's settings


@pytest.mark.parametrize(("values", "settings"), [
    ({}, {}),
    ({"temperature": 0.6, "top_p": 0.9, "top_k": 20}, dict(temperature=0.6, top_p=0.9, top_k=20)),
    ({"do_sample": True}, dict(temperature=1.0)),
    ({"do_sample": True, "temperature": 0.3, "min_p": 0.1}, dict(temperature=0.3, min_p=0.1)),
    ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.3}, dict(temperature=0, repetition_penalty=1.3)),
    ({"temperature": None, "top_k": 0, "top_p": 1, "do_sample": None}, dict(top_k=0, top_p=1)),
    ({"max_length": 20, "_from_model_config": True, "transformers_version": "4.40"}, {}),
])  # fmt: skip
def test_a_checkpoints_settings_are_the_defaults_below_ones_own(values, settings):
    assert checkpoint_settings(values) == settings
    model = model_for(BYTES)
    plain = dict(temperature=1.0) | settings
    expected = nl.complete(model, BYTES, "A", 30, **plain, seed=3)
    other = nl.complete(model, BYTES, "A", 30, **plain | dict(temperature=1.5, top_k=7), seed=3)
    model.generation_config = values
    assert nl.complete(model, BYTES, "A", 30, seed=3) == expected
    assert nl.complete(model, BYTES, "A", 30, seed=3, temperature=1.5, top_k=7) == other
    assert nl.complete(model, BYTES, "A", 30, sampling=nl.SamplingConfig(**plain, seed=3)) == expected


@pytest.mark.parametrize("values", [
    {"temperature": -1}, {"top_p": 2}, {"top_k": 1.5}, {"repetition_penalty": 0}, {"do_sample": "yes"}, {"min_p": True},
])  # fmt: skip
def test_a_checkpoints_setting_that_cannot_be_is_named_with_its_file(values):
    model = model_for(BYTES)
    model.generation_config = values
    with pytest.raises(nl.CheckpointError, match=rf"generation_config.json: {next(iter(values))} is .*, but must be"):
        nl.complete(model, BYTES, "A")


# ------------------------------------------------------------------------------------------------ beginnings


def putting(before, after=()):
    """A tokenizer that puts bytes around a text."""
    tokenizer = nl.Tokenizer(BYTES.vocab, [])
    tokenizer.post_processor = template([(f"<{i}>", i) for i in before], [(f"<{i}>", i) for i in after])
    return tokenizer


def test_the_tokenizers_own_token_begins_the_text():
    model, tokenizer = model_for(BYTES), putting([7])
    assert opening(model, tokenizer) == [7]
    ids = nl.generate(model, [7, *b"To be"], 20, seed=1)
    assert nl.complete(model, tokenizer, "To be", 20, seed=1) == BYTES.decode(ids)
    assert nl.complete(model, tokenizer, "", 20, seed=1) == BYTES.decode(nl.generate(model, [7], 20, seed=1))


def test_what_belongs_behind_a_text_stands_behind_the_prompt():
    model = model_for(BYTES)
    ids = nl.generate(model, [7, 8, *b"To be", 9], 20, seed=1)
    assert nl.complete(model, putting([7, 8], [9]), "To be", 20, seed=1) == BYTES.decode(ids)


A = {"Sequence": {"id": "A", "type_id": 0}}
CLS = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
KNOWN = {"[CLS]": {"id": "[CLS]", "ids": [9], "tokens": ["[CLS]"]}}


@pytest.mark.parametrize(("post_processor", "begins"), [
    (None, []),
    ({"type": "ByteLevel", "add_prefix_space": False}, []),
    ({"type": "TemplateProcessing", "single": [A], "special_tokens": {}}, []),
    ({"type": "TemplateProcessing", "single": [A, CLS], "special_tokens": KNOWN}, []),
    ({"type": "TemplateProcessing", "single": [CLS, A], "special_tokens": KNOWN}, [9]),
    ({"type": "BertProcessing", "sep": ["[SEP]", 8], "cls": ["[CLS]", 9]}, [9]),
    ({"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [CLS, A], "special_tokens": KNOWN},
    ]}, [9]),
])  # fmt: skip
@pytest.mark.parametrize("named", [None, 7])
def test_what_begins_a_text_is_the_tokenizers_and_never_the_models(post_processor, begins, named):
    model = model_for(BYTES)
    model.generation_config = {"bos_token_id": named}
    tokenizer = nl.Tokenizer(BYTES.vocab, [])
    tokenizer.post_processor = post_processor
    assert opening(model, tokenizer) == begins


def test_ids_are_taken_as_they_are():
    model = model_for(BYTES)
    model.generation_config = {"bos_token_id": 7}
    pieces = stream_text(model, BYTES, [65, 66], 10, seed=0)
    assert "".join(pieces) == BYTES.decode(nl.generate(model, [65, 66], 10, seed=0))
    assert pieces.prompt_tokens == 2


def test_an_empty_prompt_needs_a_token_to_begin_with():
    with pytest.raises(ValueError, match="the prompt is empty, but at least one token is needed to begin with"):
        nl.complete(model_for(BYTES), BYTES, "")


# ------------------------------------------------------------------------------------------------ limits and counts


def test_by_default_the_models_stop_ids_end_a_text():
    model = model_for(BYTES)
    whole = nl.generate(model, [65], 60, seed=3)
    model.generation_config = {"eos_token_id": [whole[20], whole[11]]}
    first = min(whole.index(stop) for stop in model.stop_ids)
    assert nl.complete(model, BYTES, "A", 60, seed=3) == BYTES.decode(whole[:first])
    assert nl.complete(model, BYTES, "A", 60, seed=3, stop_ids=()) == BYTES.decode(whole)
    assert nl.complete(model, BYTES, "A", 60, sampling=nl.SamplingConfig(seed=3)) == BYTES.decode(whole)


def test_without_a_number_a_text_is_as_long_as_fits():
    model = model_for(BYTES)
    pieces = stream_text(model, BYTES, "A" * 100, seed=0)
    assert "".join(pieces)
    assert pieces.new_tokens == 29                                         # the last one is not looked at: 100 + 29 - 1 = 128
    pieces = stream_text(model, BYTES, "A" * 100, seed=0, window=50)
    assert "".join(pieces)
    assert pieces.new_tokens == 256


def test_a_prompt_that_is_too_long_is_named():
    with pytest.raises(ValueError, match="a prompt of 129 tokens and 1 new ones do not fit: max_seq_len is 128"):
        nl.complete(model_for(BYTES), BYTES, "A" * 129)


@pytest.mark.parametrize("stop", ["", ["a", ""], [3]])
def test_a_stop_string_that_is_none_is_named(stop):
    with pytest.raises(ValueError, match=r"stop is .*, but must be texts of at least one character"):
        nl.complete(model_for(BYTES), BYTES, "A", stop=stop)


def test_tokens_and_seconds_are_counted(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    pieces = TextStream(BYTES, [65], iter(b"abcd"), stop=(), prompt_tokens=9)
    assert "".join(pieces) == "abcd"
    assert (pieces.prompt_tokens, pieces.new_tokens, pieces.prompt_seconds, pieces.seconds) == (9, 4, 1, 3)
    assert pieces.tokens_per_second == 1.0


def test_a_text_of_one_token_has_no_speed():
    pieces = TextStream(BYTES, [], iter(b"a"), stop=(), prompt_tokens=1)
    assert "".join(pieces) == "a"
    assert pieces.tokens_per_second == 0


def test_characters_are_tokens_too():
    tokenizer = nl.CharTokenizer("ab\n")
    model = model_for(tokenizer)
    text = nl.complete(model, tokenizer, "ab", 30, seed=0)
    assert len(text) == 30
    assert set(text) <= set("ab\n")
    assert nl.complete(model, tokenizer, "ab", 30, seed=0, stop="\n") == text.partition("\n")[0]


# ------------------------------------------------------------------------------------------------ a real model


STORY = """\
Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. \
She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, \
"I want to play with your ball, but I can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. \
We can help you."""


@pytest.fixture(scope="module")
def stories():
    return nl.load(real_data("stories260K.bin")), nl.Tokenizer.load(real_data("tok512.bin"))


def test_stories_260k_tells_its_story(stories):
    """As run.c does: `run stories260K.bin -z tok512.bin -t 0.0`."""
    assert nl.complete(*stories, "", temperature=0) == STORY


def test_a_story_goes_on_wherever_it_was_cut(stories):
    model, tokenizer = stories
    for words in (3, 12, 30):
        prompt = " ".join(STORY.split(" ")[:words])
        assert prompt + nl.complete(model, tokenizer, prompt, 60, temperature=0) in STORY


def test_a_story_ends_at_a_stop_string(stories):
    assert nl.complete(*stories, "", temperature=0, stop=["Tom", "One day"]) == STORY[: STORY.index("One day")]


def test_a_story_comes_in_pieces_that_end_with_whole_words_or_parts_of_them(stories):
    pieces = list(stream_text(*stories, "", temperature=0))
    assert "".join(pieces) == STORY
    assert len(pieces) > 200


def test_the_post_processor_survives_saving(tmp_path):
    tokenizer = nl.Tokenizer(BYTES.vocab, [])
    tokenizer.post_processor = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["type"] == "ByteLevel"
    model = model_for(BYTES)
    model.generation_config = {"bos_token_id": 7}
    assert opening(model, nl.Tokenizer.load(tmp_path)) == []
