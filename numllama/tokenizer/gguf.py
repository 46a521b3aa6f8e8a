"""The tokenizer in a GGUF file, to and from the parts of a ``tokenizer.json``.

    tokenizer.ggml.model           gpt2: byte-level BPE; llama: SentencePiece's BPE; none
    tokenizer.ggml.pre             how gpt2's kind splits a text: a name, whose expressions are in llama.cpp, not in the file
    tokenizer.ggml.tokens, token_type, merges, scores
    tokenizer.ggml.bos_token_id, eos_token_id, eot_token_id, ..., add_bos_token, add_eos_token, add_space_prefix
    tokenizer.chat_template        and tokenizer.chat_template.NAME

A text is split as in llama.cpp. `transformers` knows fewer names, and splits those that it lacks as GPT-2 does.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from numllama.errors import listed, shown
from numllama.storage.fields import FLAG, LIST, TEXT, as_json, check, require, whole
from numllama.tokenizer import tokenizer_json
from numllama.tokenizer.added_tokens import AddedToken
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.layout import byte_level, pieces, prefix_of
from numllama.tokenizer.normalizers import SPACE
from numllama.tokenizer.patterns import PATTERNS
from numllama.tokenizer.post_processors import template
from numllama.tokenizer.recovered_merges import may_be_merged, merges_of_scores
from numllama.tokenizer.rewriting import canonical
from numllama.tokenizer.sentencepiece import BYTES, SentencePieceTokenizer
from numllama.tokenizer.sentencepiece_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from numllama.tokenizer.unigram import UnigramTokenizer

KEYS = "tokenizer.ggml."
NFC = {"type": "NFC"}  # Qwen's: llama.cpp leaves it out, which matters only for a text that is not in NFC
ID = whole(most=2**32 - 1)
FIELDS = {
    "model": TEXT, "pre": TEXT, "tokens": LIST, "merges": LIST,
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), FLAG),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id"), ID),
}  # fmt: skip
IDS = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
SENTENCEPIECE = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_bos_token": True}  # if a file does not say

# ------------------------------------------------------------------------------------------------ splitting


class Splitting(NamedTuple):
    """How llama.cpp splits a text: by each expression in turn, which isolates its matches.

    `looked_up`: a piece that is a token is not merged. `begins`: the beginning-of-text token goes before a text.
    """

    expressions: tuple[str, ...]
    looked_up: bool = False
    begins: bool = False


_CASED = (  # a word's capitals and then its small letters; %s stands for contractions
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT2, _LLAMA3, _QWEN2 = (PATTERNS[name] for name in ("gpt2", "llama3", "qwen2"))
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_KINDS = {  # names that mean the same, separated by spaces; the first is written
    "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Splitting((_LLAMA3,), True, True),
    "smaug-bpe dbrx chatglm-bpe": Splitting((_LLAMA3,)),
    "glm4": Splitting((_LLAMA3,), True),
    "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert roberta-bpe jina-es jina-de "
    "jina-v1-en jina-v2-es jina-v2-de jina-v2-code": Splitting((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Splitting((r"\p{N}", _GPT2)),
    "qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2": Splitting((_QWEN2,)),
    "qwen35": Splitting((_QWEN2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),)),
    "tekken": Splitting((_CASED % ("", "") + r"|\p{N}" + _REST,), True, True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Splitting((_CASED % (_CONTRACTIONS, _CONTRACTIONS) + r"|\p{N}{1,3}" + _REST,)),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Splitting(_DEEPSEEK_V3),
    "deepseek-coder": Splitting((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
    "falcon": Splitting((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "default": Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}
SPLITTING = {name: kind for names, kind in _KINDS.items() for name in names.split()}


def _steps(values: Any) -> list[Any] | None:
    """The expressions by which a byte-level ``pre_tokenizer`` isolates pieces, in canonical form; None if it does more."""
    steps = values.get("pretokenizers") if values["type"] == "Sequence" else [values]
    *splits, last = steps
    expressions = []
    for step in splits:
        if step["type"] == "Digits" and step.get("individual_digits", False):
            expressions.append(r"\p{N}")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step.get("invert") and "Regex" in step["pattern"]:
            expressions.append(step["pattern"]["Regex"])
        else:
            return None
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    return list(map(canonical, [*expressions, _GPT2] if last.get("use_regex", True) else expressions))


# ------------------------------------------------------------------------------------------------ reading


def tokenizer_of(values: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file's values describe.

    Raises
    ------
    ValueError
        If there is none, it is damaged, or of a kind that would give different ids here.
    """
    found = own_values(values)
    if not has_tokenizer(values):
        raise ValueError("it holds no tokenizer")
    if found["model"] not in MODELS:
        raise ValueError(f"its tokenizer is of the kind {shown(found['model'])}, but only {', '.join(MODELS)} are read")
    if found["model"] == "llama":
        found = SENTENCEPIECE | found
    tokens, types = found["tokens"], _types(found).tolist()
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise ValueError(f"its vocabulary holds {shown(twice)} twice")
    layout, model, begins = MODELS[found["model"]](found)
    added = [
        AddedToken(token, i, special=kind != USER_DEFINED)
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if token and kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer = tokenizer_json.tokenizer_of(layout, tokenizer_json.checked_model(model | {"vocab": vocab}), added)
    around = [[], []]
    for some, name, default in zip(around, ("bos", "eos"), (begins, False), strict=True):
        if found.get(f"add_{name}_token", default) and (i := found.get(f"{name}_token_id")) is not None:
            some.append((_named(tokens, i, name), i))
    tokenizer.post_processor = template(*around)
    tokenizer.config = _config(values, found)
    return tokenizer


def has_tokenizer(values: Mapping[str, Any]) -> bool:
    """Whether a file holds a tokenizer."""
    return values.get(f"{KEYS}model") not in (None, "none", "no_vocab") and f"{KEYS}tokens" in values


def own_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the tokenizer by their short names; ValueError if one has the wrong type."""
    found = {name.removeprefix(KEYS): value for name, value in values.items() if name.startswith(KEYS)}
    check(found, FIELDS, as_json, KEYS)
    return found


def _types(found: Mapping[str, Any]) -> np.ndarray:
    """The type of each token; without a list of them, all are normal."""
    n = len(found["tokens"])
    types = found.get("token_type", np.full(n, NORMAL))
    if not isinstance(types, np.ndarray) or types.shape != (n,) or types.dtype.kind not in "iu":
        raise ValueError(f"{KEYS}token_type must be a list of {n:,} numbers, one for each token")
    return types


def _byte_level(found: Mapping[str, Any]) -> tuple[dict, dict, bool]:
    require(found, ("merges",), "its tokenizer")
    name = found.get("pre", "default")
    if name not in SPLITTING:
        raise ValueError(f"{KEYS}pre is {shown(name)}, but only these are known: {listed(sorted(SPLITTING))}")
    kind = SPLITTING[name]
    model = tokenizer_json.PLAIN_MODEL | {"merges": found["merges"], "ignore_merges": kind.looked_up}
    return byte_level(*kind.expressions), model, kind.begins


def _sentencepiece(found: Mapping[str, Any]) -> tuple[dict, dict, bool]:
    tokens, types, unknown = found["tokens"], _types(found), found["unknown_token_id"]
    merges = found.get("merges")
    if merges is None:
        scores = found.get("scores")
        if not isinstance(scores, np.ndarray) or scores.shape != (len(tokens),):
            raise ValueError(f"{KEYS}scores must be a list of {len(tokens):,} numbers, one for each token")
        merged = np.flatnonzero((types == NORMAL) | (types == USER_DEFINED)).tolist()
        merges = list(map(list, merges_of_scores({tokens[i]: float(scores[i]) for i in merged if tokens[i]})))
    model = {
        "merges": merges, "fuse_unk": True, "byte_fallback": True,
        "unk_token": _named(tokens, unknown, "unknown") if types[unknown : unknown + 1].tolist() == [UNKNOWN] else None,
    }  # fmt: skip
    prefix = "always" if found.get("add_space_prefix", True) else "never"
    return pieces(prefix, one_space=False), tokenizer_json.PLAIN_MODEL | model, False


MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _named(tokens: list[str], i: int, name: str) -> str:
    if i >= len(tokens):
        raise ValueError(f"{KEYS}{name}_token_id is {i}, but it has {len(tokens):,} tokens")
    return tokens[i]


def _config(values: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``tokenizer_config.json`` would say: the named special tokens and the chat templates."""
    ids = {name: found[key] for name, key in IDS.items() if key in found}
    config: dict[str, Any] = {name: _named(found["tokens"], i, name.removesuffix("_token")) for name, i in ids.items()}
    config |= {name: found[name] for name in ("add_bos_token", "add_eos_token") if name in found}
    start = "tokenizer.chat_template"
    named = {name.removeprefix(f"{start}."): text for name, text in values.items() if name.startswith(f"{start}.")}
    if (default := values.get(start)) is not None:
        named = {"default": default, **named}
    check(named, dict.fromkeys(named, TEXT), as_json, f"{start}, ")
    if set(named) == {"default"}:
        config["chat_template"] = default
    elif named:
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    return config


# ------------------------------------------------------------------------------------------------ writing


def values_of(tokenizer: Tokenizer | CharTokenizer, vocab_size: int, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that describe a tokenizer in a file.

    Parameters
    ----------
    tokenizer : Tokenizer
    vocab_size : int
        Rows of the model's embedding; ids without a token are written as unused.
    config : mapping
        The content of a ``tokenizer_config.json``: named special tokens and chat templates.

    Raises
    ------
    ValueError
        If llama.cpp would give other ids.
    """
    if isinstance(tokenizer, CharTokenizer):
        raise ValueError("a GGUF file cannot hold a tokenizer of characters: save the model without it")
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model only {vocab_size:,}")
    if isinstance(tokenizer, UnigramTokenizer):
        raise ValueError("a tokenizer of the kind Unigram cannot be written to a GGUF file here: save the model without it")
    byte_level = tokenizer.layout.pre_tokenizer.bytes
    tokens, types = _tokens(tokenizer, vocab_size)
    before, after = tokenizer.before, tokenizer.after
    if len(before) > 1 or len(after) > 1:
        raise ValueError("a GGUF file can hold one token before a text and one after it, but the tokenizer has more")
    kind = _written_bytes(tokenizer) if byte_level else _written_pieces(tokenizer, tokens, types)
    found = {**kind, "tokens": tokens, "token_type": types}
    ids = {token: i for i, token in enumerate(tokens)}
    named = {IDS[name]: ids[text] for name, text in config.items() if name in IDS and text in ids}
    named |= {f"{name}_token_id": some[0] for name, some in (("bos", before), ("eos", after)) if some}
    if byte_level and "bos_token_id" not in named and CONTROL in types:
        named["bos_token_id"] = int(np.flatnonzero(types == CONTROL)[0])  # without one, llama.cpp takes 11
    found |= {name: np.uint32(i) for name, i in named.items()}
    found |= {"add_bos_token": bool(before), "add_eos_token": bool(after)}
    return {KEYS + name: value for name, value in found.items()}


def _tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[list[str], np.ndarray]:
    """The text of each id, and its type."""
    tokens = [tokenizer.name(i) if i in tokenizer.ids else f"[PAD{i}]" for i in range(vocab_size)]
    types = np.array([NORMAL if i in tokenizer.ids else UNUSED for i in range(vocab_size)], "<i4")
    if isinstance(tokenizer, SentencePieceTokenizer):
        bytes_ = {name.decode() for name in BYTES}
        types[[i for i, token in enumerate(tokens) if token in bytes_]] = BYTE
    for token in tokenizer.added_tokens:
        tokens[token.id] = token.content
        types[token.id] = CONTROL if token.special else USER_DEFINED
        if token.lstrip or token.rstrip or token.single_word:
            raise ValueError(f"a GGUF file cannot say that {shown(token.content)} matches with white space or as a word")
    return tokens, types


def _written_bytes(tokenizer: Tokenizer) -> dict[str, Any]:
    if tokenizer.layout.normalizer and tokenizer.layout.values["normalizer"] != NFC:
        raise ValueError("llama.cpp leaves a text as it is, but the tokenizer normalizes it")
    steps = _steps(tokenizer.layout.values["pre_tokenizer"])
    named = {names.split()[0]: kind for names, kind in _KINDS.items() if kind.looked_up == tokenizer.ignore_merges}
    name = next((name for name, kind in named.items() if list(map(canonical, kind.expressions)) == steps), None)
    if name is None:
        raise ValueError(
            "llama.cpp has no name for the way in which the tokenizer splits a text; it knows those of "
            + listed(sorted(names.split()[0] for names in _KINDS))
        )
    merges = [f"{tokenizer.written(left)} {tokenizer.written(right)}" for left, right in tokenizer.merges]
    return {"model": "gpt2", "pre": name, "merges": merges}


def _written_pieces(tokenizer: Tokenizer, tokens: list[str], types: np.ndarray) -> dict[str, Any]:
    """SentencePiece's scores: merges are made in the order of the scores of what they make."""
    prefix, one_space = prefix_of(tokenizer.layout.values)
    if prefix not in ("always", "never") or one_space:
        raise ValueError("llama.cpp puts a space before every part of a text or before none, but the tokenizer does otherwise")
    if not tokenizer.complete:
        raise ValueError("llama.cpp turns a character that is no piece into its bytes, but the tokenizer does not")
    ids = {token: i for i, token in enumerate(tokens)}
    merged = {(left + right).decode() for left, right in tokenizer.merges}
    for token, kind in zip(tokens, types.tolist(), strict=True):
        found_first = kind == USER_DEFINED and SPACE not in token  # so no text is merged into it
        if kind in (NORMAL, USER_DEFINED) and token not in merged and not found_first and may_be_merged(token, ids):
            raise ValueError(f"llama.cpp would merge a text into {shown(token)}, but the tokenizer does not")
    scores = np.full(len(tokens), -1e9 if tokenizer.merges else 0.0, "<f4")
    for rank, (left, right) in reversed(list(enumerate(tokenizer.merges))):
        scores[ids[(left + right).decode()]] = -rank
    if "<unk>" in ids:
        types[ids["<unk>"]] = UNKNOWN
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix == "always"}
