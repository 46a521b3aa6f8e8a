"""Each kind of normalizer, pre-tokenizer and decoder, and sequences of them, does what it does in `tokenizers`."""

import json
import random

import pytest

from numllama.tokenizer.decoders import CHARACTER_OF, Decoder
from numllama.tokenizer.decoders import TABLE as DECODERS
from numllama.tokenizer.normalizers import TABLE as NORMALIZERS
from numllama.tokenizer.normalizers import Normalizer
from numllama.tokenizer.patterns import BEHAVIORS
from numllama.tokenizer.pre_tokenizers import TABLE as PRE_TOKENIZERS
from numllama.tokenizer.pre_tokenizers import PreTokenizer

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("sentencepiece")
pytestmark = pytest.mark.parity

from parity.tokenizer.layouts import LLAMA3, model, normalizers, sequence, split  # noqa: E402
from parity.tokenizer.more_layouts import precompiled  # noqa: E402
from parity.tokenizer.strings import strings  # noqa: E402

META = {"type": "Metaspace", "replacement": "▁"}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
UNSPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def in_tokenizers(name, values):
    values = {"version": "1.0", "model": model({"a": 0}, []), "added_tokens": [], name: values}
    return getattr(tokenizers.Tokenizer.from_str(json.dumps(values)), name)


SPLITS = [
    *(split(LLAMA3, behavior, invert) for behavior in BEHAVIORS for invert in (False, True)),
    *(split({"String": text}, behavior) for behavior in BEHAVIORS for text in (" ", "the", ".", "▁")),
    BYTES, BYTES | {"add_prefix_space": True}, BYTES | {"use_regex": False}, BYTES | {"add_prefix_space": True, "use_regex": False},  # noqa: E501
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
    {"type": "Digits", "individual_digits": True}, {"type": "Digits", "individual_digits": False},
    *({"type": "Punctuation", "behavior": behavior} for behavior in BEHAVIORS), {"type": "Punctuation"},
    *(META | {"prepend_scheme": scheme, "split": cut} for scheme in ("always", "first", "never") for cut in (False, True)), META,
    META | {"replacement": "_", "prepend_scheme": "always", "split": True},
    {"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "CharDelimiterSplit", "delimiter": "a"}, {"type": "BertPreTokenizer"},  # noqa: E501
    sequence(), sequence(sequence({"type": "Digits", "individual_digits": True}), BYTES),
    sequence({"type": "WhitespaceSplit"}, META | {"prepend_scheme": "always", "split": True}),
    sequence({"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Digits", "individual_digits": False}, split(r"\p{Lu}")),
    sequence({"type": "Punctuation", "behavior": "Isolated"}, BYTES | {"add_prefix_space": True}),
    sequence(META | {"prepend_scheme": "first", "split": False}, split("▁+", "MergedWithPrevious")),
]  # fmt: skip


@pytest.mark.parametrize("values", SPLITS, ids=json.dumps)
def test_pre_tokenizers(values):
    mine, other = PreTokenizer(values), in_tokenizers("pre_tokenizer", values)
    for text in strings(300):
        found = mine.split(mine.led(text, True, True))
        if mine.bytes:
            found = ["".join(CHARACTER_OF[byte] for byte in piece.encode()) for piece in found]
        assert found == [piece for piece, _ in other.pre_tokenize_str(text) if piece], text


REPLACED = {"type": "Replace", "pattern": {"Regex": r"(?i)[aeiou]{2}|\s+$"}, "content": r"<\1>"}
NORMALIZED = [
    *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")),
    *({"type": "Strip", "strip_left": left, "strip_right": right} for left in (False, True) for right in (False, True)),
    {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": "."}, "content": "!"}, REPLACED,
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, normalizers(), precompiled(),
    normalizers({"type": "NFD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, normalizers({"type": "Prepend", "prepend": "x "})),  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize("values", NORMALIZED, ids=json.dumps)
def test_normalizers(values):
    mine, other = Normalizer(values), in_tokenizers("normalizer", values)
    for text in strings(300):
        assert mine(text) == other.normalize_str(text), text


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
DECODED = [
    None, BYTES, UNSPACES, FALLBACK, FUSE, META | {"prepend_scheme": "always"}, META | {"prepend_scheme": "never"}, META, STRIP,
    STRIP | {"start": 2, "stop": 1}, STRIP | {"start": 0, "stop": 2}, {"type": "Replace", "pattern": {"Regex": r"\s|a+"}, "content": "_"},  # noqa: E501
    *({"type": "Sequence", "decoders": list(steps)} for steps in (
        (), (UNSPACES, FALLBACK, FUSE, STRIP), (UNSPACES, FALLBACK, FUSE), (UNSPACES, FALLBACK, FUSE, STRIP | {"start": 2, "stop": 2}),  # noqa: E501
        (FALLBACK, UNSPACES, FUSE), (STRIP, UNSPACES), (UNSPACES, FUSE, FUSE, STRIP | {"stop": 3}), (UNSPACES, BYTES), (FALLBACK, BYTES, STRIP),  # noqa: E501
        (META | {"prepend_scheme": "first"}, FALLBACK, FUSE), (FALLBACK, META | {"prepend_scheme": "first"}),
    )),
]  # fmt: skip
TOKENS = [
    "▁",
    "▁▁",
    "▁the",
    "the",
    " ",
    "  ",
    " a ",
    "é",
    "Ġthe",
    "ä",
    "Ń",
    "<0xE4>",
    "<0xB8>",
    "<0xAD>",
    "<0x20>",
    "<0x41>",
    "<0xff>",
    "<0xZZ>",
    "<s>",
    "",
    "中",
]


@pytest.mark.parametrize("values", DECODED, ids=json.dumps)
def test_decoders(values):
    rng, mine, other = random.Random(4), Decoder(values), in_tokenizers("decoder", values)
    for _ in range(1000):
        tokens = [rng.choice(TOKENS) for _ in range(rng.randint(0, 9))]
        try:
            expected = other.decode(tokens) if other else " ".join(tokens)
        except BaseException as error:
            assert type(error).__name__ == "PanicException"  # of theirs, where Strip finds less than it would strip
            continue
        assert "".join(mine.joined(map(mine.each, tokens))) == expected, tokens
        parts = [part.encode("utf-8", "surrogateescape") for part in mine.joined(map(mine.each, tokens), as_bytes=True)]
        assert len(parts) == len(tokens)


@pytest.mark.parametrize(("table", "tried"), [(PRE_TOKENIZERS, SPLITS), (NORMALIZERS, NORMALIZED), (DECODERS, DECODED)])
def test_all_kinds_are_tried(table, tried):
    assert set(table) <= {value["type"] for value in tried if value}
