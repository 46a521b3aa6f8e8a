"""Pre-tokens: the pieces of a text before merging, and where a long text may be cut.

A regular expression splits the text from left to right; no merge crosses from one piece to the next. Unmatched text becomes
pieces too, so that nothing is lost, unless a `behavior` says otherwise. Patterns are Oniguruma's, as in a ``tokenizer.json``.

A text is *cut* into chunks for three reasons: to stream it, to share it among processes, and to hold few pieces at a time. A
cut must not change the split, so it has to lie where the pattern always ends a piece, in any context.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import regex

from numllama.errors import shown
from numllama.tokenizer.cutting import CHUNK, SpecialTokens, chunks
from numllama.tokenizer.expressions import ONIGURUMA, Refused, may_be_empty
from numllama.tokenizer.parsing import parse
from numllama.tokenizer.rewriting import compile_oniguruma, every_piece, to_oniguruma

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": _LLAMA3,  # Llama 3 uses GPT-4's
    "llama3": _LLAMA3,
    "qwen2": _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),
}

# In all of them a letter ends its piece unless a letter follows, and no piece has a space after another character.
CUT = r"(?<=\p{L})(?=[^\p{L}\p{M}\p{N}'’])|(?<=\S)(?= )"

SECONDS, SECONDS_PER_CHARACTER = 2.0, 2e-5  # a pattern that takes longer than this is considered endless
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")

Split = Callable[[str], list[str]]


class Splitter:
    """Splits texts by a pattern.

    Parameters
    ----------
    pattern : str
        A name in PATTERNS, or a regular expression of Oniguruma's.
    cut : str, optional
        Matches the empty string where a text may be cut. `pattern` must then match all of any text, and mean the same in
        Python's `re`. The named patterns have one; with other patterns, a text is cut at special tokens only.
    behavior : str
        How a match is split off: one of BEHAVIORS, as in `tokenizers`.
    invert : bool
        Swap matches and the text between them.
    """

    def __init__(self, pattern: str, cut: str | None = None, behavior: str = "Isolated", invert: bool = False) -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"pattern must be a string, not {type(pattern).__name__}")
        self._made = pattern, cut, behavior, invert
        self.pattern = PATTERNS.get(pattern, pattern)
        whole = behavior == "Isolated" or (behavior == "Removed" and invert)  # if the pattern matches all of any text
        cut = CUT if self.pattern in PATTERNS.values() else cut
        self.cut = cut if whole else None
        self.drops = behavior == "Removed" and not self.cut
        if cut and cut != CUT:
            self._all = self._ascii = re.compile(self.pattern).findall
        elif self.cut:
            self._all = regex.compile(self.pattern).findall
            self._ascii = re.compile(_for_ascii(self.pattern), re.ASCII).findall
        else:
            self._all = self._ascii = _split(self.pattern, behavior, invert)
        self._cut = regex.compile(self.cut).search if self.cut else None

    def __reduce__(self) -> tuple:
        return Splitter, self._made

    def split(self, text: str) -> list[str]:
        """The pieces of a text; joined, they are the text, unless `behavior` removes some."""
        return self._ascii(text) if text.isascii() else self._all(text)

    def chunks(self, texts: Iterable[str], special: SpecialTokens | None = None, size: int = CHUNK) -> Iterator[str]:
        """Cut a stream of text into chunks that can be split one by one: see :func:`numllama.tokenizer.cutting.chunks`."""
        return chunks(texts, self._cut, special, size)


def as_oniguruma(pattern: str) -> str:
    """Convert a pattern, given by name or as a regular expression of `regex`, to the form that a ``tokenizer.json`` needs."""
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, not {type(pattern).__name__}")
    if pattern in PATTERNS:
        return PATTERNS[pattern]
    try:
        return to_oniguruma(pattern)
    except Refused as error:
        raise _wrong(pattern, error) from error


def _wrong(pattern: str, error: Exception) -> ValueError:
    return ValueError(f"pattern is {shown(pattern)}, but must be {', '.join(PATTERNS)} or a regular expression: {error}")


# ------------------------------------------------------------------------------------------------ splitting


def _split(pattern: str, behavior: str, invert: bool) -> Split:
    """A function that splits by an arbitrary pattern."""
    try:
        empty = may_be_empty(parse(pattern, ONIGURUMA))
        compiled = compile_oniguruma(pattern) if empty or behavior != "Isolated" else every_piece(pattern)
    except Refused as error:
        raise _wrong(pattern, error) from error

    def split(text: str) -> list[str]:
        try:
            if behavior == "Isolated" and not empty:
                return compiled.findall(text, timeout=seconds(text))
            matches = _empty_too(compiled, text) if empty else compiled.finditer(text, timeout=seconds(text))
            return _joined(text, [found.span() for found in matches], behavior, invert)
        except TimeoutError as error:
            raise ValueError(f"the pattern {shown(pattern)} takes too long for a text of {len(text):,} characters") from error

    return split


def seconds(text: str) -> float:
    """Time limit for matching a pattern against a text."""
    return SECONDS + SECONDS_PER_CHARACTER * len(text)


def _empty_too(pattern: regex.Pattern, text: str) -> Iterator[regex.Match]:
    """Matches of a pattern that may be empty; after a match, Oniguruma advances by a character if the next one is empty."""
    at, end, limit = 0, None, seconds(text)
    while at <= len(text) and (found := pattern.search(text, at, timeout=limit)):
        if found.start() == found.end() == end:
            at += 1
            continue
        yield found
        at = end = found.end()


def _joined(text: str, matches: list[tuple[int, int]], behavior: str, invert: bool) -> list[str]:
    """The pieces of a text, from the matches in it and the text between them; none is empty."""
    parts, end = [], 0
    for begin, stop in matches:
        parts += [(end, begin, invert)] if begin > end else []
        parts.append((begin, stop, not invert))
        end = stop
    parts += [(end, len(text), invert)] if end < len(text) else []
    if behavior == "Removed":
        spans = [(begin, stop) for begin, stop, matched in parts if not matched]
    elif behavior == "Isolated":
        spans = [(begin, stop) for begin, stop, _ in parts]
    else:
        spans = _merged(parts, behavior)
    return [text[begin:stop] for begin, stop in spans if begin < stop]


def _merged(parts: list[tuple[int, int, bool]], behavior: str) -> list[tuple[int, int]]:
    """Merge adjacent parts: Contiguous joins parts of the same kind, the others join a match to the text before or after it."""
    backwards = behavior == "MergedWithNext"
    parts = parts[::-1] if backwards else parts
    spans: list[tuple[int, int]] = []
    for (_, _, before), (begin, stop, matched) in pairwise([(0, 0, False), *parts]):
        joins = matched == before if behavior == "Contiguous" else matched and not before
        if not (joins and spans):
            spans.append((begin, stop))
        elif backwards:
            spans[-1] = (begin, spans[-1][1])
        else:
            spans[-1] = (spans[-1][0], stop)
    return spans[::-1] if backwards else spans


def _for_ascii(pattern: str) -> str:
    """The same pattern for ASCII texts, which Python's `re` splits twice as fast."""
    return pattern.replace(r"\p{L}\p{N}]", "A-Za-z0-9]").replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]")
