"""BPE on characters with byte fallback, as in SentencePiece for Llama 2, TinyLlama and llama2.c.

Spaces belong to the following word and are written as ▁ in the vocabulary. Words start as characters; a character that
the vocabulary lacks becomes its UTF-8 bytes, the tokens <0x00> to <0xFF>. A space is put before a text, so that its first
word is the same token as anywhere else; decoding removes it.                                      Kudo & Richardson 2018
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import cast

from numllama.errors import shown
from numllama.tokenizer.added_tokens import AddedToken
from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.layout import PREFIXES, Layout, pieces, prefix_of
from numllama.tokenizer.normalizers import SPACE
from numllama.tokenizer.vocabulary import by_id, numbered

BYTES = [b"<0x%02X>" % byte for byte in range(256)]


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece-style BPE with byte fallback; it supports everything that a Tokenizer does.

    Parameters
    ----------
    vocab : dict
        ``{id: bytes}`` or ``{bytes: id}``: pieces in UTF-8, with ▁ for a space, and ``<0x00>`` to ``<0xFF>``.
    merges : sequence of (bytes, bytes)
        Pairs of pieces.
    special_tokens : dict of str to int, or sequence of str
    prefix : str
        Which parts of a text (between special tokens) get a space in front: ``always`` all; ``unless spaced`` those that have
        none; ``first unless spaced`` only the text's beginning; ``never`` none. ``other`` if a file does something else.
    one_space : bool
        No piece has more than one space in front.
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes] | Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | Sequence[str] = (),
        *,
        prefix: str = "always",
        one_space: bool = False,
    ) -> None:
        if prefix not in PREFIXES:
            raise ValueError(f"prefix is {shown(prefix)}, but must be one of {', '.join(PREFIXES)}")
        vocab = by_id(vocab)
        special = numbered(special_tokens, vocab)
        known = set(vocab.values())
        if missing := [name for name in BYTES if name not in known]:
            raise ValueError(f"vocab has no token {missing[0].decode()}, but each of the 256 bytes needs one")
        added = [AddedToken(token, i) for token, i in special.items()]
        layout = Layout(pieces(prefix, one_space), by_words=merge_by_words(merges))
        self._set_up(vocab, merges, added, layout, unknown=special.get("<unk>"), fuse_unknown=True)

    @property
    def prefix(self) -> str:
        """See the parameters."""
        return prefix_of(self.layout.values)[0]

    @property
    def one_space(self) -> bool:
        """See the parameters."""
        return prefix_of(self.layout.values)[1]

    def _symbol_ids(self, ids: Mapping[bytes, int]) -> None:
        fallback = self.model is None or self.model.get("byte_fallback")
        self._bytes = [ids.get(name) if fallback else None for name in BYTES]
        self.complete = None not in self._bytes
        self._byte_ids = frozenset(i for i in self._bytes if i is not None)
        pieces = ((name.decode(), i) for name, i in ids.items() if i not in self._special_ids)
        self._characters = {text: i for text, i in pieces if len(text) == 1}
        if SPACE in self._characters:
            self._characters[self.layout.space] = self._characters[SPACE]

    def _tokens(self) -> dict[int, bytes]:
        texts = {i: token.replace(SPACE.encode(), b" ") for i, token in self.vocab.items()}
        bytes_ = {i: bytes([byte]) for byte, i in enumerate(self._bytes) if i is not None}
        return {**texts, **bytes_, **{token.id: token.content.encode() for token in self.added_tokens}}

    @staticmethod
    def written(token: bytes) -> str:
        """The bytes of a token as written in a ``tokenizer.json``."""
        return token.decode()

    def _symbols(self, piece: str) -> list[int]:
        ids = list(map(self._characters.get, piece))
        return [i for i, _, _ in self.placed_symbols(piece)] if None in ids else cast(list[int], ids)

    def _each_symbol(self, piece: str) -> Iterator[tuple[int, int | None, bool]]:
        for at, character in enumerate(piece):
            if (i := self._characters.get(character)) is not None:
                yield at, i, False
                continue
            ids = [self._bytes[byte] for byte in character.encode("utf-8", "surrogateescape")]
            yield from [(at, None, False)] if None in ids else [(at, i, True) for i in ids]

    def count_symbols(self, i: int) -> int:
        """Number of symbols in a token."""
        return 1 if i == self.unknown or i in self._byte_ids else len(self.vocab[i].decode())


def merge_by_words(merges: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether no merge makes a piece with a space after another character."""
    space = SPACE.encode()
    return not any(space in _without_spaces(left + right, space) for left, right in merges)


def _without_spaces(piece: bytes, space: bytes) -> bytes:
    while piece.startswith(space):
        piece = piece.removeprefix(space)
    return piece
