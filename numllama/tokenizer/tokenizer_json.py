"""``tokenizer.json``: read as `tokenizers` reads it, or refused by name, and written so that all readers agree.

    added_tokens      strings that are one token in any context                    (added_tokens.py)
    normalizer        steps that change the text before it is split                (normalizers.py)
    pre_tokenizer     steps that split it into pieces                              (pre_tokenizers.py)
    model             the vocabulary, with merges or scores                        (bpe.py, sentencepiece.py, unigram.py)
    post_processor    ids before and after those of the text                       (post_processors.py)
    decoder           turns tokens into text                                       (decoders.py)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numllama.errors import DataError, shown
from numllama.storage.fields import (
    ANYTHING,
    FLAG,
    LIST,
    OBJECT,
    TEXT,
    as_json,
    check,
    is_number,
    one_of,
    only,
    optional,
    require,
    whole,
)
from numllama.storage.files import read_json
from numllama.tokenizer.added_tokens import AddedToken, check_unique, read_added_token
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.config import beside
from numllama.tokenizer.decoders import BYTE_OF, alphabet_bytes
from numllama.tokenizer.layout import Layout
from numllama.tokenizer.normalizers import SPACE
from numllama.tokenizer.post_processors import around
from numllama.tokenizer.sentencepiece import BYTES, SentencePieceTokenizer, merge_by_words
from numllama.tokenizer.unigram import UnigramTokenizer

MODEL = {
    "type": one_of("BPE", "Unigram"), "vocab": ANYTHING, "byte_fallback": optional(FLAG),
}  # fmt: skip
BPE = {
    "vocab": OBJECT, "merges": LIST, "dropout": only(None, 0), "unk_token": optional(TEXT),
    "continuing_subword_prefix": only(None, ""), "end_of_word_suffix": only(None, ""), "fuse_unk": optional(FLAG),
    "ignore_merges": optional(FLAG),
}  # fmt: skip
UNIGRAM = {"vocab": LIST, "unk_id": optional(whole(most=2**32 - 1)), "alpha": only(None), "nbest_size": only(None)}
PLAIN_MODEL = {
    "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip


def read(path: Path) -> Tokenizer | CharTokenizer:
    """Read a ``tokenizer.json``, with the special tokens named in the files next to it."""
    values = read_json(path, DataError)
    if "characters" in values:
        return CharTokenizer.load(path)
    require(values, ("model",))
    check(values, {"model": OBJECT, "added_tokens": optional(LIST)}, as_json, "its ")
    model = checked_model(values["model"])
    added = beside(path.parent).tokens(ids_of(model), list(map(read_added_token, values.get("added_tokens") or [])))
    made = tokenizer_of(values, model, added)
    around(values.get("post_processor"))  # refused now, if at all
    made.post_processor = values.get("post_processor")
    made.kept = {name: values.get(name) for name in ("truncation", "padding")}
    return made


def checked_model(model: dict[str, Any]) -> dict[str, Any]:
    """The model of a ``tokenizer.json``; ValueError if it is invalid or of an unknown kind."""
    check(model, MODEL, as_json, "its model's ")
    unigram = _is_unigram(model)
    check(model, UNIGRAM if unigram else BPE, as_json, "its model's ")
    require(model, ("vocab",) if unigram else ("vocab", "merges"), "its model")
    if unigram:
        for pair in model["vocab"]:
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and pair[0] and is_number(pair[1])):
                raise ValueError(f"its vocab holds {as_json(pair)}, but must hold texts with their scores")
    else:
        for token, i in model["vocab"].items():
            if type(i) is not int or not 0 <= i < 2**32:
                raise ValueError(f"its vocab gives {shown(token)} the id {as_json(i)}")
    return model


def _is_unigram(model: Mapping[str, Any]) -> bool:
    return model.get("type", "Unigram" if isinstance(model.get("vocab"), list) else "BPE") == "Unigram"


def ids_of(model: Mapping[str, Any]) -> Mapping[str, int]:
    """The ids of a model's tokens, as they are written in it; in a Unigram model the order gives them."""
    if not _is_unigram(model):
        return model["vocab"]
    ids = {name: i for i, (name, _) in enumerate(model["vocab"])}
    if len(ids) < len(model["vocab"]):
        twice = next(name for i, (name, _) in enumerate(model["vocab"]) if ids[name] != i)
        raise ValueError(f"its vocab holds {shown(twice)} twice")
    return ids


def tokenizer_of(values: Mapping[str, Any], model: Mapping[str, Any], added: Sequence[AddedToken]) -> Tokenizer:
    """Build a tokenizer from the parts of a ``tokenizer.json``: normalizer, pre-tokenizer and decoder; model; added tokens."""
    vocab = ids_of(model)
    if len(set(vocab.values())) < len(vocab):
        raise ValueError("its vocab gives the same id to two tokens")
    check_unique(added)
    _check_numbers(added, vocab)
    layout = Layout(values)
    pieces = {i: name.encode() for name, i in vocab.items() if name}
    if _is_unigram(model):
        return _unigram(model, pieces, added, layout, vocab)
    unknown = model.get("unk_token")
    if unknown and unknown not in vocab:
        raise ValueError(f"its unk_token {shown(unknown)} is not in its vocab")
    merges = [two(merge) for merge in model["merges"]]
    more = {
        "ignore_merges": bool(model.get("ignore_merges")),
        "unknown": vocab[unknown] if unknown else None,
        "fuse_unknown": bool(model.get("fuse_unk")),
        "model": {name: value for name, value in model.items() if name != "merges"},
        "names": vocab,
    }
    if layout.pre_tokenizer.bytes:
        pairs = [(to_bytes(left), to_bytes(right)) for left, right in merges]
        return Tokenizer.of_parts(_of_bytes(vocab, merges, added), pairs, added, layout, **more)
    pairs = [(left.encode(), right.encode()) for left, right in merges]
    complete = unknown or (model.get("byte_fallback") and all(name.decode() in vocab for name in BYTES))
    if SPACE in vocab and complete and not more["ignore_merges"] and merge_by_words(pairs):  # else words may meet
        layout = Layout(values, by_words=True)
    return SentencePieceTokenizer.of_parts(pieces, pairs, added, layout, **more)


def _unigram(
    model: Mapping[str, Any], pieces: Mapping[int, bytes], added: Sequence[AddedToken], layout: Layout, names: Mapping[str, int]
) -> UnigramTokenizer:
    unknown = model.get("unk_id")
    if unknown is not None and unknown not in pieces:
        raise ValueError(f"its unk_id is {unknown}, but its vocab has {len(pieces)} pieces")
    if layout.pre_tokenizer.bytes:
        raise ValueError("its pre_tokenizer is ByteLevel, but that is supported with a BPE model only")
    return UnigramTokenizer.of_parts(pieces, [], added, layout, unknown=unknown, model=model, names=names)


def _of_bytes(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], added: Sequence[AddedToken]) -> dict[int, bytes]:
    """The tokens that are bytes: those written in the alphabet for bytes; special ones only if they occur in merges."""
    known = {*BYTE_OF, *(part for left, right in merges for part in (left, right, left + right))}
    special = {token.content for token in added if token.special} - known
    tokens = {i: alphabet_bytes(name) for name, i in vocab.items() if name not in special}
    return {i: token for i, token in tokens.items() if token}


def _check_numbers(added: Sequence[AddedToken], vocab: Mapping[str, int]) -> None:
    """ValueError if an added token's id differs from the one that readers, which number added tokens themselves, assign."""
    most = -1
    for token in added:
        expected = vocab.get(token.content, max(most + 1, len(vocab)))
        if token.id != expected:
            raise ValueError(
                f"its added token {shown(token.content)} has the id {token.id}, but readers of such files take it for {expected}"
            )
        most = max(expected, most)


def two(merge: Any) -> tuple[str, str]:
    """The two tokens of a merge, as a text with a space or as a pair."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"a merge is two tokens, but one of its merges is {shown(merge)}")
    return parts[0], parts[1]


def to_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet."""
    data = alphabet_bytes(token)
    if data is None:
        raise ValueError(f"the token {shown(token)} is neither special nor written in GPT-2's alphabet for bytes")
    return data


# ------------------------------------------------------------------------------------------------ writing


def content(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of a tokenizer's ``tokenizer.json``, whether it was read from one or made here."""
    model = tokenizer.model or _made_here(tokenizer)
    return {
        "version": "1.0",
        **{"truncation": None, "padding": None, **tokenizer.kept},
        "added_tokens": [token.as_json() for token in tokenizer.added_tokens],
        **tokenizer.layout.values,
        "post_processor": tokenizer.post_processor,
        "model": model if _is_unigram(model) else {**model, **_vocab_and_merges(tokenizer, model["vocab"])},
    }


def _vocab_and_merges(tokenizer: Tokenizer, vocab: Mapping[str, int]) -> dict[str, Any]:
    merges = [[tokenizer.written(left), tokenizer.written(right)] for left, right in tokenizer.merges]
    spaced = any(" " in part for merge in merges for part in merge)
    return {
        "vocab": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "merges": merges if spaced else [" ".join(merge) for merge in merges],  # old versions read only the latter
    }


def _made_here(tokenizer: Tokenizer) -> dict[str, Any]:
    """The model of a tokenizer that was not read from a file; its vocabulary includes special tokens, for their ids."""
    special = tokenizer.special_tokens
    vocab = {tokenizer.written(token): i for i, token in tokenizer.vocab.items() if i not in special.values()}
    if both := vocab.keys() & special.keys():
        raise ValueError(f"tokenizer.json cannot hold {shown(min(both))} as a special token and as an ordinary one")
    pieces = isinstance(tokenizer, SentencePieceTokenizer)
    return PLAIN_MODEL | {
        "unk_token": next((token for token, i in special.items() if i == tokenizer.unknown), None),
        "fuse_unk": pieces,
        "byte_fallback": pieces,
        "ignore_merges": tokenizer.ignore_merges,
        "vocab": vocab | special,
    }
