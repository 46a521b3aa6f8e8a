"""Which characters of a text each of its tokens stands for."""

import numpy as np

from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.char import CharTokenizer


def encode_spans(
    tokenizer: Tokenizer | CharTokenizer, text: str, allowed_special: str | tuple[str, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text, and for each the place of its first character and of the one after its last.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    text : str
    allowed_special : "all" or tuple of str
        As :meth:`Tokenizer.encode` takes it.

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
    for start, stop in [*(special.spans(text) if special else ()), (len(text), len(text))]:
        part_ids, part_spans = _ordinary(tokenizer, text[end:start], after_special=end > 0)
        ids += part_ids.tolist()
        spans.append(end + part_spans)
        if start < stop:
            ids.append(tokenizer.special_tokens[text[start:stop]])
            spans.append(np.array([[start, stop]]))
        end = stop
    return np.array(ids, dtype=np.int64), np.concatenate(spans)


def _ordinary(tokenizer: Tokenizer, text: str, after_special: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of a part without special tokens: its tokens' bytes, one after another, are those of the text as it is written."""
    written = tokenizer._written(text, not after_special, after_special)
    ids = np.frombuffer(b"".join(tokenizer._pack_ordinary(text, True, after_special)), tokenizer.dtype)
    lengths = np.array([len(tokenizer._token[i]) for i in ids.tolist()], dtype=int)
    data = np.frombuffer(written.encode(), np.uint8)
    character = np.cumsum(data & 0xC0 != 0x80) - 1                     # that each byte belongs to
    stops = np.cumsum(lengths)
    spans = np.stack([character[stops - lengths], character[stops - 1] + 1], axis=1)
    spans -= len(written) - len(text)                                  # the space in front
    spans[:, 0] = spans[:, 0].clip(0)
    spans[:, 1] = np.maximum(spans[:, 1], spans[:, 0] + 1)
    return ids, spans
