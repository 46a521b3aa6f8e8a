r"""Regular expressions as trees, the same for both languages.

A ``tokenizer.json`` speaks Oniguruma's language, people speak that of Python's `regex`; the same signs may mean different things:

                    Oniguruma                     regex
    a{1,3}+         (a{1,3})+, one or more        at most three, never given back
    ^ $             of each line                  of the text
    (?m:.)          a dot takes line feeds        ^ and $ are those of lines
    [a-c&&b-d]      what both have                a, b, c, & and d
    \h \pL          a hexadecimal digit; p, L     a space; a letter

So a pattern is parsed by the rules of its language (:mod:`numllama.tokenizer.parsing`), into a tree that is free of them, and
written again from that tree, for the engine that runs it or for the file that it is saved in
(:mod:`numllama.tokenizer.rewriting`). What the tree cannot hold is refused by name, and so is what would take too much time or
memory to compile.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

ONIGURUMA, REGEX = "Oniguruma", "regex"


class Property(NamedTuple):
    """A class of characters that has a name."""

    name: str
    negated: bool


class Range(NamedTuple):
    """Characters from the first to the last; one character is a range of its own."""

    first: str
    last: str


@dataclass(frozen=True)
class Set:
    """One character: any of these properties, ranges and sets, and of all of the others in `both`; or, `negated`, any other."""

    items: tuple = ()
    negated: bool = False
    both: tuple = ()


@dataclass(frozen=True)
class Sequence:
    """One after another."""

    parts: tuple = ()


@dataclass(frozen=True)
class Alternatives:
    """The first that matches."""

    parts: tuple


@dataclass(frozen=True)
class Repeat:
    """From `least` to `most` times (None: any number); `how` is greedy, lazy or possessive."""

    part: object
    least: int
    most: int | None
    how: str = "greedy"


@dataclass(frozen=True)
class Atomic:
    """Nothing of it is given back."""

    part: object


@dataclass(frozen=True)
class Look:
    """What stands ahead, or behind; or, `negated`, does not."""

    part: object
    behind: bool = False
    negated: bool = False


@dataclass(frozen=True)
class Edge:
    """The start of the text, or its end."""

    end: bool


def characters(text: str) -> Set:
    """Any of some characters."""
    return Set(tuple(Range(c, c) for c in text))


START, END = Edge(end=False), Edge(end=True)
NEWLINE = characters("\n")
NOT_NEWLINE = replace(NEWLINE, negated=True)
ANYTHING = Set((Range("\0", "\U0010ffff"),))

# How the tree names classes, by how each language does: both engines have all of them, with the same characters.
CATEGORIES = (
    "L", "Lu", "Ll", "Lt", "Lm", "Lo", "LC", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No", "P", "Pc", "Pd", "Ps", "Pe",
    "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z", "Zs", "Zl", "Zp", "C", "Cc", "Cf", "Cn", "Co",
)  # fmt: skip
LONG_NAMES = {
    "letter": "L", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt", "modifierletter": "Lm",
    "otherletter": "Lo", "mark": "M", "nonspacingmark": "Mn", "spacingmark": "Mc", "enclosingmark": "Me", "number": "N",
    "decimalnumber": "Nd", "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P", "symbol": "S",
    "separator": "Z", "other": "C", "whitespace": "Space", "space": "Space", "alphabetic": "Alphabetic", "alpha": "Alphabetic",
    "uppercase": "Uppercase", "lowercase": "Lowercase",
}  # fmt: skip
SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Bopomofo", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek", "Gujarati",
    "Gurmukhi", "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer", "Lao", "Latin", "Malayalam",
    "Mongolian", "Myanmar", "Oriya", "Sinhala", "Tamil", "Telugu", "Thai", "Tibetan",
)  # fmt: skip
PROPERTIES = {name.lower(): name for name in (*CATEGORIES, *SCRIPTS)} | LONG_NAMES
POSIX = {"alpha": "Alphabetic", "upper": "Uppercase", "lower": "Lowercase", "space": "Space", "cntrl": "Cc", "word": "Word"}
ONIGURUMAS_POSIX = {"digit": "Nd"}


class Refused(ValueError):
    """A pattern, or a part of one, that cannot be honoured."""


def size(node: object) -> int:
    """How many characters and edges a pattern looks at, with each repetition written out."""
    if isinstance(node, Sequence | Alternatives):
        return 1 + sum(map(size, node.parts))
    if isinstance(node, Repeat):
        return size(node.part) * max(node.most or 0, node.least, 1)
    return size(node.part) if isinstance(node, Atomic | Look) else 1


def may_be_empty(node: object) -> bool:
    """Whether a pattern may match nothing at all."""
    if isinstance(node, Sequence):
        return all(map(may_be_empty, node.parts))
    if isinstance(node, Alternatives):
        return any(map(may_be_empty, node.parts))
    if isinstance(node, Repeat):
        return node.least == 0 or may_be_empty(node.part)
    return may_be_empty(node.part) if isinstance(node, Atomic) else not isinstance(node, Set)


def takes_nothing(node: object) -> bool:
    """Whether all that a pattern matches is empty."""
    if isinstance(node, Sequence | Alternatives):
        return all(map(takes_nothing, node.parts))
    return takes_nothing(node.part) if isinstance(node, Repeat | Atomic) else not isinstance(node, Set)
