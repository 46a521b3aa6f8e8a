"""SentencePiece-style BPE: llama2.c's own algorithm on its own file, spaces, bytes to fall back on."""

import struct
import time
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from realdata import real_data

from numllama import Tokenizer
from numllama.tokenizer import bpe
from numllama.tokenizer.layout import PREFIXES
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer

NAMES = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
PIECES = ["▁", "a", "b", "t", "▁t", "ab", "▁▁", "▁a", "▁ab", "é", "aa"]
VOCAB = dict(enumerate([*NAMES, *(piece.encode() for piece in PIECES)]))
MERGES = [
    tuple(part.encode() for part in merge.split())
    for merge in ("▁ t", "a b", "▁ ▁", "▁ a", "▁ ab", "a a")
]  # fmt: skip
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}
TEXT = st.text(st.sampled_from("abt  é中▁\n<s>"), max_size=30)


def tokenizer(**how) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(VOCAB, MERGES, SPECIAL, **how)


def pieces(made, text, **how):
    return [made.vocab[i].decode() for i in made.encode(text, "all", **how)]


@pytest.fixture(scope="module")
def llama2c():
    """llama2.c's `encode`, as its run.c has it: the best-scored pair of all, until there is none."""
    content = real_data("tok512.bin").read_bytes()
    words, scores, at = [], [], 4
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        words.append(content[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    ids = {word: i for i, word in enumerate(words)}

    def encode(text):
        tokens = [ids[b" "]] if text else []
        for character in text:
            tokens += [ids[character.encode()]] if character.encode() in ids else [byte + 3 for byte in character.encode()]
        while True:
            best, best_id, best_at = -1e10, -1, -1
            for i in range(len(tokens) - 1):
                merged = ids.get(words[tokens[i]] + words[tokens[i + 1]])
                if merged is not None and scores[merged] > best:
                    best, best_id, best_at = scores[merged], merged, i
            if best_at == -1:
                return tokens
            tokens[best_at : best_at + 2] = [best_id]

    return encode


@given(text=st.one_of(st.text(max_size=40), st.text(st.sampled_from("aehnot  .,\n\"é中"), max_size=60)))
def test_ids_are_llama2cs_and_the_text_comes_back(llama2c, text):
    made = Tokenizer.load(real_data("tok512.bin"))
    assert made.encode(text, disallowed_special=()) == llama2c(text)
    assert made.decode(made.encode(text, disallowed_special=())) == text.replace("▁", " ")


def test_a_storys_ids_are_llama2cs(llama2c):
    made = Tokenizer.load(real_data("tok512.bin"))
    assert (made.vocab_size, made.special_tokens) == (512, SPECIAL)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.\n\n"
    assert made.encode(story * 5) == llama2c(story * 5)
    assert made.encode("Once upon a time") == [403, 407, 261, 378]


@given(text=TEXT)
def test_bytes_have_the_ids_of_their_text_and_come_back(text):
    made = tokenizer()
    assert made.encode_bytes(text.encode()) == made.encode(text, disallowed_special=())
    assert made.decode_bytes(made.encode_bytes(text.encode() + b"\xff")) == text.replace("▁", " ").encode() + b"\xff"


def test_a_character_that_is_no_piece_becomes_its_bytes():
    assert pieces(tokenizer(), "é中") == ["▁", "é", "<0xE4>", "<0xB8>", "<0xAD>"]


@pytest.mark.parametrize(
    ("prefix", "text", "expected"),
    [
        ("always", "ab", ["▁ab"]), ("always", " ab", ["▁▁", "ab"]), ("always", "ab<s>ab", ["▁ab", "<s>", "▁ab"]),
        ("unless spaced", "ab", ["▁ab"]), ("unless spaced", " ab", ["▁ab"]), ("unless spaced", "ab<s>ab", ["▁ab", "<s>", "▁ab"]),
        ("first unless spaced", "ab<s>ab", ["▁ab", "<s>", "ab"]), ("first unless spaced", "<s>ab", ["<s>", "ab"]),
        ("never", "ab", ["ab"]), ("never", " ab", ["▁ab"]), ("always", "", []),
    ],
)  # fmt: skip
def test_a_space_is_put_in_front_as_the_prefix_says(prefix, text, expected):
    assert pieces(tokenizer(prefix=prefix), text) == expected


@pytest.mark.parametrize(("one_space", "expected"), [(False, ["▁t", "▁▁", "b"]), (True, ["▁t", "▁", "▁", "b"])])
def test_two_spaces_are_one_piece_unless_pieces_have_one_space_only(one_space, expected):
    assert pieces(tokenizer(one_space=one_space), "t  b") == expected


@given(text=TEXT, prefix=st.sampled_from(PREFIXES), step=st.integers(1, 5), size=st.integers(1, 9))
def test_a_stream_in_any_parts_has_the_ids_of_the_whole(text, prefix, step, size):
    made = tokenizer(prefix=prefix)
    with patch.object(bpe, "CHUNK", size):
        ids = list(made.encode_iterable((text[i : i + step] for i in range(0, len(text), step)), "all"))
    assert ids == made.encode(text, "all")


def test_time_for_a_long_run_of_bytes_grows_with_its_length():
    made, seconds = tokenizer(), []
    for n in (20_000, 400_000):
        ids = made.encode("中" * n)
        begin = time.perf_counter()
        assert len(made.decode(ids)) == n
        seconds.append(time.perf_counter() - begin)
    assert seconds[1] < 100 * seconds[0]  # 20 times; 400 times if each byte copied those before it


def test_pieces_of_several_words_are_found():
    made = SentencePieceTokenizer(VOCAB | {300: "ab▁t".encode()}, [*MERGES, (b"ab", "▁t".encode())], SPECIAL)
    assert pieces(made, "aab t") == ["▁a", "ab▁t"]


def test_decoding_takes_the_first_space_away_and_streams_do_so_too():
    made = tokenizer()
    ids = made.encode("ab  t中")
    assert made.decode(ids) == "".join(made.decode_stream(ids)) == "ab  t中"
    assert tokenizer(prefix="never").decode(ids) == " ab  t中"


def test_the_steps_of_a_word_are_shown_as_text():
    assert [step.tokens for step in tokenizer().merges_of("ab")] == [[b" ", b"ab"], [b" ab"]]


def test_bytes_that_are_missing_and_a_wrong_prefix_are_refused():
    with pytest.raises(ValueError, match="no token <0x0A>"):
        SentencePieceTokenizer({i: name for i, name in VOCAB.items() if name != b"<0x0A>"}, MERGES)
    with pytest.raises(ValueError, match="prefix is 'sometimes', but must be one of always"):
        tokenizer(prefix="sometimes")
