"""Parse a regular expression into a tree, by the rules of its language."""

import re
from dataclasses import replace

from numllama.tokenizer.character_classes import MOST_DEPTH, ClassParser, Flags
from numllama.tokenizer.expressions import (
    ANYTHING,
    END,
    NEWLINE,
    NOT_NEWLINE,
    ONIGURUMA,
    REGEX,
    START,
    Alternatives,
    Atomic,
    Look,
    Refused,
    Repeat,
    Sequence,
    Set,
    characters,
    size,
    takes_nothing,
)

MOST_CHARACTERS = 10_000
MOST_NODES = 20_000  # with each repetition expanded

LINE_BREAK = Atomic(Alternatives((Sequence((characters("\r"), NEWLINE)), characters("\n\v\f\r\x85\u2028\u2029"))))
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

LIGATURES = ("ss", "st", "ff", "fi", "fl")  # with "ignore case", Oniguruma also matches single characters for these pairs


def parse(text: str, language: str) -> object:
    """Parse a pattern into a tree.

    Parameters
    ----------
    text : str
    language : str
        ``Oniguruma`` or ``regex``: the syntax of the pattern.

    Raises
    ------
    Refused
        If it is not a regular expression, uses unsupported syntax, or is too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"it has {len(text):,} characters, but at most {MOST_CHARACTERS:,} are read")
    tree = _Parser(text, language).pattern()
    if size(tree) > MOST_NODES:
        raise Refused("its repetitions are too many")
    return tree


class _Parser(ClassParser):
    def pattern(self) -> object:
        tree = self.alternatives(Flags())
        if self.at < len(self.text):
            raise Refused(f"an unmatched ) (at character {self.at + 1})")
        return tree

    def alternatives(self, flags: Flags) -> object:
        """Parse alternatives up to the group's end."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Refused("its groups are nested too deeply")
        parts = [self.sequence(flags)]
        while self.take("|"):
            parts.append(self.sequence(flags))
        self.depth -= 1
        return parts[0] if len(parts) == 1 else Alternatives(tuple(parts))

    def sequence(self, flags: Flags) -> object:
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

    def rest_of_group(self, flags: Flags, begin: int) -> object:
        """The rest of a group after ``(?i)``; in Oniguruma all of it, including alternatives, is a nested group."""
        if not self.oniguruma and begin > 0:
            raise self.refuse("a flag that is not at the beginning")
        return self.alternatives(flags)

    def flagged(self, found: re.Match, flags: Flags) -> Flags:
        """The flags after switching some on and others off."""
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

    def atom(self, flags: Flags) -> object:
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

    def group(self, flags: Flags) -> object:
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
                raise self.refuse("a group, other than (?:...), in a lookbehind")
        return node

    def plain_group(self) -> bool:
        return not self.ahead("(?") and not self.ahead("(*") and self.take("(")

    def check_behind(self, node: object) -> None:
        """Refuse lookbehind at anything but characters and their repetitions; engines differ in what else they allow."""
        if isinstance(node, Sequence | Alternatives):
            for part in node.parts:
                self.check_behind(part)
        elif isinstance(node, Repeat) and node.how == "greedy" and node.most is not None:
            self.check_behind(node.part)
        elif not isinstance(node, Set):
            raise self.refuse("this lookbehind")

    def repeated(self, atom: object) -> object:
        """An atom with its quantifiers, if any."""
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
                raise Refused(f"a repetition that matches no character (at character {begin + 1})")
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

    def escape(self, flags: Flags) -> object:
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
