"""SentencePiece's ``.model``: read into the same parts as a ``tokenizer.json``, so it is encoded and saved like one.

The file is a protocol buffer, a list of fields: each begins with its number and its form, and may hold fields itself.

    1  pieces             1 text   2 score   3 kind (see KINDS)
    2  trainer_spec       3 model_type   24 treat_whitespace_as_suffix   35 byte_fallback
    3  normalizer_spec    2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces
    5  denormalizer_spec  2 precompiled_charsmap

What SentencePiece does and a ``tokenizer.json`` cannot express is refused by name.
"""

import base64
import struct
from collections.abc import Iterator
from math import isfinite
from typing import Any, NamedTuple

from numllama.errors import shown
from numllama.tokenizer.added_tokens import AddedToken
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.config import Beside
from numllama.tokenizer.layout import PREPEND, SPACES, piece_decoder
from numllama.tokenizer.normalizers import SPACE
from numllama.tokenizer.recovered_merges import merges_of_scores
from numllama.tokenizer.tokenizer_json import PLAIN_MODEL, ids_of, tokenizer_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = KINDS = range(1, 7)
UNIGRAM, BPE = 1, 2
TYPES = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}
Fields = dict[int, list]


class Entry(NamedTuple):
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


def read(data: bytes, others: Beside) -> Tokenizer:
    """A tokenizer from the bytes of a ``.model``, and the files next to it.

    Raises
    ------
    ValueError
        If the bytes are damaged, or mean what cannot be done here.
    """
    fields = _fields(data)
    pieces = list(map(_piece, fields.get(1, [])))
    trainer, normalizer, denormalizer = (_fields(b"".join(fields.get(number, []))) for number in (2, 3, 5))
    model_type = _last(trainer, 3, UNIGRAM)
    dummy, strips = bool(_last(normalizer, 3, 1)), bool(_last(normalizer, 4, 1))
    charsmap = _last(normalizer, 2, b"")
    user_defined = any(piece.kind == USER_DEFINED for piece in pieces)
    if not pieces:
        raise ValueError("it has no pieces")
    refused = {
        f"its model_type is {TYPES.get(model_type, model_type)}, but only unigram and bpe are supported":
            model_type not in (UNIGRAM, BPE),
        "its pieces include unused ones": any(piece.kind == UNUSED for piece in pieces),
        "it has treat_whitespace_as_suffix": _last(trainer, 24, 0),
        "it has escape_whitespaces off": not _last(normalizer, 5, 1),
        "it changes texts after decoding (denormalizer_spec)": _last(denormalizer, 2, b""),
        "it has user-defined pieces, which are supported with BPE only": user_defined and model_type == UNIGRAM,
        "it has user-defined pieces and changes texts in other ways than writing spaces as ▁":
            user_defined and (dummy or strips or charsmap),
    }  # fmt: skip
    if reasons := [reason for reason, holds in refused.items() if holds]:
        raise ValueError(f"{reasons[0]}: if it has a tokenizer.json, that can be read")
    added = [
        AddedToken(piece.text, i, special=piece.kind != USER_DEFINED, normalized=piece.kind == USER_DEFINED)
        for i, piece in enumerate(pieces) if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]  # fmt: skip
    fallback = bool(_last(trainer, 35, 0))
    model = _unigram(pieces, fallback) if model_type == UNIGRAM else _bpe(pieces, fallback)
    return tokenizer_of(_layout(charsmap, strips, dummy, pieces), model, others.tokens(ids_of(model), added))


def _layout(charsmap: bytes, strips: bool, dummy: bool, pieces: list[Entry]) -> dict[str, Any]:
    steps = [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}] if charsmap else []
    if strips:
        steps += [_replace(r"\A +", ""), _replace(" {2,}", " ")]
    steps += [PREPEND] * dummy + [SPACES]
    if strips:
        steps.append(_replace(rf"{SPACE}+\z", ""))
    words = not any(SPACE in piece.text[1:] for piece in pieces if piece.kind == NORMAL)
    splitting = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else steps[0],
        "pre_tokenizer": splitting if words else None,
        "decoder": piece_decoder(dummy),
    }


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _unknown(pieces: list[Entry]) -> int | None:
    return next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)


def _unigram(pieces: list[Entry], fallback: bool) -> dict[str, Any]:
    return {
        "type": "Unigram", "unk_id": _unknown(pieces), "vocab": [[piece.text, piece.score] for piece in pieces],
        "byte_fallback": fallback,
    }  # fmt: skip


def _bpe(pieces: list[Entry], fallback: bool) -> dict[str, Any]:
    merges = merges_of_scores({piece.text: piece.score for piece in pieces if piece.kind == NORMAL})
    unknown = _unknown(pieces)
    return PLAIN_MODEL | {
        "unk_token": None if unknown is None else pieces[unknown].text, "fuse_unk": True, "byte_fallback": fallback,
        "vocab": {piece.text: i for i, piece in enumerate(pieces)},
        "merges": list(map(list, merges)),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ protocol buffers


def _piece(data: Any) -> Entry:
    fields = _fields(data)
    text, score, kind = _last(fields, 1, b""), _last(fields, 2, bytes(4)), _last(fields, 3, NORMAL)
    text, (score,) = text.decode(), struct.unpack("<f", score)
    if not text or not isfinite(score) or kind not in KINDS:
        raise ValueError(f"its piece {shown(text)} has the score {score} and the kind {kind}, which is invalid")
    return Entry(text, score, kind)


def _last(fields: Fields, number: int, default: Any) -> Any:
    """The value of a field that occurs once: the last one counts."""
    value = fields.get(number, [default])[-1]
    if type(value) is not type(default) or (default == bytes(4) and len(value) != 4):
        raise ValueError(f"it is no SentencePiece model: its field {number} is {shown(value)}")
    return value


def _fields(data: Any) -> Fields:
    """The values of each field of a message, by its number: integers, and bytes."""
    if not isinstance(data, bytes):
        raise ValueError(f"it is no SentencePiece model: a message is {shown(data)}")
    fields: Fields = {}
    for number, value in _each_field(data):
        fields.setdefault(number, []).append(value)
    return fields


def _each_field(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError("it is cut short, or no SentencePiece model")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of any size, seven bits a byte, the lowest first; and the position after it."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << 7 * i
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError("it is cut short, or no SentencePiece model")
