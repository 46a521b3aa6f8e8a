"""Byte-pair encoding itself; :class:`numllama.tokenizer.Tokenizer` is its public interface.

A text is split at added tokens and into pre-tokens (`layout.py`), each pre-token starts as its bytes, and neighbours merge in the
order of training (`merging.py`). Natural text repeats itself, so each pre-token's packed ids are cached, and most of the work
is looking them up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from numllama.errors import shown
from numllama.tokenizer.added_tokens import AddedToken, Sought, check_unique, look_for
from numllama.tokenizer.cutting import CHUNK, SpecialTokens, chunks
from numllama.tokenizer.decoders import CHARACTER_OF, bytes_of
from numllama.tokenizer.layout import Layout
from numllama.tokenizer.merging import merge
from numllama.tokenizer.normalizers import Normalizer
from numllama.tokenizer.vocabulary import checked_id, checked_pair

CACHED_PIECES = 2**18  # about 50 MB
CACHED_LENGTH = 64     # characters; longer pieces rarely repeat
FINDERS = 64           # sets of special tokens: those that are allowed and those that are not


class BytePairs:
    """A vocabulary, its merges, and the steps before and after them."""

    @classmethod
    def of_parts(cls, *parts: Any, **more: Any) -> Self:
        """A tokenizer from the parts of a file: see :meth:`_set_up`."""
        made = cls.__new__(cls)
        made._set_up(*parts, **more)
        return made

    def _set_up(
        self,
        vocab: Mapping[int, bytes],
        merges: Sequence[tuple[bytes, bytes]],
        added: Sequence[AddedToken],
        layout: Layout,
        *,
        ignore_merges: bool = False,
        unknown: int | None = None,
        fuse_unknown: bool = False,
        model: Mapping[str, Any] | None = None,
        names: Mapping[str, int] | None = None,
    ) -> None:
        """Set up a tokenizer from its parts.

        Parameters
        ----------
        vocab, merges, ignore_merges
            As in the constructor, but single bytes may be missing.
        added : sequence of AddedToken
        layout : Layout
        unknown, fuse_unknown
            The id for bytes and characters without a token, and whether a run of them becomes one id; None omits them.
        model : mapping, optional
            The ``model`` of the ``tokenizer.json`` that was read, without its merges.
        names : mapping, optional
            The ids of all tokens in that model, as they are written there.
        """
        self.vocab = dict(sorted(vocab.items()))
        self.merges = [checked_pair(pair, i) for i, pair in enumerate(merges)]
        self.added_tokens = sorted(added, key=lambda token: token.id)
        self.special_tokens = {token.content: token.id for token in added if token.special}
        self.ignore_merges, self.layout, self.model = ignore_merges, layout, model
        self.post_processor: dict | None = None
        self.kept: dict[str, Any] = {}  # from a tokenizer.json: settings that other libraries apply to the ids
        self.folder: Path | None = None  # loaded from here; holds the chat template
        self.config: dict[str, Any] | None = None  # the tokenizer_config.json of a file that holds everything (GGUF)
        check_unique(self.added_tokens)
        normalize = Normalizer(layout.values["normalizer"])
        self._contents = {i: name for name, i in (names or {}).items() if i not in self.vocab}
        self._contents |= {t.id: normalize(t.content) if t.normalized else t.content for t in self.added_tokens}
        if nothing := [token.content for token in self.added_tokens if not self._contents[token.id]]:
            raise ValueError(f"its normalizer turns the added token {shown(nothing[0])} into an empty text")
        self._special_ids = frozenset(self.special_tokens.values())
        ids = _by_token(self.vocab)
        self.unknown, self._fuse_unknown = unknown, fuse_unknown
        self._symbol_ids(ids)
        self._set_up_merges(ids)
        self._token = self._tokens()
        self._finders: dict[tuple, tuple[Sought, SpecialTokens | None]] = {}
        self.vocab_size = max(self._token, default=-1) + 1
        if self.vocab_size > 2**32:
            raise ValueError(f"the largest id is {self.vocab_size - 1}, but must be below 2**32")
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self._cache, self._written = _Pieces(self), _Written(self)
        self.placed_pieces: dict[str, np.ndarray] = {}  # see encode_spans

    def _set_up_merges(self, ids: Mapping[bytes, int]) -> None:
        self._whole = {token: i for token, i in ids.items() if i not in self._special_ids} if self.ignore_merges else {}
        try:
            self._ranks = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(self.merges)}
            self._made = [ids[left + right] for left, right in self.merges]
        except KeyError as error:
            raise ValueError(f"merges need the token {shown(error.args[0])}, but vocab has none") from error
        if len(self._ranks) < len(self.merges):
            raise ValueError("merges holds a pair twice")
        # text must not merge into a special token: such a token is split again
        self._parts = {made: pair for pair, made in zip(self._ranks, self._made, strict=True) if made in self._special_ids}

    def _symbol_ids(self, ids: Mapping[bytes, int]) -> None:
        """Look up the symbols that a pre-token starts as: an id for each byte; `complete` if none lacks one."""
        self._bytes = [ids.get(bytes([byte])) for byte in range(256)]
        self.complete = None not in self._bytes

    def _tokens(self) -> dict[int, bytes]:
        """The bytes of each id."""
        as_bytes = str.encode if self.model is None else bytes_of  # in files, some letters stand for bytes
        return self.vocab | {i: as_bytes(content) for i, content in self._contents.items()}

    @cached_property
    def longest(self) -> int | None:
        """The largest number of bytes that one token stands for; None if unbounded (white space, unknown characters)."""
        if not (self.layout.keeps_all and self.complete) or any(token.lstrip or token.rstrip for token in self.added_tokens):
            return None
        return max(map(len, (*self.vocab.values(), *(token.content.encode() for token in self.added_tokens))), default=None)

    @property
    def ids(self) -> Set[int]:
        """All ids that have a token."""
        return self._token.keys()

    def name(self, i: int) -> str:
        """A token as written in a ``tokenizer.json``."""
        return self._contents[i] if i in self._contents else self.written(self.vocab[i])

    @staticmethod
    def written(token: bytes) -> str:
        """The bytes of a token as written in a ``tokenizer.json``."""
        return "".join([CHARACTER_OF[byte] for byte in token])

    def _sought(
        self, allowed: Collection[str] | str, disallowed: Collection[str] | str
    ) -> tuple[Sought, SpecialTokens | None]:
        """The tokens to find in a text, and those that must not occur in it."""
        known = self.special_tokens.keys()
        allowed = "all" if allowed == "all" else _known_special("allowed_special", allowed, known)
        disallowed = "all" if disallowed == "all" else _known_special("disallowed_special", disallowed, known)
        if (allowed, disallowed) not in self._finders:
            if len(self._finders) >= FINDERS:
                self._finders.clear()
            tokens = [token for token in self.added_tokens if not token.special or allowed == "all" or token.content in allowed]
            forbidden = known - {token.content for token in tokens} if disallowed == "all" else disallowed
            found = look_for(tokens, forbidden, self.layout.normalizer if self.layout.normalizer else None)
            self._finders[allowed, disallowed] = found, SpecialTokens(forbidden) if forbidden else None
        return self._finders[allowed, disallowed]

    def sought(self, text: str, allowed: Collection[str] | str, disallowed: Collection[str] | str) -> Sought:
        """The tokens to find in a text; ValueError if it holds a forbidden one."""
        known, forbidden = self._sought(allowed, disallowed)
        if forbidden and (found := forbidden.first(text)):
            raise ValueError(
                f"the text holds the special token {shown(found)}: allow it with allowed_special={{{shown(found)}}} (or 'all'), "
                "or take it for ordinary text with disallowed_special=()"
            )
        return known

    def _pack(self, text: str, known: Sought, begins: bool) -> Iterator[bytes]:
        split, ids_of, cut = self.layout.pre_tokenizer.split, self._cache.__getitem__, self.layout.inner_cut
        as_it_is = known.first is None and known.then is None and self.layout.as_it_is
        for part in (text,) if as_it_is else self._split(text, known, begins):
            if isinstance(part, int):
                yield self._packed([part])
            elif len(part) <= CHUNK:
                yield b"".join(map(ids_of, split(part)))
            else:
                for chunk in chunks([part], cut):
                    yield b"".join(map(ids_of, split(chunk)))

    def _split(self, text: str, known: Sought, begins: bool) -> Iterator[int | str]:
        """The ids of added tokens, and the parts of the text between them, ready to be split into pre-tokens."""
        normalize, led = self.layout.normalizer, self.layout.pre_tokenizer.led
        for start, _, part in between(text, known.first.spans(text) if known.first else ()):
            if isinstance(part, int):
                yield part
                continue
            goes_on = not begins and start == 0
            written = normalize(part, not goes_on)
            for inner, _, piece in between(written, known.then.spans(written) if known.then else ()):
                if isinstance(piece, int):
                    yield piece
                else:
                    yield led(piece, begins and start == inner == 0, not (goes_on and inner == 0))

    def _packed(self, ids: list[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()

    def _merged(self, piece: str) -> list[int]:
        """The ids of a pre-token."""
        whole = self._whole.get(piece.encode("utf-8", "surrogateescape")) if self._whole else None
        ids = merge(self._symbols(piece), self._ranks, self._made) if whole is None else [whole]
        while self._parts and any(i in self._parts for i in ids):
            ids = [part for i in ids for part in self._parts.get(i, (i,))]
        return ids

    def _symbols(self, piece: str) -> list[int]:
        """The symbols that a pre-token starts as: its bytes."""
        if self.complete:
            return cast(list[int], [self._bytes[byte] for byte in piece.encode("utf-8", "surrogateescape")])
        return [i for i, _, _ in self.placed_symbols(piece)]

    def placed(self, piece: str) -> list[tuple[int, int, int]]:
        """The ids of a pre-token, and the start and end of each."""
        symbols, ids = self.placed_symbols(piece), self._merged(piece)
        counts = list(map(self.count_symbols, ids))
        if sum(counts) != len(symbols):  # it was looked up as a whole
            return [(i, 0, len(piece)) for i in ids]
        placed, at = [], 0
        for i, count in zip(ids, counts, strict=True):
            placed.append((i, symbols[at][1], symbols[at + count - 1][2]))
            at += count
        return placed

    def placed_symbols(self, piece: str) -> list[tuple[int, int, int]]:
        """The symbols that a pre-token starts as: the id of each, and the start and end of its characters.

        A symbol without an id becomes the unknown token, if there is one, placed before the next symbol that is not a byte.
        """
        symbols: list[tuple[int, int, int]] = []
        waiting: list[tuple[int, int, int]] = []
        for at, i, is_byte in self._each_symbol(piece):
            if i is not None:
                if not is_byte:
                    symbols += waiting
                    waiting = []
                symbols.append((i, at, at + 1))
            elif self.unknown is not None:
                begin = waiting.pop()[1] if self._fuse_unknown and waiting else at
                waiting.append((self.unknown, begin, at + 1))
        return symbols + waiting

    def _each_symbol(self, piece: str) -> Iterator[tuple[int, int | None, bool]]:
        """The position and id of each character, and whether the id is a byte to fall back on."""
        for at, character in enumerate(piece):
            for byte in character.encode("utf-8", "surrogateescape"):
                yield at, self._bytes[byte], False

    def count_symbols(self, i: int) -> int:
        """Number of symbols in a token."""
        return 1 if i == self.unknown else len(self.vocab[i])

    def _names(self, ids: Iterable[int]) -> list[bytes]:
        return [self._token[i] for i in ids]

    def _looked_up(self, ids: Iterable[int], table: Mapping[int, Any]) -> Iterable[Any]:
        """The table's entries for all ids that have a token."""
        if isinstance(ids, list):
            try:  # fast path: all ids are known, and none is a bool or a float, which may equal an integer
                if {*map(type, ids)} == {int}:
                    return list(map(table.__getitem__, ids))
            except KeyError:
                pass
        checked = map(checked_id, ids.tolist() if isinstance(ids, np.ndarray) else ids)
        return (table[i] for i in checked if i in self._token)

    # -------------------------------------------------------------------------------------------- in another process

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None, "_written": None, "_finders": {}, "placed_pieces": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {**state, "_cache": _Pieces(self), "_written": _Written(self)}


class _Pieces(dict):
    """A cache from pre-tokens to packed ids, filled on demand."""

    def __init__(self, tokenizer: BytePairs) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, piece: str) -> bytes:
        piece.encode()  # a lone surrogate raises an error here
        packed = self.tokenizer._packed(self.tokenizer._merged(piece))
        if len(piece) <= CACHED_LENGTH:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = packed
        return packed


class _Written(dict):
    """A cache from ids to the texts that a decoder joins, filled on demand."""

    def __init__(self, tokenizer: BytePairs) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, i: int) -> str:
        self[i] = text = self.tokenizer.layout.decoder.each(self.tokenizer.name(i))
        return text


def between(text: str, spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int | str]]:
    """The ids of the tokens at `spans` and the parts of the text between them, each with its start and end."""
    end = 0
    for start, stop, i in spans:
        if end < start:
            yield end, start, text[end:start]
        yield start, stop, i
        end = stop
    if end < len(text):
        yield end, len(text), text[end:]


def listed(ids: Iterable[int]) -> list[int]:
    """Ids as a list; an array becomes Python integers."""
    if type(ids) is list:
        return ids
    return ids.tolist() if isinstance(ids, np.ndarray) else list(ids)


def _by_token(vocab: Mapping[int, bytes]) -> dict[bytes, int]:
    ids: dict[bytes, int] = {}
    for i, token in vocab.items():
        if ids.setdefault(token, i) != i:
            raise ValueError(f"vocab holds {shown(token)} twice")
    return ids


def _known_special(name: str, tokens: Collection[str] | str, known: Set[str]) -> frozenset[str]:
    if isinstance(tokens, str):
        raise ValueError(f"{name} is {shown(tokens)}, but must be 'all' or a set of special tokens")
    if unknown := set(tokens) - known:
        raise ValueError(f"{name} holds {shown(min(unknown))}, which is not a special token of this tokenizer")
    return frozenset(tokens)


def repaired(text: str) -> str:
    """Replace surrogate pairs by their characters, and lone surrogates by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
