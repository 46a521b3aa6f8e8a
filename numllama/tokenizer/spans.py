"""Map each token to its characters in the text."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from numllama.tokenizer.added_tokens import Sought
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.core import between
from numllama.tokenizer.normalizers import Normalizer

STRETCH = re.compile(r"[\x00-\x7f]|[^\x00-\x7f]+")  # no Unicode form combines ASCII with a preceding character
SURROGATE = re.compile("[\ud800-\udfff]")
KNOWN_PIECES = 2**16  # pieces


def encode_spans(
    tokenizer: Tokenizer | CharTokenizer,
    text: str,
    allowed_special: str | tuple[str, ...] = (),
    cuts: Sequence[int] = (),
    plain: Sequence[tuple[int, int]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text, and the span of characters of each.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    text : str
    allowed_special : "all" or tuple of str
        As for :meth:`Tokenizer.encode`.
    cuts : sequence of int
        Sorted positions that no token crosses: the text before each has the same ids as on its own.
    plain : sequence of (int, int)
        Sorted spans that no special token overlaps; an empty span is not crossed by any.

    Returns
    -------
    ids : integer array, shape (n,)
    spans : integer array, shape (n, 2)
        Start and end (exclusive). Byte tokens of one character have the same span. A space that the tokenizer puts in front
        of a text belongs to the first character. Normalized characters have the span of all characters they come from.
    """
    if isinstance(tokenizer, CharTokenizer):
        characters = tokenizer.encode_array(text)
        return characters, np.arange(len(characters))[:, None] + [0, 1]
    text = SURROGATE.sub("\ufffd", text)  # as in `encode`, one for one, so positions are unchanged
    known = tokenizer.sought(text, allowed_special, "all")
    ids: list[Any] = [np.empty(0, dtype=np.int64)]
    spans: list[Any] = [np.empty((0, 2), dtype=np.int64)]
    end = 0
    for start, stop, i in [*_apart(tokenizer, known, text, plain), (len(text), len(text), None)]:
        for begin, until in pairwise([end, *(cut for cut in cuts if end < cut < start), start]):
            for part_ids, part_spans in _parts(tokenizer, known, text, begin, until, begin > end, plain):
                ids.append(part_ids)
                spans.append(part_spans)
        if i is not None:
            ids.append([i])
            spans.append([[start, stop]])
        end = stop
    return np.concatenate(ids), np.concatenate(spans)


def _apart(tokenizer: Tokenizer, known: Sought, text: str, plain: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """The spans of added tokens: special ones only outside `plain`, the others everywhere."""
    inside, at = tokenizer.sought("", (), ()).first, 0
    for start, stop in [*plain, (len(text), len(text))]:
        yield from known.first.spans(text, at, start) if known.first else ()
        yield from inside.spans(text, start, stop) if inside else ()
        at = stop


def _parts(
    tokenizer: Tokenizer, known: Sought, text: str, begin: int, until: int, goes_on: bool, plain: Sequence[tuple[int, int]]
) -> Iterator[tuple[np.ndarray | list, np.ndarray]]:
    """The ids and spans of a part of a text between added tokens."""
    written, places = normalized(tokenizer.layout.normalizer, text[begin:until], not goes_on)
    for a, b, piece in between(written, _then(tokenizer, known, written, begin + places, plain)):
        if isinstance(piece, int):
            ids, found = [piece], np.array([[0, b - a]])
        else:
            ids, found = _ordinary(tokenizer, piece, begin == a == 0, not (goes_on and a == 0))
        yield ids, begin + np.stack([places[a + found[:, 0], 0], places[a + found[:, 1] - 1, 1]], axis=1)


def _then(
    tokenizer: Tokenizer, known: Sought, written: str, places: np.ndarray, plain: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """The spans of added tokens in a normalized part."""
    special = set(tokenizer.special_tokens.values()) if plain else ()
    for a, b, i in known.then.spans(written) if known.then else ():
        start, stop = places[a, 0], places[b - 1, 1]
        if i not in special or not any(start < end and begin < stop for begin, end in plain):
            yield a, b, i


def normalized(normalizer: Normalizer, text: str, begins: bool = True) -> tuple[str, np.ndarray]:
    """A normalized text, and the original span of each of its characters."""
    written = normalizer(text, begins)
    if written == text:
        return written, np.arange(len(text))[:, None] + [0, 1]
    stretches = [found.span() for found in STRETCH.finditer(text)]
    parts = [normalizer(text[start:stop], begins and start == 0) for start, stop in stretches]
    if "".join(parts) != written:
        return written, np.array([(0, len(text))] * len(written)).reshape(-1, 2)
    places = []
    for (start, stop), part in zip(stretches, parts, strict=True):
        front = len(part) - len(normalizer(text[start:stop], begins=False))  # characters put before the text
        rest = len(part) - front
        places += [(start, start + 1)] * front
        places += [(i, i + 1) for i in range(start, stop)] if rest == stop - start else [(start, stop)] * rest
    return written, np.array(places).reshape(-1, 2)


def _ordinary(tokenizer: Tokenizer, text: str, first: bool, begins: bool) -> tuple[np.ndarray, np.ndarray]:
    """The ids and spans of a part without added tokens."""
    pieces = tokenizer.layout.pre_tokenizer.placed(text, first, begins)
    if not pieces:
        return np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.int64)
    tables = [_merged(tokenizer, piece) for piece, _, _ in pieces]
    ids, starts, ends = np.concatenate(tables).T
    places = np.repeat([(at, own) for _, at, own in pieces], list(map(len, tables)), axis=0)
    starts = np.maximum(starts + places[:, 0], places[:, 1])
    return ids, np.stack([starts, np.maximum(ends + places[:, 0], starts + 1)], axis=1)


def _merged(tokenizer: Tokenizer, piece: str) -> np.ndarray:
    """The tokens of a pre-token, cached."""
    known = tokenizer.placed_pieces
    if piece not in known:
        if len(known) >= KNOWN_PIECES:
            known.clear()
        known[piece] = np.array(tokenizer.placed(piece), dtype=np.int64).reshape(-1, 3)
    return known[piece]
