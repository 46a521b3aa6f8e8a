"""Pre-tokenizers: split a text into pieces before merging, in the steps that a ``tokenizer.json`` specifies.

Each step splits the pieces from the step before it. Most steps are regular expressions and differ only in how they split off
a match: Digits, for example, is a pattern for digits.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from numllama.storage.fields import FLAG, OBJECT, Kind, one_of
from numllama.tokenizer.normalizers import SPACE, escaped, expression, fields, steps_of
from numllama.tokenizer.patterns import BEHAVIORS, PATTERNS, Splitter

BETWEEN_WORDS = rf"(?<=[^ {SPACE}])(?=[ {SPACE}])"  # before a space (either form) that follows another character
PUNCTUATION = r"[!-/:-@\[-`{-~]|\p{P}"
SCHEMES = ("always", "first", "never")
CHARACTER = Kind(lambda value: isinstance(value, str) and len(value) == 1, "must be one character")
METASPACE = {"replacement": CHARACTER, "prepend_scheme": one_of(*SCHEMES), "add_prefix_space": FLAG, "split": FLAG}


class Step(NamedTuple):
    """One split.

    Attributes
    ----------
    splitter : Splitter or None
        Splits a piece; None leaves it whole.
    lead : function
        Changes a piece before the split. Takes the piece, whether the text begins with it, and whether a part does.
    cut : str or None
        A regular expression that matches where this step always ends a piece; "" if it splits only by the kind of each
        character, so that a text may be cut anywhere; None if unknown.
    bytes : bool
        The pieces are bytes from here on.
    of_text : bool
        `lead` depends on whether the text begins.
    """

    splitter: Splitter | None
    lead: Callable[[str, bool, bool], str] | None = None
    cut: str | None = None
    bytes: bool = False
    of_text: bool = False


class PreTokenizer:
    """The steps of a pre-tokenizer.

    Parameters
    ----------
    values : dict or None
        The entry of a ``tokenizer.json``.
    words : Splitter, optional
        A final split that changes no merges, for speed.

    Attributes
    ----------
    bytes : bool
        Whether its pieces are merged as bytes.
    cut : str or None
        A regular expression that matches where a text may be cut, before or after any step; None if unknown.
    pattern : str or None
        The regular expression that splits a text, in Oniguruma's syntax; None if there is not exactly one.
    """

    def __init__(self, values: Any, words: Splitter | None = None) -> None:
        self.values = values
        self.steps = [] if values is None else steps_of(values, TABLE, "pre_tokenizer", "pretokenizers")
        self.bytes = bool(self.steps) and self.steps[-1].bytes
        if any(step.bytes for step in self.steps[:-1]):
            raise ValueError("its pre_tokenizer has a step behind ByteLevel, but that can only be the last one here")
        if any(step.of_text for step in self.steps[1:]):
            raise ValueError("its Metaspace has the prepend_scheme first, but that can only be the first step here")
        self.words = words
        if words is not None:
            self.steps.append(Step(words, cut=words.cut))
        later = any(step.lead for step in self.steps[1:])  # puts something before pieces
        cuts = {step.cut for step in self.steps}
        self.cut = None if later or None in cuts or len(cuts - {""}) != 1 else max(cuts)
        found = [step.splitter.pattern for step in self.steps if step.splitter]
        self.pattern = found[0] if len(found) == 1 else None
        self.lead = self.steps[0].lead if self.steps and self.steps[0].lead else None
        alone = [step.splitter.split for step in self.steps if step.splitter]
        self._simple = alone[0] if len(alone) == 1 and not later else None

    def __reduce__(self) -> tuple:
        return PreTokenizer, (self.values, self.words)

    def led(self, text: str, first: bool, begins: bool) -> str:
        """A part of a text, ready to be split.

        `first`: the text begins with it. `begins`: a part begins with it; otherwise it continues one.
        """
        return self.lead(text, first, begins) if self.lead and text else text

    def split(self, text: str) -> list[str]:
        """The pieces of such a part."""
        if self._simple:
            return self._simple(text)
        pieces = [text] if text else []
        for i, step in enumerate(self.steps):
            if step.lead and i:
                pieces = [step.lead(piece, False, True) for piece in pieces]
            if step.splitter:
                split = step.splitter.split
                pieces = [part for piece in pieces for part in split(piece)]
        return pieces

    def placed(self, text: str, first: bool, begins: bool) -> list[tuple[str, int, int]]:
        """The pieces of a part that is not led yet: where each starts in it, and where its own characters do.

        A piece starts earlier than its own characters, even before the part, if a step has put something in front of them.
        """
        pieces = [(text, 0, 0)] if text else []
        for i, step in enumerate(self.steps):
            if step.lead:
                how = (False, True) if i else (first, begins)
                led = [step.lead(piece, *how) for piece, _, _ in pieces]
                pieces = [(new, at + len(old) - len(new), own) for new, (old, at, own) in zip(led, pieces, strict=True)]
            if step.splitter:
                pieces = [part for piece in pieces for part in _parts(step.splitter.split, *piece)]
        return pieces


def _parts(split: Callable[[str], list[str]], piece: str, start: int, own: int) -> Iterator[tuple[str, int, int]]:
    end = 0
    for part in split(piece):
        at = piece.index(part, end)
        end = at + len(part)
        yield part, start + at, max(own, start + at)


# ------------------------------------------------------------------------------------------------ the steps


def _by(splitter: Splitter, lead: Callable | None = None, **more: Any) -> Step:
    return Step(splitter, lead, splitter.cut, **more)


def _split(values: dict) -> Step:
    fields(values, {"pattern": OBJECT, "behavior": one_of(*BEHAVIORS), "invert": FLAG}, "pattern", "behavior")
    pattern = expression(values["pattern"], empty=True)
    return _by(Splitter(pattern, behavior=values["behavior"], invert=values.get("invert", False)))


def _byte_level(values: dict) -> Step:
    fields(values, {"add_prefix_space": FLAG, "use_regex": FLAG, "trim_offsets": FLAG})
    lead = _space_in_front if values.get("add_prefix_space", True) else None
    if values.get("use_regex", True):
        return _by(Splitter(PATTERNS["gpt2"]), lead, bytes=True)
    return Step(None, lead, "", bytes=True)


def _space_in_front(piece: str, first: bool, begins: bool) -> str:
    return piece if piece.startswith(" ") or not begins else f" {piece}"


def _digits(values: dict) -> Step:
    fields(values, {"individual_digits": FLAG})
    behavior = "Isolated" if values.get("individual_digits", False) else "Contiguous"
    return Step(Splitter(r"\p{N}", behavior=behavior), cut="")


def _punctuation(values: dict) -> Step:
    fields(values, {"behavior": one_of(*BEHAVIORS)})
    behavior = values.get("behavior", "Isolated")
    return Step(Splitter(PUNCTUATION, behavior=behavior), cut=None if behavior.startswith("Merged") else "")


def _metaspace(values: dict) -> Step:
    fields(values, METASPACE, "replacement")
    sign = values["replacement"]
    other = {" ": SPACE}.get(sign, " ")  # see Layout.space
    scheme = values.get("prepend_scheme") or ("always" if values.get("add_prefix_space", True) else "never")

    def lead(piece: str, first: bool, begins: bool) -> str:
        piece = piece.replace(other, sign)
        wanted = begins and (scheme == "always" or (scheme == "first" and first))
        return sign + piece if wanted and not piece.startswith(sign) else piece

    cut = BETWEEN_WORDS if sign in (SPACE, " ") else None
    if not values.get("split", True):
        return Step(None, lead, cut and "", of_text=scheme == "first")
    each = re.escape(sign)  # begins a piece
    step = _by(Splitter(f"{each}[^{each}]*|[^{each}]+", BETWEEN_WORDS), lead, of_text=scheme == "first")
    return step._replace(cut=cut)


def _simple(pattern: str, behavior: str, invert: bool = False) -> Callable[[dict], Step]:
    return lambda values: Step(Splitter(pattern, behavior=behavior, invert=invert))


def _delimiter(values: dict) -> Step:
    fields(values, {"delimiter": CHARACTER}, "delimiter")
    return Step(Splitter(escaped(values["delimiter"]), behavior="Removed"))


def _bert(values: dict) -> list[Step]:
    return [_simple(r"\s", "Removed")(values), _simple(PUNCTUATION, "Isolated")(values)]


TABLE = {
    "Split": _split, "ByteLevel": _byte_level, "Digits": _digits, "Punctuation": _punctuation, "Metaspace": _metaspace,
    "Whitespace": _simple(r"[[:word:]\u200c\u200d]+|[^[:word:]\u200c\u200d\s]+", "Removed", invert=True),
    "WhitespaceSplit": _simple(r"\s", "Removed"),
    "CharDelimiterSplit": _delimiter, "BertPreTokenizer": _bert,
}  # fmt: skip
