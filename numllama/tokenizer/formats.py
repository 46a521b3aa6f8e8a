"""Tokenizers on disk: everybody's files are read, and `tokenizer.json` is written as Hugging Face reads it.

    tokenizer.json              Hugging Face: byte-level BPE, or SentencePiece-style BPE with byte fallback; our characters too
    vocab.json + merges.txt     GPT-2
    tokenizer.model, *.tiktoken rank files: a token in base64 and its rank on each line
    *.bin                       llama2.c: a score and a piece for each id
"""

import base64
import binascii
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from numllama.errors import DataError, in_words
from numllama.storage.files import check_files
from numllama.storage.folders import published
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.patterns import PATTERNS
from numllama.tokenizer.sentencepiece import SPACE, SentencePieceTokenizer

Pair = tuple[bytes, bytes]

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)  # fmt: skip
CL100K_SPECIAL = {
    "<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}  # fmt: skip
CHAT_FILES = ("chat_template.jinja", "tokenizer_config.json")  # the template itself, and the special tokens that it speaks of
# A rank file says neither how to split nor which special tokens there are; its length tells the well-known ones.
KNOWN_RANKS = {
    50_256: ("gpt2", {"<|endoftext|>": 50_256}),
    100_256: ("cl100k", CL100K_SPECIAL),
    128_000: ("llama3", {token: 128_000 + i for i, token in enumerate(LLAMA3_SPECIAL)}),
}
FOLDER = ("tokenizer.json", "vocab.json", "tokenizer.model", "tokenizer.bin")


def load(
    path: str | Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> Tokenizer | CharTokenizer:
    """Read a tokenizer, whatever format it has.

    Parameters
    ----------
    path : path
        A folder; a ``tokenizer.json``; a ``vocab.json`` with ``merges.txt`` beside it (or names that end so); a rank file of
        tiktoken or Llama 3; a ``.bin`` of llama2.c.
    pattern, special_tokens
        For rank files that are not one of the well-known ones, and do not say them: default ``llama3`` and none.

    Returns
    -------
    Tokenizer or CharTokenizer

    Raises
    ------
    DataError
        If there is no tokenizer, or it is damaged or of a kind that would give other ids here.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in FOLDER if (path / name).exists()), None)
        if found is None:
            raise DataError(f"{path} holds no tokenizer: none of {', '.join(FOLDER)}")
        path = found
    if not path.exists():
        raise DataError(f"the tokenizer {path} does not exist")
    check_files(path.parent, DataError, large=False)
    try:
        tokenizer = _read(path, pattern, special_tokens)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: {in_words(error)}") from error
    tokenizer.folder = path.parent
    return tokenizer


def _read(path: Path, pattern: str | None, special_tokens: Mapping[str, int] | None) -> Tokenizer | CharTokenizer:
    if path.name.endswith("vocab.json"):
        return _read_gpt2(path, path.with_name(path.name.removesuffix("vocab.json") + "merges.txt"))
    if path.name.endswith("merges.txt"):
        return _read_gpt2(path.with_name(path.name.removesuffix("merges.txt") + "vocab.json"), path)
    if path.suffix == ".json":
        return _read_tokenizer_json(path)
    if path.suffix == ".bin":
        return _read_llama2c(path.read_bytes())
    return _read_ranks(path.read_bytes(), pattern, special_tokens)


def save(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write ``tokenizer.json`` into a folder, and the chat template that the tokenizer came with: all of it, or nothing."""
    text = json.dumps(_tokenizer_json(tokenizer), ensure_ascii=False, indent=1) + "\n"
    with published(folder, "tokenizer.json", error=DataError) as part:
        (part / "tokenizer.json").write_bytes(text.encode())
        for name in CHAT_FILES if tokenizer.folder else ():
            with suppress(FileNotFoundError):
                (part / name).write_bytes((tokenizer.folder / name).read_bytes())
    return Path(folder) / "tokenizer.json"


# ------------------------------------------------------------------------------------------------ Hugging Face


def _read_tokenizer_json(path: Path) -> Tokenizer | CharTokenizer:
    values = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(values, dict) and "characters" in values:
        return CharTokenizer.load(path)
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise ValueError("it has no model with a vocab and merges")
    _only("model type", model.get("type", "BPE"), ["BPE"])
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _only(name, model.get(name) or None, [None])
    special = _added_tokens(values.get("added_tokens") or [])
    merges = [_two(merge) for merge in model["merges"]]
    splitting = values.get("pre_tokenizer")
    make = _byte_level if any(part.get("type") == "ByteLevel" for part in _parts(splitting)) else _sentencepiece
    tokenizer = make(model, merges, special, values.get("normalizer"), splitting)
    tokenizer.post_processor = values.get("post_processor")
    return tokenizer


def _byte_level(model: dict, merges: list, special: dict[str, int], normalizer: Any, splitting: dict) -> Tokenizer:
    _only("normalizer", normalizer or None, [None])
    *before, byte_level = _parts(splitting)
    _only("add_prefix_space", byte_level.get("add_prefix_space", True), [False])
    if byte_level.get("use_regex", True):
        _only("pre_tokenizer", before, [[]])
        pattern = "gpt2"
    elif before:
        (split,) = before
        pattern = split["pattern"]["Regex"]
        _only("pre_tokenizer", (split["type"], split["behavior"], split.get("invert", False)), [("Split", "Isolated", False)])
    else:
        pattern = r"(?s:.+)"
    vocab = {i: _to_bytes(token) for token, i in model["vocab"].items() if token not in special}
    pairs = [(_to_bytes(left), _to_bytes(right)) for left, right in merges]
    return Tokenizer(vocab, pairs, special, pattern=pattern, ignore_merges=bool(model.get("ignore_merges")))


def _sentencepiece(model: dict, merges: list, special: dict[str, int], normalizer: Any, splitting: Any) -> Tokenizer:
    _only("byte_fallback", model.get("byte_fallback"), [True])
    _only("ignore_merges", bool(model.get("ignore_merges")), [False])
    prefix, one_space = "never", False
    normalizers = _parts(normalizer)
    if {"type": "Prepend", "prepend": SPACE} in normalizers:
        prefix = "always"
        normalizers.remove({"type": "Prepend", "prepend": SPACE})
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if splitting:
        _only("pre_tokenizer", (splitting["type"], splitting.get("replacement")), [("Metaspace", SPACE)])
        scheme = splitting.get("prepend_scheme") or ("always" if splitting.get("add_prefix_space", True) else "never")
        prefix = {"always": "unless spaced", "first": "first unless spaced", "never": prefix}[scheme]
        one_space = splitting.get("split", True)
        _only("normalizer", normalizers, [[], [replaced]])
    else:
        _only("normalizer", normalizers, [[replaced]])
    vocab = {i: token.encode() for token, i in model["vocab"].items()}
    pairs = [(left.encode(), right.encode()) for left, right in merges]
    return SentencePieceTokenizer(vocab, pairs, special, prefix=prefix, one_space=one_space)


def _tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    pieces = isinstance(tokenizer, SentencePieceTokenizer)
    written = bytes.decode if pieces else _from_bytes
    special = dict(sorted(tokenizer.special_tokens.items(), key=lambda item: item[1]))
    vocab = {written(token): i for i, token in tokenizer.vocab.items() if i not in special.values()}
    if both := vocab.keys() & special.keys():
        raise ValueError(f"tokenizer.json cannot hold {min(both)!r} as a special token and as an ordinary one")
    merges = [[written(left), written(right)] for left, right in tokenizer.merges]
    spaced = any(" " in part for merge in merges for part in merge)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for token, i in special.items()],
        **(_pieces_json(tokenizer) if pieces else _byte_level_json(tokenizer)),
        "post_processor": tokenizer.post_processor,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if pieces and "<unk>" in special else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": pieces,
            "byte_fallback": pieces,
            "ignore_merges": tokenizer.ignore_merges,
            "vocab": dict(sorted((vocab | special).items(), key=lambda item: item[1])),
            "merges": merges if spaced else [" ".join(merge) for merge in merges],  # old versions read only the latter
        },
    }


def _byte_level_json(tokenizer: Tokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splitting = byte_level | {"use_regex": True}
    if tokenizer.pattern != PATTERNS["gpt2"]:
        split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
        splitting = {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}]}
    return {"normalizer": None, "pre_tokenizer": splitting, "decoder": byte_level | {"use_regex": True}}


def _pieces_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    scheme = {"unless spaced": "always", "first unless spaced": "first"}.get(tokenizer.prefix, "never")
    normalizer = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if tokenizer.prefix == "always":
        normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, normalizer]}
    splitting = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": tokenizer.one_space}
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "normalizer": normalizer,
        "pre_tokenizer": splitting if scheme != "never" or tokenizer.one_space else None,
        "decoder": {"type": "Sequence", "decoders": decoders if tokenizer.prefix != "never" else decoders[:-1]},
    }


def _parts(value: Any) -> list[dict]:
    """The steps of a normalizer or pre-tokenizer, be it a sequence or a single one or none."""
    if not value:
        return []
    return list(value.get("normalizers") or value.get("pretokenizers") or []) if value["type"] == "Sequence" else [value]


def _added_tokens(added: list[dict]) -> dict[str, int]:
    for token in added:
        for flag in ("lstrip", "rstrip", "single_word"):
            _only(f"{flag} of {token['content']!r}", token.get(flag, False), [False])
    return {token["content"]: token["id"] for token in added}


def _only(name: str, value: Any, allowed: list) -> None:
    if value not in allowed:
        raise ValueError(f"its {name} is {value!r}, but only {' or '.join(map(repr, allowed))} is known here")


def _two(merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"a merge is two tokens, but one of its merges is {merge!r}")
    return parts[0], parts[1]


# ------------------------------------------------------------------------------------------------ GPT-2


def _read_gpt2(vocab_path: Path, merges_path: Path) -> Tokenizer:
    ids = json.loads(vocab_path.read_text(encoding="utf-8"))
    if not isinstance(ids, dict):
        raise ValueError(f"{vocab_path.name} is not a dictionary")
    lines = merges_path.read_text(encoding="utf-8").split("\n")
    lines = [line.rstrip("\r") for line in lines[lines[0].startswith("#version") :]]
    merges = [_two(line) for line in lines if line]
    reachable = {*_BYTE_OF, *(left + right for left, right in merges)}  # the others can only be special
    vocab = {i: _to_bytes(token) for token, i in ids.items() if token in reachable}
    special = {token: i for token, i in ids.items() if token not in reachable}
    return Tokenizer(vocab, [(_to_bytes(left), _to_bytes(right)) for left, right in merges], special)


def _byte_characters() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes are themselves, the others the characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_characters()
_CHARACTER_OF = {byte: character for character, byte in _BYTE_OF.items()}


def _to_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in token])
    except KeyError as error:
        raise ValueError(f"the token {token!r} is neither special nor written in GPT-2's alphabet for bytes") from error


def _from_bytes(token: bytes) -> str:
    return "".join([_CHARACTER_OF[byte] for byte in token])


# ------------------------------------------------------------------------------------------------ ranks and scores


def _read_ranks(content: bytes, pattern: str | None, special: Mapping[str, int] | None) -> Tokenizer:
    if b"<unk>" in content[:64]:
        raise ValueError("it is a SentencePiece model; its tokenizer.json can be read")
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token in base64 and its rank") from error
    known_pattern, known_special = KNOWN_RANKS.get(len(ranks), ("llama3", {}))
    merges = merges_of_ranks(ranks, lambda token: [bytes([byte]) for byte in token])
    special = known_special if special is None else special
    return Tokenizer(ranks, merges, special, pattern=pattern or known_pattern, ignore_merges=True)


def _read_llama2c(content: bytes) -> SentencePieceTokenizer:
    (longest,) = struct.unpack_from("<i", content)
    vocab, scores, at = {}, {}, 4
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        piece = content[at + 8 : at + 8 + length]
        if not 0 < length <= longest or len(piece) < length:
            raise ValueError("it is cut short, or no tokenizer of llama2.c")
        vocab[len(vocab)] = piece.replace(b" ", SPACE.encode()) if length > 1 or piece == b" " else piece
        scores[len(scores)] = score
        at += 8 + length
    special = {name: i for i, name in enumerate(("<unk>", "<s>", "</s>")) if vocab.get(i, b"").strip() == name.encode()}
    vocab |= {i: name.encode() for name, i in special.items()}
    bytes_ = {b"<0x%02X>" % byte for byte in range(256)}
    pieces = [i for i, piece in vocab.items() if piece not in bytes_ and i not in special.values()]
    ranks = {vocab[i]: rank for rank, i in enumerate(sorted(pieces, key=lambda i: -scores[i]))}
    merges = merges_of_ranks(ranks, lambda piece: [character.encode() for character in piece.decode()])
    return SentencePieceTokenizer(vocab, merges, special)


def merges_of_ranks(ranks: Mapping[bytes, int], symbols: Callable[[bytes], list[bytes]]) -> list[Pair]:
    """The merges behind tokens of which only the ranks are known, in order.

    Merging a token's own symbols ends with the one pair it is ever made of: other text around it would either stop it from
    being made or change nothing. A token that its symbols do not lead to is never made by merging.
    """
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = symbols(token)
        while len(parts) > 2:
            found = [(ranks[pair], i) for i in range(len(parts) - 1) if (pair := parts[i] + parts[i + 1]) in ranks]
            if not found:
                break
            _, i = min(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            merges.append((parts[0], parts[1]))
    return merges
