"""Long texts cut into chunks that can be split and encoded one by one, and the special tokens that are not cut through."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from typing import Any, Protocol

CHUNK = 2**14  # characters: the pieces of a chunk fit into the processor's cache
PREFIX, PREFIXES = 3, 64  # characters and number of the beginnings that a search for special tokens looks for

Search = Callable[[str, int], Any]  # to a match, of `re` or `regex`, or None


class Finder(Protocol):
    """Finds tokens in a text; `longest` is the length of the longest one."""

    longest: int

    def spans(self, text: str, start: int, end: int, /) -> Iterator[Any]:
        """Where they are, as tuples that begin with start and stop."""
        ...


class SpecialTokens:
    """Finds special tokens in a text, the longest first, however many there are.

    A regular expression finds their first characters, and a table says which token that is.
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
        """Where they are between two places."""
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
    """A stream of text in chunks of at least `size` characters that can be split one by one.

    Parameters
    ----------
    texts : iterable of str
        Parts of one text, cut anywhere.
    cut : function, optional
        From a text and a place to the next match at which the text may be cut. Without one it is cut at special tokens only.
    special : SpecialTokens, optional
        Split a text wherever they are: it may always be cut before them, and is never cut through or right behind them.
    size : int
        The last chunk may be shorter; one without a place to cut it is as long as it must be.
    whole : SpecialTokens, optional
        Strings that are not cut through, nor next to them.
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
            enough = max(size, 2 * length)  # where nothing could be cut, looking again is worth it only later
    if length:
        yield "".join(held)


def next_cut(
    text: str, start: int, size: int, cut: Search | None, special: Finder | None = None, whole: Finder | None = None
) -> int | None:
    """The first place from `start + size` on where `text` may be cut, if all that could forbid it can be seen."""
    longest = max([finder.longest for finder in (special, whole) if finder], default=0)
    least = start + max(size, longest + 1)
    end = _found(text, least, cut)
    seen, again = {True: start, False: start}, True
    while again:
        again = False
        for begin, stop, splits in _spans(text, seen, end + longest, special, whole):
            if end < begin:
                break
            seen[splits] = stop
            if splits and begin > start and (end <= stop or begin >= least):  # before a special token, never in or after it
                end = begin
                break
            if end <= stop:  # the white space behind the first token is its own
                end, again = _found(text, stop + 1, cut), True
                break
    return end if end < len(text) - longest else None  # a token there, and what stands behind it, can be seen


def _found(text: str, start: int, cut: Search | None) -> int:
    found = cut(text, start) if cut else None
    return found.start() if found else len(text)


def _spans(
    text: str, seen: dict[bool, int], end: int, special: Finder | None, whole: Finder | None
) -> Iterator[tuple[int, int, bool]]:
    """Where tokens are from what has been seen on, and whether the text is split there."""
    spans = [((a, b, True) for a, b, *_ in special.spans(text, seen[True], end))] if special else []
    spans += [((a, b, False) for a, b, *_ in whole.spans(text, seen[False], end))] if whole else []
    return merge(*spans)
