"""The parts of a regular expression that match one character: escapes, classes such as ``[a-z]`` or ``\\p{L}``, and case."""

import re
from dataclasses import dataclass, replace
from typing import Any

from numllama.errors import shown
from numllama.tokenizer.expressions import (
    ONIGURUMA,
    ONIGURUMAS_POSIX,
    POSIX,
    PROPERTIES,
    Property,
    Range,
    Refused,
    Set,
    characters,
)

MOST_DEPTH = 50
HEXADECIMAL = (Range("0", "9"), Range("A", "F"), Range("a", "f"))
ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
# With "ignore case", these letters have a third form.
FORMS = {"k": "kK\u212a", "s": "sS\u017f"}


@dataclass(frozen=True)
class Flags:
    """The switches of a pattern: ``(?i)``, ``(?s)`` and ``(?m)`` in `regex`."""

    ignore_case: bool = False
    dot_all: bool = False
    lines: bool = False


class ClassParser:
    """Reads a pattern from left to right; this part of the parser handles characters and character classes."""

    def __init__(self, text: str, language: str) -> None:
        self.text, self.language, self.at, self.depth, self.groups = text, language, 0, 0, 0
        self.oniguruma = language == ONIGURUMA

    # -------------------------------------------------------------------------------------------- reading

    def refuse(self, what: str) -> Refused:
        return Refused(f"{what} (at character {self.at + 1}) is not known here")

    def ahead(self, some: str) -> bool:
        return self.text.startswith(some, self.at)

    def take(self, some: str) -> bool:
        """Skip `some` if it comes next; returns whether it did."""
        found = self.ahead(some)
        self.at += len(some) if found else 0
        return found

    def take_match(self, pattern: str) -> re.Match | None:
        found = re.compile(pattern, re.ASCII).match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def next(self) -> str:
        if self.at == len(self.text):
            raise Refused("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    # -------------------------------------------------------------------------------------------- characters

    def cased(self, chosen: Set, flags: Flags) -> Set:
        """Add the other case of each character, with "ignore case"."""
        if not flags.ignore_case:
            return chosen
        if chosen.both or any(isinstance(item, Set) and item.negated for item in chosen.items):
            raise self.refuse("a set of sets without regard to case")
        forms = []
        for item in chosen.items:
            if isinstance(item, Set):
                forms.append(self.cased(item, flags))
            elif isinstance(item, Property):
                if item.name not in ("Space", "Nd"):
                    raise self.refuse(f"the class {item.name} without regard to case")
                forms.append(item)
            elif max(item) > "\x7f" and item.last < "\U0010ffff":
                raise self.refuse(f"{shown(item.last)} without regard to case")
            else:
                forms += [item, *self.other_forms(item)]
        return replace(chosen, items=tuple(forms))

    def other_forms(self, item: Range) -> list[Range]:
        letters = [chr(i) for i in range(ord(item.first), min(ord(item.last), 127) + 1) if chr(i).isalpha()]
        forms = "".join(FORMS.get(letter.lower(), letter.swapcase()) for letter in letters)
        return [Range(c, c) for c in forms if not item.first <= c <= item.last]

    def word(self) -> Property:
        return Property("Word of Oniguruma" if self.oniguruma else "Word", negated=False)

    def escaped(self, in_bracket: bool) -> tuple[Any, ...]:
        r"""The meaning of a backslash and the character after it: one item, or several for ``\h``."""
        sign = self.next()
        if sign in "dDsSwW":
            word = Property("Word", False) if in_bracket else self.word()
            found = {"d": Property("Nd", False), "s": Property("Space", False), "w": word}[sign.lower()]
            return (found._replace(negated=sign.isupper()),)
        if sign in "pP":
            return self.property(sign == "P")
        if sign in "hH" and self.oniguruma:
            return HEXADECIMAL if sign == "h" else (Set(HEXADECIMAL, negated=True),)
        if code := self.code(sign):
            return characters(code).items
        if sign == "0" and self.take_match("[0-7]"):
            raise self.refuse("an octal number")
        if sign in ESCAPED:
            return characters(ESCAPED[sign]).items
        reserved = "123456789bBcCgGkKMoRuUxXyYNO" if self.oniguruma else ""
        if sign in reserved or (not self.oniguruma and sign.isascii() and sign.isalnum()):
            raise self.refuse(f"\\{sign}")
        return characters(sign).items

    def code(self, sign: str) -> str | None:
        """The character given by its number, as in ``\\x41``."""
        forms = {"x": r"\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2})", "u": r"([0-9A-Fa-f]{4})"}
        forms |= {} if self.oniguruma else {"U": r"([0-9A-Fa-f]{8})"}
        found = self.take_match(forms[sign]) if sign in forms else None
        if found is None:
            return None
        number = int(next(filter(None, found.groups())), 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000 or (self.oniguruma and found.lastindex == 2 and number > 0x7F):
            raise self.refuse(f"\\{sign}{found[0]}")
        return chr(number)

    def property(self, negated: bool) -> tuple[Any, ...]:
        if found := self.take_match(r"\{(\^?)([^}]*)\}"):
            turned, name = found[1] == "^", found[2]
        elif self.oniguruma:
            return characters("P" if negated else "p").items
        else:
            turned, name = False, self.next()
        known = PROPERTIES.get(re.sub(r"[ _-]", "", name).lower())
        if known is None:
            raise self.refuse(f"the class {shown(name)}")
        return (Property(known, negated != turned),)

    def bracket(self, flags: Flags) -> Set:
        """A set in brackets; the opening one has been read."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Refused("its sets are nested too deeply")
        negated, items, both = self.take("^"), [], []
        if self.ahead("]") and "]" in self.text[self.at + 1 :]:  # the first one is a character
            items += self.range_from(self.next())
        while not self.take("]"):
            if found := self.take_match(r"\[:(\^?)(\w+):\]"):
                items.append(self.posix(found))
                self.check_no_range()
            elif self.ahead("["):
                if not self.oniguruma:
                    raise self.refuse("[ in a set: write \\[; it")
                self.at += 1
                items += self.inner(self.bracket(Flags()))
            elif found := self.take_match(r"&&|--|\|\||~~"):
                if not self.oniguruma:
                    raise self.refuse(f"{found[0]} in a set")
                if found[0] == "&&":
                    both.append(Set(tuple(items)))
                    items = []
                else:
                    self.at -= 1
                    items += self.range_from(found[0][0])
            elif self.take("\\"):
                item, *others = self.escaped_in_set()
                if isinstance(item, Range) and not others:
                    items += self.range_from(item.first)
                else:
                    items += item, *others
                    self.check_no_range()
            else:
                items += self.range_from(self.next())
        if not items and not both:
            raise Refused(f"an empty set (at character {self.at})")
        self.depth -= 1
        return self.cased(Set(tuple(items), negated, tuple(both)), flags)

    def inner(self, nested: Set) -> tuple[Any, ...]:
        """A set within a set, without brackets if it needs none."""
        if nested.both:
            return (nested,)
        if not nested.negated:
            return nested.items
        item, *others = nested.items
        if others or not isinstance(item, Property):
            return (nested,)
        return (item._replace(negated=not item.negated),)

    def check_no_range(self) -> None:
        if self.ahead("-") and not self.ahead("-]"):
            raise self.refuse("- after a class: write \\-; it")

    def escaped_in_set(self) -> tuple[Any, ...]:
        if self.ahead("b") or (self.oniguruma and (self.ahead("R") or self.ahead("X"))):
            raise self.refuse(f"\\{self.next()} in a set")
        return self.escaped(in_bracket=True)

    def posix(self, found: re.Match) -> Property:
        name = (POSIX | (ONIGURUMAS_POSIX if self.oniguruma else {})).get(found[2])
        if name is None:
            raise self.refuse(found[0])
        return Property(name, found[1] == "^")

    def range_from(self, first: str) -> list[Range]:
        """A character, or a range that begins with it."""
        if not (self.ahead("-") and self.text[self.at + 1 : self.at + 2] not in ("]", "")):
            return [Range(first, first)]
        self.at += 1
        if self.ahead("[") or self.ahead("&&") or self.ahead("-"):
            raise self.refuse("- between sets")
        last = self.next()
        if last == "\\":
            item, *others = self.escaped_in_set()
            if others or not isinstance(item, Range):
                raise self.refuse("a class at the end of a range")
            last = item.first
        if last < first:
            raise Refused(f"the range {shown(first + '-' + last)} ends before it begins")
        return [Range(first, last)]
