"""Special tokens spelled in messages: find them in a conversation's text, so that they remain ordinary text.

A template mixes its own text with the messages', which it may trim, cut and compare. So the tokens spelled in messages are
surrounded by marks, characters that occur nowhere else, and the conversation is rendered a second time: the marks show where the
tokens are. They are right if the text without marks equals the plain rendering; the caller compares the two.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from numllama.tokenizer.patterns import SpecialTokens

Spans = list[tuple[int, int]]
_PRIVATE = range(0xE000, 0xF900)


class Tokens:
    """Strings to find in messages.

    Parameters
    ----------
    tokens : collection of str
    """

    def __init__(self, tokens: Collection[str]) -> None:
        self.tokens = frozenset(tokens)
        self._find = SpecialTokens(self.tokens) if tokens else None
        self._begins = sorted(self.tokens)
        self._ends = sorted(token[::-1] for token in self.tokens)

    def spans(self, text: str) -> Iterable[tuple[int, int]]:
        """The tokens' spans in a text."""
        return self._find.spans(text) if self._find else ()

    def found(self, text: str) -> list[str]:
        """The tokens that a text spells."""
        return [text[start:stop] for start, stop in self.spans(text)]

    def marked(self, text: str, marks: "Marks") -> str:
        """The text with a mark on either side of each token, and at either end if it may hold part of a token."""
        if not text or not self._find:
            return text
        marked = self._changed(text, lambda token: f"{marks.begin}{token}{marks.end}")
        before = marks.edge if self._half(text[::-1], self._ends) else ""
        return f"{before}{marked}{marks.edge if self._half(text, self._begins) else ''}"

    def covered(self, text: str, marks: "Marks") -> str:
        """The text with each character of a token replaced by a mark."""
        return self._changed(text, lambda token: marks.begin * len(token))

    def _changed(self, text: str, change: Callable[[str], str]) -> str:
        pieces, end = [], 0
        for start, stop in self.spans(text):
            pieces += [text[end:start], change(text[start:stop])]
            end = stop
        return "".join([*pieces, text[end:]])

    def _half(self, text: str, tokens: list[str]) -> bool:
        """Whether a text ends with the beginning of a token."""
        assert self._find is not None  # there are tokens
        for n in range(1, min(self._find.longest, len(text) + 1)):
            at = bisect_right(tokens, text[-n:])
            if at < len(tokens) and tokens[at].startswith(text[-n:]):
                return True
        return False


@dataclass(frozen=True)
class Marks:
    """Three characters that occur nowhere else."""

    begin: str
    end: str
    edge: str

    def __str__(self) -> str:
        return self.begin + self.end + self.edge

    def read(self, text: str, tokens: Collection[Tokens]) -> tuple[str, Spans]:
        """A marked text without its marks, and the spans of tokens in it; an empty span is a boundary that no token may cross.

        If a template has split a token, its marks no longer surround it.
        """
        parts = re.split(f"([{self}])", text)
        pieces, marks = parts[::2], ["", *parts[1::2], ""]
        spans, length = [], 0
        for piece, (before, after) in zip(pieces, pairwise(marks), strict=True):
            whole = before == self.begin and after == self.end and any(piece in part.tokens for part in tokens)
            if before:
                spans.append((length, length + len(piece) if whole else length))
            length += len(piece)
        return "".join(pieces), spans

    def compare(self, covered: str, text: str) -> Spans | None:
        """The spans of marks that cover tokens; None if anything else differs."""
        if len(covered) != len(text) or any(a not in (b, self.begin) for a, b in zip(covered, text, strict=True)):
            return None
        return [found.span() for found in re.finditer(f"{self.begin}+", covered)]


def unused(text: str, n: int) -> list[str]:
    """The first `n` private-use characters that do not occur in a text."""
    found = [character for character in map(chr, _PRIVATE) if character not in text][:n]
    if len(found) < n:
        raise ValueError("the messages hold each of Unicode's 6,400 characters for private use, of which a few are needed here")
    return found


@dataclass(frozen=True)
class Control:
    """The tokens that count only where a template writes them: in the assistant's messages, and in everything else.

    `strict`: raise an error if they cannot be distinguished.
    """

    assistant: Tokens
    others: Tokens
    strict: bool = True

    def spelled(self, values: Mapping[str, Any]) -> list[str]:
        """The tokens that values spell."""
        found: list[str] = []
        self.each(values, lambda tokens, text: found.extend(tokens.found(text)) or text)
        return found

    def marked(self, values: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
        """The values with their tokens marked."""
        return self.each(values, lambda tokens, text: tokens.marked(text, marks))

    def covered(self, values: Mapping[str, Any], marks: Marks) -> dict[str, Any]:
        """The values with marks in place of their tokens."""
        return self.each(values, lambda tokens, text: tokens.covered(text, marks))

    def each(self, values: Mapping[str, Any], change: Callable[[Tokens, str], str]) -> dict[str, Any]:
        """The values with each text changed, except the names of fields and the named special tokens."""
        changed = {}
        for name, value in values.items():
            if name == "messages":
                changed[name] = [
                    {
                        key: _each(item, self.assistant if message.get("role") == "assistant" else self.others, change)
                        for key, item in message.items()
                    }
                    for message in value
                ]
            else:
                changed[name] = value if name.endswith("_token") else _each(value, self.others, change)
        return changed


def _each(value: Any, tokens: Tokens, change: Callable[[Tokens, str], str]) -> Any:
    if isinstance(value, str):
        return change(tokens, value)
    if isinstance(value, Mapping):
        return {change(tokens, key) if tokens.found(key) else key: _each(item, tokens, change) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_each(item, tokens, change) for item in value]
    return value
