"""Pre-tokens: the pieces that a text is split into before any merging, and where a long text may be cut.

A regular expression splits the text from left to right; no merge ever crosses the pieces. What it does not match is a piece
too, so that nothing is lost.

A text is *cut* into chunks for three reasons: to stream it, to share it among processes, and to hold few pieces at a time. A
cut must not change the split, so it has to lie where the pattern always ends a piece, whatever comes before and after.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import regex

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _LLAMA3,  # Llama 3 took GPT-4's
    "llama3": _LLAMA3,
}

# In all of them a letter ends its piece unless a letter follows, and no piece goes on with a space after something else.
_CUT = r"(?<=\p{L})(?=[^\p{L}\p{M}\p{N}'’])|(?<=\S)(?= )"

CHUNK = 2**16  # characters: the pieces of a chunk fit into the processor's cache


class Splitter:
    """Splits texts by a pattern.

    Parameters
    ----------
    pattern : str
        A name in PATTERNS, or a regular expression of the `regex` package.
    cut : str, optional
        Matches, emptily, where a text may be cut, if `pattern` matches all of any text. The named patterns know theirs; for
        other ones a text is cut at special tokens only.
    """

    def __init__(self, pattern: str, cut: str | None = None) -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"pattern must be a string, not {type(pattern).__name__}")
        self.pattern = PATTERNS.get(pattern, pattern)
        cut = _CUT if self.pattern in PATTERNS.values() else cut
        try:
            split = regex.compile(self.pattern)
        except regex.error as error:
            names = ", ".join(PATTERNS)
            raise ValueError(f"pattern is {pattern!r}, but must be {names} or a regular expression: {error}") from error
        self._all = split.findall if cut else _every_piece(split)
        self._ascii = re.compile(_for_ascii(self.pattern), re.ASCII).findall if cut else self._all
        self._cut = regex.compile(cut).search if cut else None

    def split(self, text: str) -> list[str]:
        """The pieces of a text; joined, they are the text."""
        return self._ascii(text) if text.isascii() else self._all(text)

    def chunks(self, texts: Iterable[str], special: "SpecialTokens | None" = None, size: int = CHUNK) -> Iterator[str]:
        """A stream of text in chunks of at least `size` characters that can be split one by one.

        Parameters
        ----------
        texts : iterable of str
            Parts of one text, cut anywhere.
        special : SpecialTokens, optional
            Are never cut through.
        size : int
            The last chunk may be shorter; one without a place to cut it is as long as it must be.
        """
        held, length, enough = [], 0, size
        for text in texts:
            held.append(text)
            length += len(text)
            if length > enough:
                start = 0
                text = "".join(held)
                while end := self._next_cut(text, start, size, special):
                    yield text[start:end]
                    start = end
                held, length = [text[start:]], len(text) - start
                enough = max(size, 2 * length)  # where nothing could be cut, looking again is worth it only later
        if length:
            yield "".join(held)

    def _next_cut(self, text: str, start: int, size: int, special: "SpecialTokens | None") -> int | None:
        """The first place from `start + size` on where `text` may be cut, if all that could forbid it can be seen."""
        longest = special.longest if special else 0
        least = start + max(size, longest + 1)
        found = self._cut(text, least) if self._cut else None
        end = found.start() if found else len(text)
        for begin, stop in special.spans(text, start) if special else ():
            if end < begin:
                break
            if begin > start and (end <= stop or begin >= least):  # before a special token, never in or after it
                end = begin
                break
        return end if end <= len(text) - max(longest, 1) else None


class SpecialTokens:
    """Finds special tokens in a text, the longest first."""

    def __init__(self, tokens: Iterable[str]) -> None:
        tokens = sorted(tokens, key=len, reverse=True)
        self.longest = len(tokens[0])
        self._find = re.compile("|".join(map(re.escape, tokens)))

    def first(self, text: str) -> str | None:
        """The first special token in a text."""
        found = self._find.search(text)
        return found.group() if found else None

    def spans(self, text: str, start: int = 0) -> Iterator[tuple[int, int]]:
        """Where they are."""
        return (found.span() for found in self._find.finditer(text, start))


def _every_piece(pattern: regex.Pattern) -> Callable[[str], list[str]]:
    """As findall, but whatever the pattern's groups are, and what is not matched is a piece as well."""

    def split(text: str) -> list[str]:
        pieces, end = [], 0
        for found in pattern.finditer(text):
            pieces += [text[end : found.start()], found.group()]
            end = found.end()
        return [piece for piece in [*pieces, text[end:]] if piece]

    return split


def _for_ascii(pattern: str) -> str:
    """The same pattern for texts of ASCII alone, which Python's own `re` splits twice as fast."""
    return pattern.replace(r"\p{L}\p{N}]", "A-Za-z0-9]").replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]")
