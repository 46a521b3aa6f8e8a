"""Unigram: cut a word into the pieces of the vocabulary whose scores have the largest sum.                      Kudo 2018

The best way to cut the text before a position ends with some piece, and begins with the best way to cut what precedes it:

    best(end) = max over pieces text[start:end] of  best(start) + score(piece)                         (Viterbi 1967)

A score is the logarithm of a probability. Of equal sums the first found wins, as in `tokenizers`: the one with the longest
last piece. A character that is no piece is unknown, and unknown characters in a row are one.
"""

from collections.abc import Iterator, Mapping

from numllama.errors import shown
from numllama.tokenizer.sentencepiece import SentencePieceTokenizer

PENALTY = 10.0  # how much less than the worst piece an unknown character scores


class UnigramTokenizer(SentencePieceTokenizer):
    """Unigram, as in SentencePiece for T5 and XLM-R; it supports everything that a Tokenizer does. Made from files only."""

    def _set_up_merges(self, ids: Mapping[bytes, int]) -> None:
        super()._set_up_merges(ids)
        assert self.model is not None  # read from a file
        scores = [score for _, score in self.model["vocab"]]
        self._worst = min(scores, default=0.0) - PENALTY
        self._pieces = {name.decode(): (i, scores[i]) for name, i in ids.items() if i not in self._special_ids}
        lengths: dict[str, set[int]] = {}
        for piece in self._pieces:
            lengths.setdefault(piece[0], set()).add(len(piece))
        self._lengths = {first: sorted(found) for first, found in lengths.items()}  # of the pieces that begin with it

    def _merged(self, piece: str) -> list[int]:
        return [i for i, _, _ in self.placed(piece)]

    def placed(self, piece: str) -> list[tuple[int, int, int]]:
        """The ids of a pre-token, and the start and end of each."""
        placed = []
        for start, end in self._cut(piece):
            if (found := self._pieces.get(piece[start:end])) is not None:
                placed.append((found[0], start, end))
                continue
            symbols = [(self._bytes[byte], at, at + 1) for at in range(start, end)
                       for byte in piece[at].encode("utf-8", "surrogateescape")]  # fmt: skip
            placed += symbols if all(i is not None for i, _, _ in symbols) else [(self.unknown, start, end)]
        return placed

    def _cut(self, text: str) -> list[tuple[int, int]]:
        """The start and end of each piece in the best way to cut a text."""
        pieces, n = self._pieces, len(text)
        best, begins, known = [0.0] * (n + 1), [-1] * (n + 1), [False] * (n + 1)
        for start in range(n):
            before, single = best[start], False
            for length in self._lengths.get(text[start], ()):
                end = start + length
                if end > n:
                    break
                if (found := pieces.get(text[start:end])) is None:
                    continue
                single = single or length == 1
                if begins[end] < 0 or before + found[1] > best[end]:
                    best[end], begins[end], known[end] = before + found[1], start, found[0] != self.unknown
            end = start + 1
            if not single and (begins[end] < 0 or before + self._worst > best[end]):
                if self.unknown is None:
                    raise ValueError(f"the text holds {shown(text[start])}, which its Unigram model, without an unk_id, lacks")
                best[end], begins[end], known[end] = before + self._worst, start, False
        return list(_backwards(begins, known))[::-1]


def _backwards(begins: list[int], known: list[bool]) -> Iterator[tuple[int, int]]:
    """The pieces from the last to the first; unknown ones in a row are joined."""
    end = len(begins) - 1
    while end > 0:
        start = begins[end]
        while not known[end] and start > 0 and not known[start]:
            start = begins[start]
        yield start, end
        end = start
