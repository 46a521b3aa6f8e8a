"""Which characters of a text each of its tokens stands for."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer
from numllama.tokenizer.patterns import SpecialTokens


def encode_spans(
    tokenizer: Tokenizer | CharTokenizer,
    text: str,
    allowed_special: str | tuple[str, ...] = (),
    cuts: Sequence[int] = (),
    plain: Sequence[tuple[int, int]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text, and for each the place of its first character and of the one after its last.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    text : str
    allowed_special : "all" or tuple of str
        As :meth:`Tokenizer.encode` takes it.
    cuts : sequence of int
        Places, in order, that no token crosses: the text up to there has the ids that it has alone.
    plain : sequence of (int, int)
        Parts, in order, that no special token has a character of; one without length is not crossed by any.

    Returns
    -------
    ids : integer array, shape (n,)
    spans : integer array, shape (n, 2)
        Tokens that are bytes of one character have the same span. A space that the tokenizer puts in front of a text belongs
        to the first character.
    """
    if isinstance(tokenizer, CharTokenizer):
        ids = tokenizer.encode_array(text)
        return ids, np.arange(len(ids))[:, None] + [0, 1]
    special = tokenizer._allow(text, allowed_special, "all")
    ids, spans, end = [], [np.empty((0, 2), dtype=int)], 0
    for start, stop in [*(_apart(special, text, plain) if special else ()), (len(text), len(text))]:
        for begin, until in pairwise([end, *(cut for cut in cuts if end < cut < start), start]):
            part_ids, part_spans = _ordinary(tokenizer, text[begin:until], begin == 0, begin == end > 0)
            ids += part_ids.tolist()
            spans.append(begin + part_spans)
        if start < stop:
            ids.append(tokenizer.special_tokens[text[start:stop]])
            spans.append(np.array([[start, stop]]))
        end = stop
    return np.array(ids, dtype=np.int64), np.concatenate(spans)


def _apart(special: SpecialTokens, text: str, plain: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Where special tokens stand outside of some parts."""
    for (_, start), (stop, _) in pairwise([(0, 0), *plain, (len(text), len(text))]):
        yield from special.spans(text, start, stop)


def _ordinary(tokenizer: Tokenizer, text: str, begins: bool, after_special: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of a part without special tokens: its tokens' bytes, one after another, are those of the text as it is written."""
    written = tokenizer._written(text, begins and not after_special, after_special)
    ids = np.frombuffer(b"".join(tokenizer._pack_ordinary(text, begins, after_special)), tokenizer.dtype)
    lengths = np.array([len(tokenizer._token[i]) for i in ids.tolist()], dtype=int)
    data = np.frombuffer(written.encode(), np.uint8)
    character = np.cumsum(data & 0xC0 != 0x80) - 1                     # that each byte belongs to
    stops = np.cumsum(lengths)
    spans = np.stack([character[stops - lengths], character[stops - 1] + 1], axis=1)
    spans -= len(written) - len(text)                                  # the space in front
    spans[:, 0] = spans[:, 0].clip(0)
    spans[:, 1] = np.maximum(spans[:, 1], spans[:, 0] + 1)
    return ids, spans
