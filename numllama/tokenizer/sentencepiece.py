"""BPE on characters with bytes to fall back on, as SentencePiece does it for Llama 2, TinyLlama and llama2.c.

Spaces belong to the word that follows and are written as ▁ in the vocabulary. Words start as characters; one that the
vocabulary lacks becomes its UTF-8 bytes, the tokens <0x00> to <0xFF>. A text gets a space in front, so that its first word is
the same token as anywhere else; decoding takes it away again.                                     Kudo & Richardson 2018
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from numllama.tokenizer.bpe import Tokenizer
from numllama.tokenizer.patterns import Splitter

SPACE = "▁"
PREFIXES = ("always", "unless spaced", "first unless spaced", "never")

# No merge goes on with a space after something else, so words can be merged one by one.
_WORDS, _SPACED_WORDS, _CUT = r" *[^ ]+| +", r" [^ ]*|[^ ]+", r"(?<=[^ ])(?= )"
_EVERYTHING = r"(?s:.+)"


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece-style BPE with byte fallback; everything that can be done with a Tokenizer can be done with it.

    Parameters
    ----------
    vocab : dict
        ``{id: bytes}`` or ``{bytes: id}``: pieces in UTF-8, with ▁ for a space, and ``<0x00>`` to ``<0xFF>``.
    merges : sequence of (bytes, bytes)
        Pairs of pieces.
    special_tokens : dict of str to int, or sequence of str
    prefix : str
        Which parts of a text (special tokens part it) get a space in front: ``always``; ``unless spaced``, those that have
        none; ``first unless spaced``, only the text's beginning; ``never``.
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
            raise ValueError(f"prefix is {prefix!r}, but must be one of {', '.join(PREFIXES)}")
        self.prefix, self.one_space = prefix, one_space
        super().__init__(vocab, merges, special_tokens)

    def _byte_ids(self, ids: Mapping[bytes, int]) -> list[int]:
        names = [b"<0x%02X>" % byte for byte in range(256)]
        for name in names:
            if name not in ids:
                raise ValueError(f"vocab has no token {name.decode()}, but each of the 256 bytes needs one")
        pieces = {name: i for name, i in ids.items() if name not in set(names)}
        self._characters = {text.replace(SPACE, " "): i for name, i in pieces.items() if len(text := name.decode()) == 1}
        return [ids[name] for name in names]

    def _decoded(self) -> dict[int, bytes]:
        texts = {i: token.replace(SPACE.encode(), b" ") for i, token in self.vocab.items()}
        return {**texts, **{i: bytes([byte]) for byte, i in enumerate(self._bytes)}}

    def _make_splitter(self, pattern: str) -> Splitter:
        made = (self._token[i].decode() for i in self._made)
        if any(" " in text.lstrip(" ") for text in made):
            return Splitter(_EVERYTHING)
        return Splitter(_SPACED_WORDS if self.one_space else _WORDS, _CUT)

    def _symbols(self, piece: str) -> list[int]:
        ids = []
        for character in piece:
            i = self._characters.get(character)
            ids += [self._bytes[byte] for byte in character.encode("utf-8", "surrogateescape")] if i is None else [i]
        return ids

    def _written(self, text: str, begins: bool = True, after_special: bool = False) -> str:
        text = text.replace(SPACE, " ")
        wanted = begins if self.prefix.startswith("first") else begins or after_special
        if not text or not wanted or self.prefix == "never":
            return text
        return text if self.prefix != "always" and text.startswith(" ") else f" {text}"

    def decode_each(self, ids: Iterable[int]) -> Iterator[bytes]:
        """As :meth:`Tokenizer.decode_each`."""
        tokens = super().decode_each(ids)
        if self.prefix != "never":
            yield next(tokens, b"").removeprefix(b" ")
        yield from tokens
