"""tokenizer.json of well-known models: the ids and the texts of `tokenizers`, here and after saving."""

import json
import random
import unicodedata
from unittest.mock import patch

import pytest

from numllama import Tokenizer
from numllama.tokenizer import bpe

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.parity

from parity.tokenizer.layouts import LAYOUTS, TEXT  # noqa: E402

STRINGS = 2000
LIKELY = [
    *"aeinost 's\n\t.,é中1", "the ", " and", "  ", "   ", '\n\n', '\r\n', "don't ", "I'LL", "123", "1234567", "½",
    "٣", '\u2167', "²", "ſ", '\xa0', '\u3000', '\u2028', '\x85', 'e\u0301', '\u0301', '\uac01', '\uac01', '\ufb01',
    "Å", "Å", "नमस्ते", '\U0001f44d\U0001f3fd', '\U0001f600', '\x04', '\x7f', '\ua66e', '\u2581', "▁the", "COVID",
    " COVID ", "COVID19", "hello", "hello!", "xhello", "naïve", "õ", "÷", "ȷ", "İ", "Σς", "__init__", "-->", "''",
    '\x00',
]  # fmt: skip


def draw(rng, special):
    """A string: of likely parts, special tokens, words and any characters."""
    parts = []
    for _ in range(rng.randint(0, 14)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(rng.choice(LIKELY))
        elif kind < 0.65:
            parts.append(rng.choice(["", " ", "  ", "\n", "a"]) + rng.choice(special) + rng.choice(["", " ", " \n", "b"]))
        elif kind < 0.9:
            at = rng.randrange(len(TEXT))
            parts.append(TEXT[at : at + rng.randint(1, 20)])
        else:
            parts.append(known(chr(rng.choice([rng.randrange(0x3000), rng.randrange(0xD800), rng.randrange(0x10000, 0x12000)]))))
    return "".join(parts)


def known(character):
    """What Unicode has not assigned yet is assigned in the newer of two libraries."""
    return "?" if unicodedata.category(character) == "Cn" else character


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS)
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout")
    values = request.param()
    (folder / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    rng = random.Random(0)
    special = [token["content"] for token in values["added_tokens"]]
    strings = ["", " ", "▁", *special, *(draw(rng, special) for _ in range(STRINGS))]
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.load(folder), strings


def test_ids_and_texts(made):
    theirs, mine, strings = made
    for text in strings:
        ids = theirs.encode(text).ids
        assert mine.wrap(mine.encode(text, allowed_special="all")) == ids, text
        assert mine.encode(text, allowed_special="all") == theirs.encode(text, add_special_tokens=False).ids
        assert mine.decode(ids) == theirs.decode(ids, skip_special_tokens=False), text


def test_texts_of_any_ids(made):
    theirs, mine, _ = made
    rng = random.Random(1)
    bytes_ = [i for i in range(theirs.get_vocab_size()) if theirs.id_to_token(i).startswith("<0x")] or [0]
    for _ in range(STRINGS):
        ids = [rng.choice([rng.randrange(theirs.get_vocab_size() + 20), rng.choice(bytes_)]) for _ in range(rng.randint(0, 12))]
        text = theirs.decode(ids, skip_special_tokens=False)
        assert mine.decode(ids) == text
        assert "".join(mine.decode_stream(iter(ids))) == text
        assert b"".join(mine.decode_each(ids)) == mine.decode_bytes(ids)


def test_what_is_saved_says_the_same_to_others(made, tmp_path):
    theirs, mine, strings = made
    path = mine.save(tmp_path)
    again, mine_again = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    assert json.loads(again.to_str()) == json.loads(theirs.to_str())
    for text in strings[:100]:
        ids = theirs.encode(text).ids
        assert again.encode(text).ids == mine_again.wrap(mine_again.encode(text, allowed_special="all")) == ids
        assert again.decode(ids) == theirs.decode(ids)


def test_a_long_text_in_parts_has_the_ids_of_the_whole(made):
    _, mine, strings = made
    rng = random.Random(2)
    for _ in range(30):
        text = "".join(rng.choice(strings) for _ in range(8))
        step = rng.randint(1, 20)
        with patch.object(bpe, "CHUNK", rng.randint(1, 30)):
            parts = list(mine.encode_iterable((text[i : i + step] for i in range(0, len(text), step)), "all"))
        assert parts == mine.encode(text, "all"), text
