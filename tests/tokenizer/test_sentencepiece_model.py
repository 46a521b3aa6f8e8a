"""SentencePiece's `.model`, written here byte by byte: what its fields mean, and what is refused by name."""

import json
import struct

import pytest

from numllama import Tokenizer
from numllama.errors import DataError
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer
from numllama.tokenizer.unigram import UnigramTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
FIRST = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
PIECES = [*FIRST, ("▁", -2.0, NORMAL), ("▁a", -1.5, NORMAL), ("a", -3.0, NORMAL), ("b", -3.0, NORMAL), ("ab", -5.0, NORMAL)]
ORDERED = [(piece, -float(i), kind) for i, (piece, _, kind) in enumerate(PIECES)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces=PIECES, trainer=(), normalizer=((4, 0),), denormalizer=()):
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != NORMAL else b""))
        for text, score, kind in pieces
    )
    for number, fields in ((2, trainer), (3, normalizer), (5, denormalizer)):
        data += field(number, b"".join(field(i, value) for i, value in fields))
    return data


def loaded(folder, *args, name="spiece.model", **more):
    (folder / name).write_bytes(model(*args, **more))
    return Tokenizer.load(folder / name)


def pieces(tokenizer, text):
    return [tokenizer.name(i) for i in tokenizer.encode(text, disallowed_special=())]


def test_the_best_sum_of_scores_wins(tmp_path):
    made = loaded(tmp_path)
    assert isinstance(made, UnigramTokenizer)
    assert pieces(made, "ab") == ["▁a", "b"]          # -1.5 - 3, which is more than -2 - 5
    assert pieces(made, "ab ab") == ["▁a", "b", "▁a", "b"]
    assert pieces(made, "bab") == ["▁", "b", "ab"]    # -5, which is more than -3 - 3
    assert made.special_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert made.decode(made.encode("ab  bab")) == "ab  bab"


def test_unknown_characters_in_a_row_are_one_or_their_bytes(tmp_path):
    assert pieces(loaded(tmp_path), "xya éb") == ["▁", "<unk>", "a", "▁", "<unk>", "b"]
    made = loaded(tmp_path, [*PIECES, *BYTES], [(35, 1)])
    assert pieces(made, "éb") == ["▁", "<0xC3>", "<0xA9>", "b"]
    assert made.decode(made.encode("é中 b")) == "é中 b"
    assert made.decode_bytes(made.encode_bytes(b"a\xff")) == b"a\xff"


def test_a_text_does_not_become_a_special_token(tmp_path):
    assert pieces(loaded(tmp_path), "<s>") == ["▁", "<unk>"]
    with pytest.raises(ValueError, match="holds the special token '<s>'"):
        loaded(tmp_path).encode("<s>")


@pytest.mark.parametrize(("normalizer", "text", "expected"), [
    ([], "  a   b ", ["▁a", "▁", "b"]), ([(3, 0)], " a", ["a"]), ([(4, 0)], " a", ["▁", "▁a"]), ([(3, 0), (4, 0)], " a", ["▁a"]),
    ([], "  ", []), ([(4, 0)], "", []),
])  # fmt: skip
def test_spaces_are_those_of_the_normalizer(tmp_path, normalizer, text, expected):
    assert pieces(loaded(tmp_path, normalizer=normalizer), text) == expected


def test_bpe_merges_the_pair_with_the_best_score(tmp_path):
    made = loaded(tmp_path, ORDERED, [(3, 2)])
    assert isinstance(made, SentencePieceTokenizer)
    assert not isinstance(made, UnigramTokenizer)
    assert pieces(made, "ab bab") == ["▁a", "b", "▁", "b", "ab"]


def test_runs_of_spaces_may_have_one_score_as_in_llama_2(tmp_path):
    runs = [("▁" * n, -1e9, NORMAL) for n in (2, 4, 8, 5, 3)]
    made = loaded(tmp_path, [*ORDERED, *runs], [(3, 2)], [(3, 0), (4, 0)])
    for spaces, found in {2: ["▁▁"], 5: ["▁" * 5], 7: ["▁" * 5, "▁▁"], 13: ["▁" * 8, "▁" * 5]}.items():
        assert pieces(made, " " * spaces) == found                     # from the left, one space after another
        assert pieces(made, " " * spaces + " ab") == [*found, "▁a", "b"]


def test_user_defined_pieces_of_bpe_are_found_in_every_text(tmp_path):
    made = loaded(tmp_path, [*ORDERED, ("<x>", 0.0, USER_DEFINED)], [(3, 2)], [(3, 0), (4, 0)])
    assert pieces(made, "a<x>b") == ["a", "<x>", "b"]
    assert "<x>" not in made.special_tokens


def test_the_folder_says_what_stands_around_a_text(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}', encoding="utf-8")
    loaded(tmp_path, name="tokenizer.model")
    assert Tokenizer.load(tmp_path).wrap([5]) == [1, 5]


def test_what_is_saved_gives_the_same_ids(tmp_path):
    for made in (loaded(tmp_path), loaded(tmp_path, ORDERED, [(3, 2)])):
        again = Tokenizer.load(made.save(tmp_path / "again"))
        assert type(again) is type(made)
        for text in ("ab bab", "xya éb", "  a "):
            assert again.encode(text) == made.encode(text)
    values = json.loads((tmp_path / "again/tokenizer.json").read_text(encoding="utf-8"))
    assert values["model"]["unk_token"] == "<unk>"


@pytest.mark.parametrize("case", {
    "words": ((PIECES, [(3, 3)]), "its model_type is word, but only unigram and bpe are supported"),
    "suffixes": ((PIECES, [(24, 1)]), "it has treat_whitespace_as_suffix"),
    "spaces as they are": ((PIECES, (), [(5, 0)]), "it has escape_whitespaces off"),
    "texts that change": ((PIECES, (), (), [(2, bytes(8))]), "it changes texts after decoding"),
    "unused pieces": (([*PIECES, ("x", 0.0, UNUSED)],), "its pieces include unused ones"),
    "user-defined pieces": (([*PIECES, ("x", 0.0, USER_DEFINED)],), "it has user-defined pieces, which are supported with BPE only"),  # noqa: E501
    "user-defined pieces and spaces": (([*ORDERED, ("x", 0.0, USER_DEFINED)], [(3, 2)]), "changes texts in other ways"),
    "a piece twice": (([*PIECES, ("a", -1.0, NORMAL)],), "its vocab holds 'a' twice"),
    "scores twice": (([*ORDERED, ("aa", -7.0, NORMAL)], [(3, 2)]), "its pieces 'ab' and 'aa' have the same score"),
    "no number": (([*PIECES, ("x", float("nan"), NORMAL)],), "its piece 'x' has the score nan"),
    "another kind": (([*PIECES, ("x", 0.0, 9)],), "its piece 'x' has the score 0.0 and the kind 9"),
    "rules that are cut short": ((PIECES, (), [(2, bytes(3))]), "its Precompiled: precompiled_charsmap has 3 bytes"),
    "a number for a text": ((PIECES, (), [(2, 3)]), "it is no SentencePiece model: its field 2 is 3"),
}.items(), ids=lambda case: case[0])  # fmt: skip
def test_what_would_give_other_ids_is_refused_by_name(tmp_path, case):
    with pytest.raises(DataError) as caught:
        loaded(tmp_path, *case[1][0])
    assert case[1][1] in str(caught.value)
    assert str(tmp_path / "spiece.model") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pattern_cannot_be_given(tmp_path):
    (tmp_path / "spiece.model").write_bytes(model())
    with pytest.raises(DataError, match="it defines its own pattern and special tokens, so no pattern can be given"):
        Tokenizer.load(tmp_path / "spiece.model", pattern="gpt2")


def test_a_file_of_xlm_r_whose_ids_are_others_is_refused(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model())
    with pytest.raises(DataError, match=r"sentencepiece\.bpe\.model is .* number the pieces otherwise: load a tokenizer\.json$"):
        Tokenizer.load(tmp_path)
