"""The normalizer ``Precompiled``: SentencePiece's rules for characters, stored in its own binary form.

    bytes 0-3        n, the size of the trie in bytes (every integer here is little-endian)
    the next n       the trie, a double array: 32 bits per node
    the rest         the replacements in UTF-8, each followed by a zero byte

The trie maps the UTF-8 bytes of one or several characters to the position of their replacement. In a double array, the child
of a node for a byte stands at the node's offset XOR the byte, and is a child only if its label is that byte.
                                                                                       Aoe 1989; Darts-clone, Yata 2008
`tokenizers` looks up each grapheme cluster of fewer than six bytes, and replaces all of it if the trie holds any beginning of
it; otherwise it looks up each character. SentencePiece itself takes the longest match at each position.
"""

import base64
import binascii

import numpy as np
import regex

SHORT = 6  # bytes: longer clusters are looked up by character
CACHED = 2**16  # clusters
# Grapheme clusters. \X of `regex` is left to what begins with a letter without case or a control character: it joins an Indic
# letter to anything with a virama, and `tokenizers` only to another Indic letter; and it counts a run of flags at each of them.
CLUSTERS = regex.compile(
    r"(?:\p{ExtPict}(?:\p{GCB=Extend}*\p{GCB=ZWJ}\p{ExtPict})*|\p{RI}{1,2}"
    r"|(?![\r\n]|\p{GCB=Control}|\p{GCB=Prepend}|\p{GCB=RI})(?:[\0-\u07ff]|\P{Lo}))"
    r"[\p{GCB=Extend}\p{GCB=SpacingMark}\p{GCB=ZWJ}]*|\X"
)


class Precompiled:
    """The rules of a ``precompiled_charsmap``; called with a text, it returns the normalized text.

    Parameters
    ----------
    charsmap : str
        The rules, in base64.
    """

    def __init__(self, charsmap: str) -> None:
        try:
            data = base64.b64decode(charsmap, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ValueError("its Precompiled: precompiled_charsmap is not base64") from error
        size = int.from_bytes(data[:4], "little")
        if size % 4 or not 4 <= size <= len(data) - 4:
            raise ValueError(f"its Precompiled: precompiled_charsmap has {len(data)} bytes, but its trie alone has {size}")
        self._units = np.frombuffer(data, "<u4", size // 4, 4)
        self._texts = data[4 + size :]
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        return CLUSTERS.sub(self._replaced, text)

    def _replaced(self, found: regex.Match) -> str:
        cluster = found[0]
        if (text := self._known.get(cluster)) is None:
            whole = self._look_up(cluster) if len(cluster.encode("utf-8", "surrogatepass")) < SHORT else None
            parts = [(c, self._look_up(c)) for c in cluster] if whole is None else []
            text = "".join(c if part is None else part for c, part in parts) if whole is None else whole
            if len(self._known) >= CACHED:
                self._known.clear()
            self._known[cluster] = text
        return text

    def _look_up(self, key: str) -> str | None:
        """The replacement of the shortest beginning of `key` that the trie holds."""
        at, last = _offset(int(self._units[0])), len(self._units) - 1
        for byte in key.encode("utf-8", "surrogatepass"):
            at ^= byte
            if not byte or at > last or (unit := int(self._units[at])) & 0x800000FF != byte:
                return None
            at ^= _offset(unit)
            if unit & 0x100 and at <= last:  # a key ends here, and the node holds its value
                begin = int(self._units[at]) & 0x7FFFFFFF
                return self._texts[begin : max(begin, self._texts.find(b"\0", begin))].decode("utf-8", "replace")
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)
