"""The steps around a tokenizer's merges: normalizer, pre-tokenizer and decoder, as in a ``tokenizer.json``.

Every tokenizer is built from the values of a ``tokenizer.json``, even one made here, so the saved file always matches it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import regex

from numllama.tokenizer.decoders import Decoder
from numllama.tokenizer.normalizers import SPACE, Normalizer
from numllama.tokenizer.patterns import PATTERNS, Splitter
from numllama.tokenizer.pre_tokenizers import BETWEEN_WORDS, PreTokenizer

PREFIXES = ("always", "unless spaced", "first unless spaced", "never")
SCHEMES = {"unless spaced": "always", "first unless spaced": "first"}
NAMES = ("normalizer", "pre_tokenizer", "decoder")
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
TURNED = str.maketrans({" ": SPACE, SPACE: " "})


class Layout:
    """The parts of a ``tokenizer.json`` around its model.

    Parameters
    ----------
    values : mapping
        With ``normalizer``, ``pre_tokenizer`` and ``decoder``; other keys are ignored.
    by_words : bool
        No merge has a space (▁) after another character, so words can be merged one by one.

    Attributes
    ----------
    values : dict
        Those three, as given.
    normalizer, pre_tokenizer, decoder
    cut, inner_cut : function or None
        Find a place where a text may be cut before normalization, and after it.
    as_it_is : bool
        Whether a text is split unchanged.
    keeps_all : bool
        Whether the whole text is preserved, apart from how spaces are written.
    space : str
        How a space is written for merging. If the layout does nothing but write spaces as ▁, the two are swapped and ▁ is
        written as a space: the result is the same, but most texts stay unchanged, with one byte per character.
    """

    def __init__(self, values: Mapping[str, Any], by_words: bool = False) -> None:
        self.values = {name: values.get(name) for name in NAMES}
        self._by_words = by_words
        turned = by_words and _writes_spaces(self.values)
        self.space = " " if turned else SPACE
        done = json.loads(_compact(self.values).translate(TURNED)) if turned else self.values
        words = f"{self.space}*[^{self.space}]+|{self.space}+"
        self.normalizer = Normalizer(done["normalizer"])
        self.pre_tokenizer = PreTokenizer(done["pre_tokenizer"], Splitter(words, BETWEEN_WORDS) if by_words else None)
        self.decoder = Decoder(self.values["decoder"])
        of_text = self.pre_tokenizer.steps and self.pre_tokenizer.steps[0].of_text
        if of_text and any(step.drops for step in self.normalizer.steps):
            raise ValueError("its Metaspace has the prepend_scheme first, but its normalizer may remove the first character")
        inner, outer = self.pre_tokenizer.cut, self.normalizer.cut
        self.inner_cut = _search(inner)
        splitters = [step.splitter for step in self.pre_tokenizer.steps if step.splitter]
        self.keeps_all = self.normalizer.cut == "" and not any(splitter.drops for splitter in splitters)
        self.as_it_is = not self.normalizer and self.pre_tokenizer.lead is None
        self.cut = _search(None if inner is None or outer is None else outer or inner)

    def __reduce__(self) -> tuple:
        return Layout, (self.values, self._by_words)


def _writes_spaces(values: Mapping[str, Any]) -> bool:
    """Whether the layout only writes spaces as ▁ and puts one in front."""
    steps, splitting = _steps(values["normalizer"]), values["pre_tokenizer"]
    metaspace = isinstance(splitting, dict) and splitting.get("type") == "Metaspace" and splitting.get("replacement") == SPACE
    known = all(step in (PREPEND, SPACES) for step in steps)
    return known and (SPACES in steps or metaspace) and (metaspace or splitting is None)


def _steps(normalizer: Any) -> list:
    """The steps of a normalizer; itself, if they are damaged."""
    steps = normalizer.get("normalizers") if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence" else None
    return steps if isinstance(steps, list) else [normalizer] if normalizer else []


def _compact(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def _search(cut: str | None) -> Callable | None:
    return regex.compile(cut).search if cut else None


def byte_level(*patterns: str) -> dict[str, Any]:
    """The values for byte-level BPE; each pattern, in Oniguruma's syntax, splits the pieces of those before it."""
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splitting = step | {"use_regex": True}
    if patterns != (PATTERNS["gpt2"],):
        splits = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in patterns]
        splitting = {"type": "Sequence", "pretokenizers": [*splits, step | {"use_regex": False}]}
    return {"normalizer": None, "pre_tokenizer": splitting, "decoder": step | {"use_regex": True}}


def pieces(prefix: str, one_space: bool) -> dict[str, Any]:
    """The values for SentencePiece's BPE; see :class:`numllama.tokenizer.sentencepiece.SentencePieceTokenizer`."""
    scheme = SCHEMES.get(prefix, "never")
    splitting = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": one_space}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [PREPEND, SPACES]} if prefix == "always" else SPACES,
        "pre_tokenizer": splitting if scheme != "never" or one_space else None,
        "decoder": piece_decoder(prefix != "never"),
    }


def piece_decoder(strips: bool) -> dict[str, Any]:
    """The decoder of SentencePiece's pieces, which may remove the space that was put in front of a text."""
    decoders = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {"type": "Sequence", "decoders": decoders if strips else decoders[:-1]}


def prefix_of(values: Mapping[str, Any]) -> tuple[str, bool]:
    """The `prefix` and `one_space` that give these values; ``other`` if none do."""
    for prefix in PREFIXES:
        for one_space in (False, True):
            made = pieces(prefix, one_space)
            same = _steps(made["normalizer"]) == _steps(values["normalizer"])
            if same and made["pre_tokenizer"] == values["pre_tokenizer"]:
                return prefix, one_space
    return "other", False
