r"""Regular expressions as trees, independent of their syntax.

A ``tokenizer.json`` uses Oniguruma's syntax, Python code that of `regex`; the same characters may mean different things:

                    Oniguruma                     regex
    a{1,3}+         (a{1,3})+, one or more        at most three, possessive
    ^ $             of each line                  of the text
    (?m:.)          a dot matches line feeds      ^ and $ are those of lines
    [a-c&&b-d]      the intersection              a, b, c, & and d
    \h \pL          a hexadecimal digit; p, L     a space; a letter

So a pattern is parsed by the rules of its language (:mod:`numllama.tokenizer.parsing`) into a neutral tree, and written from
that tree for the engine that runs it or the file that stores it (:mod:`numllama.tokenizer.rewriting`). Unsupported syntax
is refused by name, and so are patterns that would take too much time or memory to compile.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

ONIGURUMA, REGEX = "Oniguruma", "regex"


class Property(NamedTuple):
    """A named class of characters."""

    name: str
    negated: bool


class Range(NamedTuple):
    """Characters from the first to the last; a single character is a range too."""

    first: str
    last: str


@dataclass(frozen=True)
class Set:
    """One character in any of `items` (properties, ranges, sets) and in every set of `both`; `negated`: any other character."""

    items: tuple = ()
    negated: bool = False
    both: tuple = ()


@dataclass(frozen=True)
class Sequence:
    """Parts in sequence."""

    parts: tuple = ()


@dataclass(frozen=True)
class Alternatives:
    """The first part that matches."""

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
    """A group without backtracking."""

    part: object


@dataclass(frozen=True)
class Look:
    """Lookahead, or lookbehind (`behind`); `negated`: the part must not match."""

    part: object
    behind: bool = False
    negated: bool = False


@dataclass(frozen=True)
class Edge:
    """The start of the text, or its end."""

    end: bool


def characters(text: str) -> Set:
    """A set of single characters."""
    return Set(tuple(Range(c, c) for c in text))


START, END = Edge(end=False), Edge(end=True)
NEWLINE = characters("\n")
NOT_NEWLINE = replace(NEWLINE, negated=True)
ANYTHING = Set((Range("\0", "\U0010ffff"),))

# Names of classes in the tree, by their names in patterns. Both engines have all of them, with the same characters.
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
    """A pattern, or a part of one, that is not supported."""


def size(node: object) -> int:
    """Number of characters and edges in a pattern, with each repetition expanded."""
    if isinstance(node, Sequence | Alternatives):
        return 1 + sum(map(size, node.parts))
    if isinstance(node, Repeat):
        return size(node.part) * max(node.most or 0, node.least, 1)
    return size(node.part) if isinstance(node, Atomic | Look) else 1


def may_be_empty(node: object) -> bool:
    """Whether a pattern may match the empty string."""
    if isinstance(node, Sequence):
        return all(map(may_be_empty, node.parts))
    if isinstance(node, Alternatives):
        return any(map(may_be_empty, node.parts))
    if isinstance(node, Repeat):
        return node.least == 0 or may_be_empty(node.part)
    return may_be_empty(node.part) if isinstance(node, Atomic) else not isinstance(node, Set)


def takes_nothing(node: object) -> bool:
    """Whether a pattern matches only the empty string."""
    if isinstance(node, Sequence | Alternatives):
        return all(map(takes_nothing, node.parts))
    return takes_nothing(node.part) if isinstance(node, Repeat | Atomic) else not isinstance(node, Set)
