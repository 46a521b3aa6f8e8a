"""Tokenizers on disk: reads the common formats, and writes `tokenizer.json` as Hugging Face reads it.

    tokenizer.json              Hugging Face: see `tokenizer_json.py`; our character tokenizer too
    vocab.json + merges.txt     GPT-2, Qwen 2
    tokenizer.model, *.tiktoken rank files: a token in base64 and its rank on each line
    tokenizer.model, *.model    SentencePiece: see `sentencepiece_model.py`
    *.bin                       llama2.c: a score and a piece for each id
    *.gguf                      llama.cpp: see `gguf.py`
"""

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numllama.errors import DataError, NumllamaError, in_words, shown
from numllama.storage.checksums import check_files
from numllama.storage.fields import as_json
from numllama.storage.files import read_bytes, read_json
from numllama.storage.folders import published
from numllama.storage.gguf_file import SHARD, SUFFIX, read_gguf
from numllama.tokenizer import gguf, sentencepiece_model, tokenizer_json
from numllama.tokenizer.added_tokens import AddedToken
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.chat_files import MORE_TEMPLATES, TEMPLATE
from numllama.tokenizer.config import CONFIG, MAP, Beside, beside
from numllama.tokenizer.layout import byte_level
from numllama.tokenizer.normalizers import SPACE
from numllama.tokenizer.patterns import PATTERNS
from numllama.tokenizer.post_processors import template
from numllama.tokenizer.recovered_merges import merges_of_ranks, merges_of_scores
from numllama.tokenizer.sentencepiece import BYTES, SentencePieceTokenizer
from numllama.tokenizer.vocabulary import numbered

LLAMA3_SPECIAL = (
    "<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
)  # fmt: skip
CL100K_SPECIAL = {
    "<|endoftext|>": 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}  # fmt: skip
GPT2_SPECIAL = {"<|endoftext|>": 50_256}
KINDS = {  # of rank files: the pattern, the special tokens, and the tokens before a text
    "gpt2": ("gpt2", GPT2_SPECIAL, []),
    "cl100k": ("cl100k", CL100K_SPECIAL, []),
    "llama3": ("llama3", {token: 128_000 + i for i, token in enumerate(LLAMA3_SPECIAL)}, [("<|begin_of_text|>", 128_000)]),
}
# A rank file specifies neither a pattern nor special tokens. Well-known files are recognised by their SHA-256.
KNOWN_RANKS = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": "gpt2",    # r50k_base
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": "gpt2",    # p50k_base
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": "cl100k",
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": "llama3",  # of Llama 3.0 to 3.3
}  # fmt: skip
CHAT_FILES = (TEMPLATE, CONFIG, MAP)  # the template itself, and the special tokens that it refers to
OTHER_IDS = "sentencepiece.bpe.model"
FOLDER = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", OTHER_IDS, "tokenizer.bin")


def load(
    path: str | Path, pattern: str | None = None, special_tokens: Mapping[str, int] | Sequence[str] | None = None
) -> Tokenizer | CharTokenizer:
    """Read a tokenizer in any supported format.

    Parameters
    ----------
    path : path
        A folder; a ``tokenizer.json``; a ``vocab.json`` next to its ``merges.txt`` (or names with these endings); a rank file
        of tiktoken or Llama 3; a ``.bin`` of llama2.c; a model's ``.gguf``.
    pattern, special_tokens
        For a rank file, which lacks them; not needed for those of GPT-2, GPT-4 and Llama 3. As in :class:`Tokenizer`.

    Returns
    -------
    Tokenizer or CharTokenizer

    Raises
    ------
    DataError
        If there is no tokenizer, or it is damaged or of a kind that would give different ids here.
    """
    path = Path(path)
    if path.is_dir():
        found = next((path / name for name in FOLDER if (path / name).exists()), None) or only_gguf(path)
        if found is None:
            raise DataError(f"{path} holds no tokenizer: none of {', '.join(FOLDER)}")
        path = found
    if not path.exists():
        raise DataError(f"the tokenizer {path} does not exist")
    check_files(path.parent, DataError, large=False)
    try:
        tokenizer = _read(path, pattern, special_tokens)
    except (NumllamaError, MemoryError):
        raise
    except KeyError as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: it lacks {shown(error.args[0])}") from error
    except Exception as error:
        raise DataError(f"{path} is not a tokenizer that can be read here: {in_words(error)}") from error
    tokenizer.folder = None if path.suffix == SUFFIX else path.parent
    return tokenizer


def only_gguf(folder: Path) -> Path | None:
    """The GGUF file in a folder, or the first of those that its model is split into; None unless there is exactly one model."""
    files = sorted(path for path in folder.glob(f"*{SUFFIX}") if not SHARD.fullmatch(path.name) or "-00001-of-" in path.name)
    return files[0] if len(files) == 1 else None


def _read(
    path: Path, pattern: str | None, special_tokens: Mapping[str, int] | Sequence[str] | None
) -> Tokenizer | CharTokenizer:
    by_itself = path.name.endswith(("vocab.json", "merges.txt")) or path.suffix in (".json", ".bin", SUFFIX)
    if by_itself:
        _check_none_given(pattern, special_tokens)
    if path.name.endswith("vocab.json"):
        return _read_gpt2(path, path.with_name(path.name.removesuffix("vocab.json") + "merges.txt"))
    if path.name.endswith("merges.txt"):
        return _read_gpt2(path.with_name(path.name.removesuffix("merges.txt") + "vocab.json"), path)
    if path.suffix == ".json":
        return tokenizer_json.read(path)
    if path.suffix == SUFFIX:
        return gguf.tokenizer_of(read_gguf(path, DataError).values)
    content = read_bytes(path, DataError)
    if path.suffix == ".bin":
        return _read_llama2c(content)
    if content[:1] == b"\n" or b"<unk>" in content[:64]:  # neither begins a line of base64
        _check_none_given(pattern, special_tokens)
        return _read_sentencepiece(content, path)
    return _read_ranks(content, pattern, special_tokens)


def _check_none_given(pattern: str | None, special_tokens: Mapping[str, int] | Sequence[str] | None) -> None:
    if pattern is not None or special_tokens is not None:
        given = "pattern" if pattern is not None else "special tokens"
        raise ValueError(f"it defines its own pattern and special tokens, so no {given} can be given")


def save(tokenizer: Tokenizer, folder: str | Path) -> Path:
    """Write ``tokenizer.json`` and the chat template that the tokenizer came with into a folder, all or nothing."""
    text = json.dumps(tokenizer_json.content(tokenizer), ensure_ascii=False, indent=1) + "\n"
    with published(folder, "tokenizer.json", error=DataError) as part:
        (part / "tokenizer.json").write_bytes(text.encode())
        if tokenizer.config is not None:
            (part / CONFIG).write_text(json.dumps(tokenizer.config, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        origin = tokenizer.folder
        files = {name: origin / name for name in _chat_files(origin)} if origin else {}
        for name, path in files.items():
            (part / name).parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                (part / name).write_bytes(path.read_bytes())
    return Path(folder) / "tokenizer.json"


def _chat_files(folder: Path) -> list[str]:
    """The other files in a folder that a chat template needs."""
    return [*CHAT_FILES, *(path.relative_to(folder).as_posix() for path in (folder / MORE_TEMPLATES).glob("*.jinja"))]


# ------------------------------------------------------------------------------------------------ GPT-2 and Qwen 2


def _gpt2(config: Mapping[str, Any]) -> dict[str, Any]:
    values = byte_level(PATTERNS["gpt2"])
    values["pre_tokenizer"]["add_prefix_space"] = config.get("add_prefix_space") is True
    return values


def _qwen2(config: Mapping[str, Any]) -> dict[str, Any]:
    return byte_level(PATTERNS["qwen2"]) | {"normalizer": {"type": "NFC"}}


CLASSES = {None: _gpt2, "GPT2Tokenizer": _gpt2, "Qwen2Tokenizer": _qwen2}  # by tokenizer_class, with or without Fast
END_OF_TEXT = "<|endoftext|>"  # special in both, even if the files next to them do not list it


def _read_gpt2(vocab_path: Path, merges_path: Path) -> Tokenizer:
    vocab = read_json(vocab_path, DataError)
    lines = read_bytes(merges_path, DataError).decode("utf-8").split("\n")
    lines = [line.rstrip("\r") for line in lines[lines[0].startswith("#version") :]]
    said = beside(vocab_path.parent)
    kind = said.config.get("tokenizer_class")
    kind = kind.removesuffix("Fast") if isinstance(kind, str) else kind
    if not (kind is None or isinstance(kind, str)) or kind not in CLASSES:
        known = ", ".join(name for name in CLASSES if name)
        raise ValueError(f"its tokenizer_class is {as_json(kind)}, but vocab.json and merges.txt are read for {known} only")
    model = tokenizer_json.checked_model(
        tokenizer_json.PLAIN_MODEL | {"vocab": vocab, "merges": [list(tokenizer_json.two(line)) for line in lines if line]}
    )
    added = sorted(_with_end_of_text(said, vocab), key=lambda token: token.id)
    tokenizer = tokenizer_json.tokenizer_of(CLASSES[kind](said.config), model, added)
    tokenizer.post_processor = _around(said, tokenizer, END_OF_TEXT, END_OF_TEXT)
    return tokenizer


def _around(said: Beside, tokenizer: Tokenizer, bos: str, eos: str) -> dict[str, Any] | None:
    """The tokens around a text, as tokenizer_config.json specifies them; `bos` and `eos` if it does not name them."""
    ids = {token.content: token.id for token in tokenizer.added_tokens}
    around = [[], []]
    for some, name, default in zip(around, ("bos", "eos"), (bos, eos), strict=True):
        if said.config.get(f"add_{name}_token") is True:
            token = said.names.get(f"{name}_token", default)
            if token not in ids:
                raise ValueError(f"add_{name}_token is true, but {shown(token)}, its {name}_token, has no id")
            some.append((token, ids[token]))
    return template(*around)


def _with_end_of_text(said: Beside, vocab: Mapping[str, int]) -> list[AddedToken]:
    added = said.tokens(vocab)
    if END_OF_TEXT in vocab and not any(token.content == END_OF_TEXT for token in added):
        added.append(AddedToken(END_OF_TEXT, vocab[END_OF_TEXT]))
    return added


# ------------------------------------------------------------------------------------------------ ranks and scores


def _read_sentencepiece(content: bytes, path: Path) -> Tokenizer:
    if path.name == OTHER_IDS:
        raise ValueError("XLM-R, mBART and NLLB, whose files have this name, number the pieces otherwise: load a tokenizer.json")
    said = beside(path.parent)
    tokenizer = sentencepiece_model.read(content, said)
    tokenizer.post_processor = _around(said, tokenizer, "<s>", "</s>")
    return tokenizer


def _read_ranks(content: bytes, pattern: str | None, special: Mapping[str, int] | Sequence[str] | None) -> Tokenizer:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token in base64 and its rank") from error
        if not token or token in ranks or not 0 <= rank < 2**32:
            raise ValueError(f"line {number} has {shown(token)} with the rank {shown(rank)}, which is invalid or a repeat")
        ranks[token] = rank
    if not ranks:
        raise ValueError("it is empty")
    known_pattern, known_special, before = KINDS.get(KNOWN_RANKS.get(_fingerprint(ranks), ""), (None, None, []))
    pattern = known_pattern if pattern is None else pattern
    special = known_special if special is None else special
    if pattern is None or special is None:
        raise ValueError(
            "it is a rank file, which says neither how to split a text nor which special tokens there are, and no known one: "
            "numllama prepare takes both (--pattern, --special), and so does Tokenizer.load (pattern, special_tokens)"
        )
    vocab = {i: token for token, i in ranks.items()}
    special = numbered(special, vocab)
    merges = merges_of_ranks(ranks, lambda token: [bytes([byte]) for byte in token])
    tokenizer = Tokenizer(ranks, merges, special, pattern=pattern, ignore_merges=True)
    tokenizer.post_processor = template([(token, i) for token, i in before if special.get(token) == i])
    return tokenizer


def _fingerprint(ranks: Mapping[bytes, int]) -> str:
    """SHA-256 of a rank file with its lines sorted by rank."""
    lines = (base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda item: item[1]))
    return hashlib.sha256(b"".join(lines)).hexdigest()


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
    bytes_ = set(BYTES)
    pieces = {piece.decode(): scores[i] for i, piece in vocab.items() if piece not in bytes_ and i not in special.values()}
    merges = [(left.encode(), right.encode()) for left, right in merges_of_scores(pieces)]
    tokenizer = SentencePieceTokenizer(vocab, merges, special)
    tokenizer.post_processor = template([("<s>", special["<s>"])] if "<s>" in special else [])  # run.c begins every text with it
    return tokenizer
