"""Cut long texts into chunks that can be split and encoded one by one, without cutting through special tokens."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import Any, Protocol

CHUNK = 2**14  # characters: a chunk's pieces fit into the CPU cache
PREFIX, PREFIXES = 3, 64  # length and number of the prefixes in a search for special tokens

SPACES = re.compile(r"\s*").match

Search = Callable[[str, int], Any]  # returns a match of `re` or `regex`, or None


class Finder(Protocol):
    """Finds tokens in a text; `longest` is the length of the longest one."""

    longest: int

    def spans(self, text: str, start: int, end: int, /) -> Iterator[Any]:
        """The tokens' spans: tuples that begin with start and stop."""
        ...


class SpecialTokens:
    """Finds any number of special tokens in a text, preferring the longest.

    A regular expression finds their first characters, and a table lookup identifies the token.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = set(tokens)
        self.longest = max(map(len, self._tokens))
        lengths: dict[str, set[int]] = {}
        for token in self._tokens:
            lengths.setdefault(token[0], set()).add(len(token))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        beginnings = (sorted({token[:n] for token in self._tokens}) for n in range(PREFIX, 0, -1))
        few = next((some for some in beginnings if len(some) <= PREFIXES), None)
        everyone = f"[{''.join(map(re.escape, sorted(self._lengths)))}]"
        self._find = re.compile("|".join(map(re.escape, few)) if few else everyone).search

    def first(self, text: str) -> str | None:
        """The first special token in a text."""
        return next((text[start:stop] for start, stop in self.spans(text)), None)

    def spans(self, text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[tuple[int, int]]:
        """The tokens' spans between two positions."""
        end = min(end, len(text))
        while found := self._find(text, start, end):
            at = found.start()
            start = at + 1
            for length in self._lengths[text[at]]:
                if at + length <= end and text[at : at + length] in self._tokens:
                    start = at + length
                    yield at, start
                    break


def chunks(
    texts: Iterable[str], cut: Search | None, special: Finder | None = None, size: int = CHUNK, whole: Finder | None = None
) -> Iterator[str]:
    """Cut a stream of text into chunks of at least `size` characters that can be split one by one.

    Parameters
    ----------
    texts : iterable of str
        Parts of one text, cut anywhere.
    cut : function, optional
        Takes a text and a position, returns the next match at which to cut. Without it, the text is cut at special tokens only.
    special : SpecialTokens, optional
        Split the text wherever they occur: it may be cut before them, but never inside or right after them.
    size : int
        Minimum length. The last chunk may be shorter; a chunk without a place to cut is longer.
    whole : SpecialTokens, optional
        Strings that are never cut, inside or next to them.
    """
    held, length, enough = [], 0, size
    for text in texts:
        held.append(text)
        length += len(text)
        if length > enough:
            start = 0
            text = "".join(held)
            while end := next_cut(text, start, size, cut, special, whole):
                yield text[start:end]
                start = end
            held, length = [text[start:]], len(text) - start
            enough = max(size, 2 * length)  # if nothing could be cut, retry only after the text has doubled
    if length:
        yield "".join(held)


def next_cut(
    text: str, start: int, size: int, cut: Search | None, special: Finder | None = None, whole: Finder | None = None
) -> int | None:
    """The first position from `start + size` on at which `text` may be cut; None if later text could still forbid it."""
    longest = max([finder.longest for finder in (special, whole) if finder], default=0)
    least = start + max(size, longest + 1)
    end = _found(text, least, cut)
    seen, again = {True: start, False: start}, True
    while again:
        again = False
        for begin, stop, splits in _spans(text, seen, _behind_spaces(text, end) + longest, special, whole):
            if end < begin:
                break
            seen[splits] = stop
            alone = begin > max(start, seen[False])  # no token of `whole` ends here
            if splits and alone and (end <= stop or begin >= least):  # before a special token, never in or after it
                end = begin
                break
            if end <= stop:  # white space after the first token belongs to it
                end, again = _found(text, stop + 1, cut), True
                break
    # a token there, and the text after it, would be visible
    return end if _behind_spaces(text, end) < len(text) - longest else None


def _behind_spaces(text: str, at: int) -> int:
    """The end of the white space at a position, which the token behind it may absorb."""
    found = SPACES(text, at)
    return found.end() if found else at


def _found(text: str, start: int, cut: Search | None) -> int:
    found = cut(text, start) if cut else None
    return found.start() if found else len(text)


def _spans(
    text: str, seen: dict[bool, int], end: int, special: Finder | None, whole: Finder | None
) -> Iterator[tuple[int, int, bool]]:
    """The spans of tokens beyond those seen, in order, and whether the text is split there."""
    spans = [((a, b, True) for a, b, *_ in special.spans(text, seen[True], end))] if special else []
    spans += [((a, b, False) for a, b, *_ in whole.spans(text, seen[False], end))] if whole else []
    return merge(*spans)
