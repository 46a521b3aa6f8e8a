"""From the text of a regular expression to its tree, by the rules of the language that it is written in."""

import re
from dataclasses import dataclass, replace

from numllama.errors import shown
from numllama.tokenizer.expressions import (
    ANYTHING,
    END,
    NEWLINE,
    NOT_NEWLINE,
    ONIGURUMA,
    ONIGURUMAS_POSIX,
    POSIX,
    PROPERTIES,
    REGEX,
    START,
    Alternatives,
    Atomic,
    Look,
    Property,
    Range,
    Refused,
    Repeat,
    Sequence,
    Set,
    characters,
    size,
    takes_nothing,
)

MOST_CHARACTERS = 10_000
MOST_NODES = 20_000  # once each repetition is written out
MOST_DEPTH = 50

LINE_BREAK = Atomic(Alternatives((Sequence((characters("\r"), NEWLINE)), characters("\n\v\f\r\x85\u2028\u2029"))))
HEXADECIMAL = (Range("0", "9"), Range("A", "F"), Range("a", "f"))
AFTER_NEWLINE, BEFORE_NEWLINE = Look(NEWLINE, behind=True), Look(NEWLINE)
BEFORE_LAST_NEWLINE = Alternatives((END, Look(Sequence((NEWLINE, END)))))  # or at the end
ANCHORS = {
    (ONIGURUMA, "^"): Alternatives((START, Sequence((AFTER_NEWLINE, Look(END, negated=True))))),
    (ONIGURUMA, "$"): Alternatives((END, BEFORE_NEWLINE)),
    (ONIGURUMA, r"\Z"): BEFORE_LAST_NEWLINE,
    (REGEX, "^"): START,
    (REGEX, "$"): BEFORE_LAST_NEWLINE,
    (REGEX, r"\Z"): END,
    (REGEX, "^ of lines"): Alternatives((START, AFTER_NEWLINE)),
    (REGEX, "$ of lines"): Alternatives((END, BEFORE_NEWLINE)),
}

ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b", "0": "\0"}
# Under "ignore case" these letters have a third form.
FORMS = {"k": "kK\u212a", "s": "sS\u017f"}
LIGATURES = ("ss", "st", "ff", "fi", "fl")  # ... and of these pairs Oniguruma knows characters that are both


@dataclass(frozen=True)
class _Flags:
    ignore_case: bool = False
    dot_all: bool = False
    lines: bool = False


def parse(text: str, language: str) -> object:
    """The tree of a pattern.

    Parameters
    ----------
    text : str
    language : str
        ``Oniguruma`` or ``regex``: whose rules it is written by.

    Raises
    ------
    Refused
        If it is no regular expression, or one that this parser does not know, or one that is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"it has {len(text):,} characters, but at most {MOST_CHARACTERS:,} are read")
    tree = _Parser(text, language).pattern()
    if size(tree) > MOST_NODES:
        raise Refused("its repetitions are too many")
    return tree


class _Parser:
    def __init__(self, text: str, language: str) -> None:
        self.text, self.language, self.at, self.depth, self.groups = text, language, 0, 0, 0
        self.oniguruma = language == ONIGURUMA

    # -------------------------------------------------------------------------------------------- reading

    def refuse(self, what: str) -> Refused:
        return Refused(f"{what} (at character {self.at + 1}) is not known here")

    def ahead(self, some: str) -> bool:
        return self.text.startswith(some, self.at)

    def take(self, some: str) -> bool:
        """Step over what is expected, if it is there."""
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

    # -------------------------------------------------------------------------------------------- structure

    def pattern(self) -> object:
        tree = self.alternatives(_Flags())
        if self.at < len(self.text):
            raise Refused(f"an unmatched ) (at character {self.at + 1})")
        return tree

    def alternatives(self, flags: _Flags) -> object:
        """Up to the group's end."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Refused("its groups are nested too deeply")
        parts = [self.sequence(flags)]
        while self.take("|"):
            parts.append(self.sequence(flags))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def sequence(self, flags: _Flags) -> object:
        parts, letter = [], ""
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            begin = self.at
            if self.take("(?#"):
                self.comment()
                continue
            if found := self.take_match(r"\(\?(?=[a-zA-Z-])([a-zA-Z]*)(-[a-zA-Z]*)?\)"):
                parts.append(self.rest_of_group(self.flagged(found, flags), begin))
                break
            atom = self.atom(flags)
            before, letter = letter, self.text[begin] if self.at == begin + 1 else ""
            if self.oniguruma and flags.ignore_case and (before + letter).lower() in LIGATURES:
                raise self.refuse(f"{before + letter} without regard to case")
            parts.append(self.repeated(atom))
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def rest_of_group(self, flags: _Flags, begin: int) -> object:
        """What stands behind ``(?i)``: in Oniguruma all of it, alternatives too, is a group of its own."""
        if not self.oniguruma and begin > 0:
            raise self.refuse("a flag that is not at the beginning")
        return self.alternatives(flags)

    def flagged(self, found: re.Match, flags: _Flags) -> _Flags:
        """The flags with some switched on and others off."""
        known = {"i": "ignore_case"}
        known |= {"m": "dot_all"} if self.oniguruma else {"s": "dot_all", "m": "lines"}
        on, off = found[1], (found[2] or "-")[1:]
        for letter in on + off:
            if letter not in known:
                raise self.refuse(f"the flag {letter}")
        return replace(flags, **{known[letter]: True for letter in on} | {known[letter]: False for letter in off})

    def comment(self) -> None:
        if not self.take_match(r"[^)\\]*\)"):
            raise self.refuse("a comment without end")

    def atom(self, flags: _Flags) -> object:
        if self.ahead("("):
            return self.group(flags)
        if self.take("["):
            return self.bracket(flags)
        if self.take("\\"):
            return self.escape(flags)
        sign = self.next()
        if sign == ".":
            return ANYTHING if flags.dot_all else NOT_NEWLINE
        if sign in "^$":
            return ANCHORS[self.language, f"{sign} of lines" if flags.lines else sign]
        if sign in "*+?" or (sign == "{" and self.take_match(r"\d*,?\d*\}")):
            raise Refused(f"nothing stands before {sign} (at character {self.at})")
        if sign == "{" and not self.oniguruma:
            raise self.refuse("{ that is not a number of times: write \\{; it")
        return self.cased(characters(sign), flags)

    def group(self, flags: _Flags) -> object:
        kinds = {
            "(?:": lambda part: part, "(?>": Atomic, "(?=": Look, "(?!": lambda part: Look(part, negated=True),
            "(?<=": lambda part: Look(part, behind=True), "(?<!": lambda part: Look(part, behind=True, negated=True),
        }  # fmt: skip
        if found := self.take_match(r"\(\?([a-zA-Z]*)(-[a-zA-Z]*)?:"):
            made, flags = kinds["(?:"], self.flagged(found, flags)
        elif kind := next((kind for kind in sorted(kinds, key=len, reverse=True) if self.take(kind)), None):
            made = kinds[kind]
        elif self.take_match(r"\(\?<[A-Za-z_]\w*>" if self.oniguruma else r"\(\?P?<[A-Za-z_]\w*>") or self.plain_group():
            made = kinds["(?:"]
            self.groups += 1
        else:
            raise self.refuse(f"{self.text[self.at : self.at + 4]}...")
        groups = self.groups
        node = made(self.alternatives(flags))
        if not self.take(")"):
            raise Refused("a group is not closed")
        if isinstance(node, Look) and node.behind:
            self.check_behind(node.part)
            if self.groups > groups:
                raise self.refuse("a group, other than (?:...), that is looked for behind")
        return node

    def plain_group(self) -> bool:
        return not self.ahead("(?") and not self.ahead("(*") and self.take("(")

    def check_behind(self, node: object) -> None:
        """Looking back is the same everywhere for characters and their repetitions; engines differ in what else they allow."""
        if isinstance(node, Sequence | Alternatives):
            for part in node.parts:
                self.check_behind(part)
        elif isinstance(node, Repeat) and node.how == "greedy" and node.most is not None:
            self.check_behind(node.part)
        elif not isinstance(node, Set):
            raise self.refuse("what is looked for behind")

    def repeated(self, atom: object) -> object:
        """An atom and the number of times that it stands there."""
        while True:
            begin = self.at
            if self.at < len(self.text) and self.text[self.at] in "*+?":
                sign = self.next()
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
                how = "lazy" if self.take("?") else "possessive" if self.take("+") else "greedy"
            elif (found := self.take_match(r"\{(\d*)(,?)(\d*)\}")) and (found[1] or found[3]):
                least, most, how = self.interval(found)
            else:
                self.at = begin
                return atom
            parts = atom.parts if isinstance(atom, Alternatives) else (atom,)
            if any(takes_nothing(part) and part != Sequence() for part in parts):
                raise Refused(f"a repetition of what takes no character (at character {begin + 1})")
            if not self.oniguruma and isinstance(atom, Repeat) and self.text[begin - 1] in "*+?}":
                raise Refused(f"several repetitions of one thing (at character {begin + 1})")
            if isinstance(atom, Repeat) and "lazy" in (how, atom.how):
                raise self.refuse("a lazy repetition of a repetition")
            atom = Repeat(atom, least, most, how)

    def interval(self, found: re.Match) -> tuple[int, int | None, str]:
        if len(found[1]) > 6 or len(found[3]) > 6:
            raise Refused("its repetitions are too many")
        least = int(found[1] or 0)
        most = int(found[3]) if found[3] else None if found[2] else least
        if most is not None and least > most:
            raise self.refuse(f"{found[0]}, which ends before it begins,")
        if self.oniguruma:  # what + follows is a repetition of its own, and so is what ? follows, if the number is one
            return least, most, "lazy" if found[2] and self.take("?") else "greedy"
        return least, most, "lazy" if self.take("?") else "possessive" if self.take("+") else "greedy"

    # -------------------------------------------------------------------------------------------- characters

    def cased(self, chosen: Set, flags: _Flags) -> Set:
        """The same characters, large and small."""
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

    def escape(self, flags: _Flags) -> object:
        sign = self.next()
        edges = {"A": START, "z": END, "Z": ANCHORS[self.language, r"\Z"]}
        if self.oniguruma:
            edges |= {"N": NOT_NEWLINE, "O": ANYTHING, "R": LINE_BREAK}
        if sign in edges:
            return edges[sign]
        if sign in "bB":
            word = Set((self.word(),))
            sides = [(before, after) for before in (False, True) for after in (False, True) if (before != after) == (sign == "b")]
            looks = [(Look(word, behind=True, negated=not before), Look(word, negated=not after)) for before, after in sides]
            return Alternatives(tuple(map(Sequence, looks)))
        self.at -= 1
        return self.cased(Set(self.escaped(in_bracket=False)), flags)

    def word(self) -> Property:
        return Property("Word of Oniguruma" if self.oniguruma else "Word", negated=False)

    def escaped(self, in_bracket: bool) -> tuple:
        r"""What a backslash and a sign mean, wherever they stand: one item, or of ``\h`` several."""
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
        """The character whose number follows."""
        forms = {"x": r"\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2})", "u": r"([0-9A-Fa-f]{4})"}
        forms |= {} if self.oniguruma else {"U": r"([0-9A-Fa-f]{8})"}
        found = self.take_match(forms[sign]) if sign in forms else None
        if found is None:
            return None
        number = int(found[found.lastindex], 16)
        if number > 0x10FFFF or 0xD800 <= number < 0xE000 or (self.oniguruma and found.lastindex == 2 and number > 0x7F):
            raise self.refuse(f"\\{sign}{found[0]}")
        return chr(number)

    def property(self, negated: bool) -> tuple:
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

    def bracket(self, flags: _Flags) -> Set:
        """A set in brackets, of which the first is behind us."""
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
                items += self.inner(self.bracket(_Flags()))
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
                made = self.escaped_in_set()
                single = len(made) == 1 and isinstance(made[0], Range)
                items += self.range_from(made[0].first) if single else made
                if not single:
                    self.check_no_range()
            else:
                items += self.range_from(self.next())
        if not items and not both:
            raise Refused(f"an empty set (at character {self.at})")
        self.depth -= 1
        return self.cased(Set(tuple(items), negated, tuple(both)), flags)

    def inner(self, nested: Set) -> tuple:
        """A set in a set, without its brackets where it needs none."""
        if nested.both or (nested.negated and (len(nested.items) > 1 or not isinstance(nested.items[0], Property))):
            return (nested,)
        if nested.negated:
            return (nested.items[0]._replace(negated=not nested.items[0].negated),)
        return nested.items

    def check_no_range(self) -> None:
        if self.ahead("-") and not self.ahead("-]"):
            raise self.refuse("- after a class: write \\-; it")

    def escaped_in_set(self) -> tuple:
        if self.ahead("b") or (self.oniguruma and (self.ahead("R") or self.ahead("X"))):
            raise self.refuse(f"\\{self.next()} in a set")
        return self.escaped(in_bracket=True)

    def posix(self, found: re.Match) -> Property:
        name = (POSIX | (ONIGURUMAS_POSIX if self.oniguruma else {})).get(found[2])
        if name is None:
            raise self.refuse(found[0])
        return Property(name, found[1] == "^")

    def range_from(self, first: str) -> list:
        """A character, or a range that begins with it."""
        if not (self.ahead("-") and self.text[self.at + 1 : self.at + 2] not in ("]", "")):
            return [Range(first, first)]
        self.at += 1
        if self.ahead("[") or self.ahead("&&") or self.ahead("-"):
            raise self.refuse("- between sets")
        last = self.next()
        if last == "\\":
            made = self.escaped_in_set()
            if len(made) > 1 or not isinstance(made[0], Range):
                raise self.refuse("a class at the end of a range")
            last = made[0].first
        if last < first:
            raise Refused(f"the range {shown(first + '-' + last)} ends before it begins")
        return [Range(first, last)]
