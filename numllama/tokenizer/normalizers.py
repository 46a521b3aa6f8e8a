"""Normalizers: the steps of a ``tokenizer.json`` that change a text before it is split.

The first chunk of a long text is treated differently: only it gets a space in front.
"""

import unicodedata
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import regex

from numllama.errors import shown
from numllama.storage.fields import FLAG, OBJECT, TEXT, Kind, as_json, check, require
from numllama.tokenizer.expressions import ONIGURUMA, Refused, may_be_empty
from numllama.tokenizer.parsing import parse
from numllama.tokenizer.patterns import seconds
from numllama.tokenizer.precompiled import Precompiled
from numllama.tokenizer.rewriting import compile_oniguruma

SPACE = "▁"  # how SentencePiece writes a space
BEFORE_SPACES = rf"(?<=[^\s{SPACE}])(?= )"  # no Unicode form combines a space with the character before it

Normalize = Callable[[str], str]


class Step(NamedTuple):
    """One step of a normalizer.

    Attributes
    ----------
    apply : function
    cut : str or None
        Matches where the text may be cut before this step: "" is anywhere, None nowhere.
    begins : bool
        Applies only at the beginning of a text.
    drops : bool
        May remove the first character of a text.
    """

    apply: Normalize
    cut: str | None
    begins: bool = False
    drops: bool = False


class Normalizer:
    """The steps of a normalizer.

    Parameters
    ----------
    values : dict or None
        The entry of a ``tokenizer.json``.

    Attributes
    ----------
    cut : str or None
        A regular expression that matches where a text may be cut before it is normalized; "" is anywhere, None nowhere.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self.steps = [] if values is None else steps_of(values, TABLE, "normalizer", "normalizers")
        cuts = {step.cut for step in self.steps}
        self.cut = None if None in cuts else max(cuts, default="")

    def __reduce__(self) -> tuple:
        return Normalizer, (self.values,)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __call__(self, text: str, begins: bool = True) -> str:
        for step in self.steps:
            if begins or not step.begins:
                text = step.apply(text)
        return text


def steps_of(values: Any, table: dict[str, Callable[[dict], Any]], name: str, several: str, depth: int = 0) -> list:
    """The steps of a part of a ``tokenizer.json``, a sequence or a single step; `table` has a function to make each kind."""
    kind = kind_of(values, name)
    if kind == "Sequence":
        inner = values.get(several)
        if not isinstance(inner, list) or depth > 3:
            raise ValueError(f"its {name} is a sequence, but {several} is {as_json(inner)}")
        return [step for value in inner for step in steps_of(value, table, name, several, depth + 1)]
    if kind not in table:
        raise ValueError(f"its {name} is {as_json(kind)}, but only {', '.join(table)} and sequences of them are known here")
    made = table[kind](values)
    return made if isinstance(made, list) else [made]


def kind_of(values: Any, name: str) -> str:
    """The type of a part of a ``tokenizer.json``."""
    if not isinstance(values, dict) or not isinstance(values.get("type"), str):
        raise ValueError(f"its {name} must be an object with a type, but is {as_json(values)}")
    return values["type"]


def fields(values: dict, kinds: dict[str, Kind], *needed: str) -> None:
    """Check the values of such a part; `needed` ones must be present."""
    require(values, needed, f"its {values['type']}")
    check(values, kinds, as_json, f"its {values['type']}: ")


def escaped(character: str) -> str:
    """A character, escaped for a regular expression of Oniguruma's."""
    return character if character.isalnum() else f"\\x{{{ord(character):x}}}"


def expression(value: dict, empty: bool = False) -> str:
    """The regular expression of ``{"Regex": ...}`` or ``{"String": ...}``, in Oniguruma's syntax."""
    form, pattern = next(iter(value.items()), ("", None))
    if len(value) != 1 or form not in ("Regex", "String") or not isinstance(pattern, str):
        raise ValueError(f'its pattern is {as_json(value)}, but must be {{"Regex": ...}} or {{"String": ...}}')
    if form == "String" and not pattern:
        raise ValueError("its pattern is an empty text")
    pattern = pattern if form == "Regex" else "".join(map(escaped, pattern))
    try:
        if may_be_empty(parse(pattern, ONIGURUMA)) and not empty:
            raise Refused("it may match an empty text")
        compile_oniguruma(pattern)
    except Refused as error:
        raise ValueError(f"its pattern {shown(pattern)} is not supported: {error}") from error
    return pattern


# ------------------------------------------------------------------------------------------------ the steps


def _form(name: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> Callable[[dict], Step]:
    return lambda values: Step(lambda text: unicodedata.normalize(name, text), BEFORE_SPACES)


def _lowercase(values: dict) -> Step:
    return Step(lambda text: "".join([c.lower() for c in text]), BEFORE_SPACES)  # per character, so a final sigma is not special


def _strip(values: dict) -> Step:
    fields(values, {"strip_left": FLAG, "strip_right": FLAG})
    ends = [r"\A\s+"] * values.get("strip_left", True) + [r"\s+\Z"] * values.get("strip_right", True)
    white = regex.compile("|".join(ends) or r"(?!)")
    return Step(lambda text: white.sub("", text), None, drops=values.get("strip_left", True))


def _strip_accents(values: dict) -> Step:
    return Step(lambda text: "".join([c for c in text if unicodedata.category(c)[0] != "M"]), BEFORE_SPACES, drops=True)


def _replace(values: dict) -> Step:
    fields(values, {"pattern": OBJECT, "content": TEXT}, "pattern", "content")
    old, new = values["pattern"], values["content"]
    of_spaces = [old, new] in ([{"String": " "}, SPACE], [{"String": SPACE}, " "])
    return Step(replacing(old, new), "" if of_spaces else None, drops=not new)


def replacing(pattern: dict, content: str) -> Normalize:
    """A function that replaces each match of a pattern by `content`."""
    compiled = compile_oniguruma(expression(pattern))
    if old := pattern.get("String"):
        return lambda text: text.replace(old, content)

    def replace(text: str) -> str:
        try:
            return compiled.sub(lambda _: content, text, timeout=seconds(text))
        except TimeoutError as error:
            raise ValueError(f"the pattern {as_json(pattern)} takes too long for a text of {len(text):,} characters") from error

    return replace


def _prepend(values: dict) -> Step:
    fields(values, {"prepend": TEXT}, "prepend")
    return Step(lambda text: values["prepend"] + text if text else text, "", begins=True)


def _precompiled(values: dict) -> Step:
    fields(values, {"precompiled_charsmap": TEXT}, "precompiled_charsmap")
    return Step(Precompiled(values["precompiled_charsmap"]), None, drops=True)


TABLE = {
    "NFC": _form("NFC"), "NFD": _form("NFD"), "NFKC": _form("NFKC"), "NFKD": _form("NFKD"), "Lowercase": _lowercase,
    "Precompiled": _precompiled, "Strip": _strip, "StripAccents": _strip_accents, "Replace": _replace, "Prepend": _prepend,
}  # fmt: skip
