"""Tokenizers on disk: every format is recognised and gives the same ids, and what is damaged is one sentence."""

import base64
import hashlib
import json
import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data
from tokenizer.test_bpe import MERGES, SPECIAL, VOCAB
from tokenizer.test_sentencepiece import tokenizer as sentencepiece

from numllama import CharTokenizer, Tokenizer
from numllama.errors import DataError
from numllama.tokenizer import formats
from numllama.tokenizer.formats import CL100K_SPECIAL, LLAMA3_SPECIAL
from numllama.tokenizer.layout import PREFIXES
from numllama.tokenizer.patterns import PATTERNS
from numllama.tokenizer.recovered_merges import merges_of_ranks

TEXT = "the cat\nan aaaa <s>é中1234<|end|>, the  aa"


def assert_same(one, other):
    assert (one.vocab, one.merges, one.special_tokens) == (other.vocab, other.merges, other.special_tokens)
    assert (one.pattern, one.ignore_merges, type(one)) == (other.pattern, other.ignore_merges, type(other))
    assert one.encode(TEXT, disallowed_special=()) == other.encode(TEXT, disallowed_special=())


# ------------------------------------------------------------------------------------------------ tokenizer.json


@pytest.mark.parametrize("ignore_merges", [False, True])
@pytest.mark.parametrize("pattern", [*PATTERNS, r"[a-z]+|."])
def test_a_saved_tokenizer_loads_as_the_same_one(tmp_path, pattern, ignore_merges):
    made = Tokenizer(VOCAB, MERGES, SPECIAL, pattern=pattern, ignore_merges=ignore_merges)
    path = made.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "tokenizer.json"
    assert_same(Tokenizer.load(path), made)
    assert_same(Tokenizer.load(path.parent), made)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


@pytest.mark.parametrize("one_space", [False, True])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_saved_sentencepiece_tokenizer_loads_as_the_same_one(tmp_path, prefix, one_space):
    made = sentencepiece(prefix=prefix, one_space=one_space)
    loaded = Tokenizer.load(made.save(tmp_path))
    assert_same(loaded, made)
    assert (loaded.prefix, loaded.one_space) == (prefix, one_space)


@given(tokens=st.lists(st.text(min_size=2).filter(lambda text: text.encode() not in VOCAB.values()), unique=True, max_size=5))
def test_any_text_may_be_a_special_token(tmp_path_factory, tokens):
    made = Tokenizer(VOCAB, MERGES, {token: 300 + i for i, token in enumerate(tokens)})
    assert_same(Tokenizer.load(made.save(tmp_path_factory.mktemp("tokenizer"))), made)


def test_the_post_processor_of_a_file_is_kept(tmp_path):
    path = Tokenizer(VOCAB, MERGES, SPECIAL).save(tmp_path)
    values = json.loads(path.read_text(encoding="utf-8")) | {"post_processor": {"type": "ByteLevel", "trim_offsets": True}}
    path.write_text(json.dumps(values), encoding="utf-8")
    again = Tokenizer.load(path).save(tmp_path / "again")
    assert json.loads(again.read_text(encoding="utf-8"))["post_processor"] == values["post_processor"]


@pytest.mark.parametrize("token", ["a", "the", "Ġthe"])  # the last is how " the" is written
def test_a_special_token_that_is_an_ordinary_one_too_cannot_be_saved(tmp_path, token):
    with pytest.raises(ValueError, match=f"cannot hold '{token}' as a special token and as an ordinary one"):
        Tokenizer(VOCAB, MERGES, {token: 300}).save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("as_list", [False, True])
def test_merges_may_be_strings_or_pairs(tmp_path, as_list):
    made = Tokenizer(VOCAB, MERGES)
    values = json.loads(made.save(tmp_path).read_text(encoding="utf-8"))
    assert "t h" in values["model"]["merges"]
    values["model"]["merges"] = [merge.split(" ") if as_list else merge for merge in values["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert_same(Tokenizer.load(tmp_path), made)


def test_a_tokenizer_of_characters_is_opened_by_the_same_call(tmp_path):
    CharTokenizer("abc").save(tmp_path)
    assert Tokenizer.load(tmp_path).characters == Tokenizer.load(tmp_path / "tokenizer.json").characters == "abc"


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    old = Tokenizer(VOCAB, MERGES).save(tmp_path).read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match=r"could not be written: No space left on device$"):
        Tokenizer(VOCAB, MERGES, SPECIAL).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"tokenizer.json": old}


def test_a_chat_template_goes_along(tmp_path):
    pytest.importorskip("jinja2")
    came, went = tmp_path / "came", tmp_path / "went"
    Tokenizer(VOCAB, MERGES, SPECIAL).save(came)
    (came / "tokenizer_config.json").write_text('{"bos_token": "<s>"}', encoding="utf-8")
    (came / "chat_template.jinja").write_text("{{ bos_token }}é{{ messages[0].content }}", encoding="utf-8")
    made = Tokenizer.load(came)
    assert {path.name for path in came.iterdir()} == {path.name for path in made.save(went).parent.iterdir()}
    talk = [{"role": "user", "content": "the cat"}]
    for saved in (Tokenizer.load(went), Tokenizer.load(made.save(came))):
        assert saved.apply_chat_template(talk, tokenize=False) == "<s>éthe cat"
        assert saved.apply_chat_template(talk) == made.apply_chat_template(talk)


# ------------------------------------------------------------------------------------------------ the others


@pytest.fixture(scope="module")
def gpt2():
    return Tokenizer.load(real_data("gpt2_vocab.json"))


def test_gpt2s_two_files_are_found_by_either_name_and_in_a_folder(gpt2, tmp_path):
    assert (gpt2.vocab_size, len(gpt2.merges), gpt2.special_tokens) == (50_257, 50_000, {"<|endoftext|>": 50_256})
    assert_same(Tokenizer.load(real_data("gpt2_merges.txt")), gpt2)
    shutil.copy(real_data("gpt2_vocab.json"), tmp_path / "vocab.json")
    text = real_data("gpt2_merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + text, encoding="utf-8", newline="\r\n")
    assert_same(Tokenizer.load(tmp_path), gpt2)


def test_a_rank_file_gives_back_the_merges(gpt2, tmp_path):
    lines = [f"{base64.b64encode(token).decode()} {i}\n" for i, token in gpt2.vocab.items() if i != 50_256]
    (tmp_path / "gpt2.tiktoken").write_text("".join(lines))
    loaded = Tokenizer.load(tmp_path / "gpt2.tiktoken")
    assert loaded.ignore_merges
    assert (loaded.pattern, loaded.special_tokens) == (gpt2.pattern, gpt2.special_tokens)
    same = loaded.merges == gpt2.merges and loaded.vocab == gpt2.vocab
    assert same


def ranks(path, tokens):
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens)))
    return path


@pytest.mark.parametrize("how", [{}, {"pattern": "gpt2"}, {"special_tokens": {}}, {"special_tokens": {"<s>": 900}}])
def test_pattern_and_special_tokens_of_a_rank_file_that_is_not_well_known_are_asked_for(tmp_path, how):
    for tokens in (VOCAB.values(), [*VOCAB.values(), *(b"%08d" % i for i in range(50_256 - len(VOCAB)))]):  # as many as GPT-2 has
        path = ranks(tmp_path / "tokenizer.model", tokens)
        for place in (path, tmp_path):
            with pytest.raises(DataError, match="a rank file, which says neither how to split a text nor which special"):
                Tokenizer.load(place, **how)


@pytest.mark.parametrize("special", [{"<s>": 900}, {}, ["<s>", "</s>"]])
@pytest.mark.parametrize("pattern", ["gpt2", "llama3", r"[a-z]+|.", r"\p{N}{1,2}+|\D+"])
def test_they_are_taken_as_they_are_given(tmp_path, pattern, special):
    path = ranks(tmp_path / "tokenizer.model", VOCAB.values())
    loaded = Tokenizer.load(path, special_tokens=special, pattern=pattern)
    made = Tokenizer(VOCAB, MERGES, special, pattern=pattern, ignore_merges=True)
    assert_same(loaded, made)
    assert loaded.before == loaded.after == []


def test_llama_3s_special_tokens_are_known_by_the_files_checksum(tmp_path, monkeypatch):
    names = [bytes([i]) for i in range(256)] + [b"%08d" % i for i in range(128_000 - 256)]
    path = ranks(tmp_path / "tokenizer.model", names)
    assert "llama3" in formats.KNOWN_RANKS.values()
    lines = path.read_bytes()
    monkeypatch.setitem(formats.KNOWN_RANKS, hashlib.sha256(lines).hexdigest(), "llama3")
    path.write_bytes(b"".join(reversed(lines.splitlines(keepends=True))).replace(b"\n", b"\r\n"))  # the same ranks all the same
    loaded = Tokenizer.load(path)
    assert (loaded.before, loaded.wrap([5])) == ([128_000], [128_000, 5])
    special = loaded.special_tokens
    assert (special["<|begin_of_text|>"], special["<|end_of_text|>"], special["<|eot_id|>"]) == (128_000, 128_001, 128_009)
    assert (special["<|start_header_id|>"], special["<|end_header_id|>"]) == (128_006, 128_007)
    assert (loaded.vocab_size, len(special), len(set(LLAMA3_SPECIAL))) == (128_256, 256, 256)
    assert loaded.encode("a<|eot_id|>", {"<|eot_id|>"}) == [97, 128_009]
    assert max(CL100K_SPECIAL.values()) == 100_276


def test_a_token_that_no_merges_lead_to_is_only_looked_up(tmp_path):
    tokens = [*VOCAB.values(), b"cats"]
    loaded = Tokenizer.load(ranks(tmp_path / "x.tiktoken", tokens), pattern="gpt2", special_tokens={})
    assert loaded.encode("cats") == [len(tokens) - 1]
    assert loaded.encode("catsx") == list(b"catsx")
    assert loaded.merges == MERGES


def test_the_merges_behind_ranks_are_those_that_the_tokens_own_bytes_go_through():
    ranks = {bytes([i]): i for i in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258, b"xyz": 259}
    merges = merges_of_ranks(ranks, lambda token: [bytes([byte]) for byte in token])
    assert merges == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]


# ------------------------------------------------------------------------------------------------ what cannot be read


def changed(**changes):
    """The tokenizer.json of a small tokenizer with some of its values changed; a path is written with dots."""

    def write(folder):
        path = Tokenizer(VOCAB, MERGES, SPECIAL).save(folder)
        values = json.loads(path.read_text(encoding="utf-8"))
        for name, value in changes.items():
            *outer, last = name.split("__")
            inner = values
            for key in outer:
                inner = inner[key]
            inner[last] = value
        path.write_text(json.dumps(values), encoding="utf-8")
        return path

    return write


def content(name, data):
    def write(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "Split"}, BYTE_LEVEL]}
UNREADABLE = {
    "empty": content("tokenizer.json", b""),
    "cut short": content("tokenizer.json", b'{"model": {"type": "BPE", "voc'),
    "not UTF-8": content("tokenizer.json", b'{"model": "\xff"}'),
    "a list": content("tokenizer.json", b"[1, 2]"),
    "nested without end": content("tokenizer.json", b"[" * 100_000),
    "no model": content("tokenizer.json", b'{"version": "1.0"}'),
    "another model": changed(model__type="WordPiece"),
    "a list for a vocabulary": changed(model__vocab=[]),
    "no merges": changed(model__merges=None),
    "a merge of one": changed(model__merges=["ab"]),
    "a merge of unknown tokens": changed(model__merges=["qq zz"]),
    "an id that is text": changed(model__vocab={"a": "97"}),
    "a token outside the alphabet": changed(model__vocab={"中": 0}),
    "a byte missing": changed(model__vocab={"a": 0}, model__merges=[]),
    "another pre-tokenizer": changed(pre_tokenizer={"type": "UnicodeScripts"}),
    "another normalizer": changed(normalizer={"type": "Precompiled"}),
    "another decoder": changed(decoder={"type": "CTC"}),
    "another post-processor": changed(post_processor={"type": "Padding"}),
    "dropout": changed(model__dropout=0.1),
    "an added token without content": changed(added_tokens=[{"id": 3}]),
    "a text for added tokens": changed(added_tokens="<s>"),
    "a split without a pattern": changed(pre_tokenizer=SPLIT),
    "a damaged tokenizer of characters": content("tokenizer.json", b'{"characters": 3}'),
    "an empty rank file": content("x.tiktoken", b""),
    "a rank file without ranks": content("x.tiktoken", b"YQ==\n"),
    "a rank file that is not base64": content("x.tiktoken", b"!!! 0\n"),
    "a rank file without bytes": content("x.tiktoken", b"YQ== 0\n"),
    "a SentencePiece model that is cut short": content("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18"),
    "a SentencePiece model without pieces": content("tokenizer.model", b"\n"),
    "a binary file": content("x.model", bytes(range(256))),
    "an empty .bin": content("tok.bin", b""),
    "a .bin of something else": content("tok.bin", bytes(1000)),
    "merges without a vocabulary": content("merges.txt", b"a b\n"),
    "a vocabulary without merges": content("vocab.json", b'{"a": 0}'),
    "a folder without a tokenizer": lambda folder: folder,
    "nothing there": lambda folder: folder / "tokenizer.json",
}


@pytest.mark.parametrize("write", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_one_sentence_that_names_the_file(tmp_path, write):
    path = write(tmp_path)
    with pytest.raises(DataError) as error:
        Tokenizer.load(path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_tok512_that_is_cut_short_is_noticed(tmp_path):
    content = real_data("tok512.bin").read_bytes()
    for n in (3, 100, len(content) - 1):
        (tmp_path / "tok.bin").write_bytes(content[:n])
        with pytest.raises(DataError, match=r"tok\.bin"):
            Tokenizer.load(tmp_path / "tok.bin")
