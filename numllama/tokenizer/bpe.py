"""Byte-pair encoding on bytes: any text in, the same text out.

A text is split into pre-tokens (`patterns.py`), each pre-token starts as its bytes, and neighbours merge in the order that
was learnt (`merging.py`). Natural text repeats itself, so each pre-token's ids are kept, packed, and most of the work is to
look them up.                                                                    Sennrich et al. 2016; Radford et al. 2019
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.tokenizer.merging import merge, merge_steps
from numllama.tokenizer.patterns import CHUNK, SpecialTokens, Splitter
from numllama.tokenizer.vocabulary import by_id, checked_id, checked_pair, numbered

CACHED_PIECES = 2**18  # about 50 MB
CACHED_LENGTH = 64     # characters: longer pieces hardly ever come again


class Merge(NamedTuple):
    """A step on the way from bytes to tokens: what merged, how early it was learnt, and all tokens after it."""

    left: bytes
    right: bytes
    rank: int
    tokens: list[bytes]


class Tokenizer:
    """Byte-level BPE.

    Parameters
    ----------
    vocab : dict
        ``{id: bytes}`` or ``{bytes: id}``, with all 256 single bytes.
    merges : sequence of (bytes, bytes)
        In the order in which they were learnt: the first merges first.
    special_tokens : dict of str to int, or sequence of str
        Ids of their own for strings that never merge. In a sequence, those that are not in the vocabulary get the ids after its
        last.
    pattern : str
        How a text is split before it is merged: ``gpt2``, ``cl100k``, ``llama3``, or a regular expression.
    ignore_merges : bool
        Look a whole pre-token up before merging it, as Llama 3 and tiktoken do.

    Attributes
    ----------
    vocab : dict of int to bytes
    merges : list of (bytes, bytes)
    special_tokens : dict of str to int
    pattern : str
        The regular expression itself.
    vocab_size : int
        The largest id and one: the rows that a model's embedding needs.
    dtype : numpy dtype
        The smallest of uint16 and uint32 that holds every id.

    Examples
    --------
    >>> import numllama as nl
    >>> vocab = {i: bytes([i]) for i in range(256)} | {256: b"th", 257: b"the"}
    >>> tokenizer = nl.Tokenizer(vocab, [(b"t", b"h"), (b"th", b"e")], ["<|end|>"])
    >>> tokenizer.encode("the three<|end|>", allowed_special="all")
    [257, 32, 256, 114, 101, 101, 258]
    >>> tokenizer.decode([257, 109])
    'them'
    >>> [step.tokens for step in tokenizer.merges_of("the")]
    [[b'th', b'e'], [b'the']]
    """

    def __init__(
        self,
        vocab: Mapping[int, bytes] | Mapping[bytes, int],
        merges: Sequence[tuple[bytes, bytes]],
        special_tokens: Mapping[str, int] | Sequence[str] = (),
        *,
        pattern: str = "gpt2",
        ignore_merges: bool = False,
    ) -> None:
        vocab = by_id(vocab)
        self.special_tokens = numbered(special_tokens, vocab)
        self.vocab = dict(sorted(vocab.items()))
        self.merges = [checked_pair(pair, i) for i, pair in enumerate(merges)]
        self.ignore_merges = ignore_merges
        self.post_processor: dict | None = None  # of a tokenizer.json: kept for those who read ours
        self.folder: Path | None = None  # that it was loaded from, where the chat template lies
        special_ids = set(self.special_tokens.values())
        ids = {}
        for i, token in self.vocab.items():
            if ids.setdefault(token, i) != i:
                raise ValueError(f"vocab holds {token!r} twice")
        ids = {token: i for token, i in ids.items() if i not in special_ids}
        self._bytes = self._byte_ids(ids)
        self._whole = ids if ignore_merges else {}
        try:
            self._ranks = {(ids[left], ids[right]): rank for rank, (left, right) in enumerate(self.merges)}
            self._made = [ids[left + right] for left, right in self.merges]
        except KeyError as error:
            raise ValueError(f"merges need the token {error.args[0]!r}, but vocab has none (or it is special)") from error
        if len(self._ranks) < len(self.merges):
            raise ValueError("merges holds a pair twice")
        self._token = {**self._decoded(), **{i: token.encode() for token, i in self.special_tokens.items()}}
        self._special = SpecialTokens(self.special_tokens) if self.special_tokens else None
        self._splitter = self._make_splitter(pattern)
        self.vocab_size = max(self._token) + 1
        if self.vocab_size > 2**32:
            raise ValueError(f"the largest id is {self.vocab_size - 1}, but must be below 2**32")
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")
        self._cache = _Pieces(self)

    def _byte_ids(self, ids: Mapping[bytes, int]) -> list[int]:
        """The id of each byte."""
        for byte in range(256):
            if bytes([byte]) not in ids:
                raise ValueError(f"vocab has no token for the byte 0x{byte:02x}, but each of the 256 needs one")
        return [ids[bytes([byte])] for byte in range(256)]

    def _decoded(self) -> dict[int, bytes]:
        """What each id stands for."""
        return self.vocab

    def _make_splitter(self, pattern: str) -> Splitter:
        return Splitter(pattern)

    @property
    def pattern(self) -> str:
        """The regular expression that splits a text."""
        return self._splitter.pattern

    # -------------------------------------------------------------------------------------------- made from files

    @classmethod
    def train(
        cls,
        files: str | Path | Sequence[str | Path],
        vocab_size: int,
        special_tokens: Sequence[str] = (),
        pattern: str = "gpt2",
        workers: int | None = None,
        progress: bool = True,
        errors: str = "strict",
    ) -> Tokenizer:
        """Learn a vocabulary from text files.

        The most frequent pair of neighbours becomes a token, again and again; of equally frequent ones the pair of byte
        strings that comes last in the alphabet. Ids: the 256 bytes, the merges, the special tokens.

        Parameters
        ----------
        files : path or sequence of paths
            UTF-8 text. Each is read in pieces, so that it may be larger than memory.
        vocab_size : int
            At least 256 and the special tokens. A text in which nothing is left to merge gives a smaller vocabulary.
        special_tokens : sequence of str
            Text is cut at these, and they are not learnt from.
        pattern : str
            ``gpt2``, ``cl100k``, ``llama3``, or a regular expression. With one of your own, only special tokens cut a text into
            pieces.
        workers : int, optional
            Processes that count; the result does not depend on it. Default one for each core if there is much to count.
        progress : bool
            Show a progress bar.
        errors : str
            ``strict``, or ``replace`` for files that are not quite UTF-8.

        Raises
        ------
        DataError
            If a file cannot be read, is not UTF-8, or there is no text at all.
        """
        from numllama.tokenizer.train_bpe import train

        return train(files, vocab_size, special_tokens, pattern, workers, progress, errors)

    @staticmethod
    def load(path: str | Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None) -> Tokenizer:
        """Read a tokenizer, whatever format it has; see :func:`numllama.tokenizer.formats.load`."""
        from numllama.tokenizer.formats import load

        return load(path, pattern, special_tokens)

    def save(self, folder: str | Path) -> Path:
        """Write ``tokenizer.json`` and the chat template into a folder, as `tokenizers` and `transformers` read them."""
        from numllama.tokenizer.formats import save

        return save(self, folder)

    # -------------------------------------------------------------------------------------------- to ids

    def encode(
        self,
        text: str,
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
    ) -> list[int]:
        """The ids of a text.

        Parameters
        ----------
        text : str
            A surrogate without its partner is not Unicode, and becomes U+FFFD.
        allowed_special : "all" or collection of str
            Special tokens that the text may hold; they become their ids.
        disallowed_special : "all" or collection of str
            Special tokens that are an error in the text, "all" being those that are not allowed. The rest is ordinary text.

        Raises
        ------
        ValueError
            If the text holds a special token that is not allowed.
        """
        return self.encode_array(text, allowed_special, disallowed_special).tolist()

    def encode_array(
        self,
        text: str,
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
    ) -> np.ndarray:
        """As :meth:`encode`, for long texts: an array of `dtype`."""
        return np.frombuffer(self.pack(text, allowed_special, disallowed_special), self.dtype)

    def pack(
        self,
        text: str,
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
        begins: bool = True,
    ) -> bytes:
        """As :meth:`encode`, for files and pipes: the bytes of that array.

        `begins` says whether this is the beginning of a text, or one of its later :meth:`chunks`.
        """
        if not isinstance(text, str):
            raise TypeError(f"text must be a string, not {type(text).__name__}")
        special = self._allow(text, allowed_special, disallowed_special)
        try:
            return b"".join(self._pack(text, special, begins))
        except UnicodeEncodeError:
            return b"".join(self._pack(_repaired(text), special, begins))

    def encode_batch(
        self,
        texts: Iterable[str],
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
        workers: int = 1,
    ) -> list[list[int]]:
        """The ids of each text; with several workers in processes, which pays for many megabytes.

        To encode with the same processes again and again, see :class:`numllama.tokenizer.parallel.ParallelEncoder`.
        """
        if workers == 1:
            return [self.encode(text, allowed_special, disallowed_special) for text in texts]
        from numllama.tokenizer.parallel import ParallelEncoder

        with ParallelEncoder(self, workers) as encoder:
            return encoder.encode_batch(texts, allowed_special, disallowed_special)

    def encode_iterable(
        self,
        texts: Iterable[str],
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
    ) -> Iterator[int]:
        """The ids of one long text that comes in parts, cut anywhere: the same as those of the whole.

        Memory is bounded by the longest stretch without a letter's end, a space or a special token; with a pattern of your
        own, by the longest stretch without a special token.
        """
        begins = True
        for chunk in self.chunks(texts):
            yield from np.frombuffer(self.pack(chunk, allowed_special, disallowed_special, begins), self.dtype).tolist()
            begins = False

    def chunks(self, texts: Iterable[str], size: int = CHUNK) -> Iterator[str]:
        """A text that comes in parts, cut anew into parts whose ids are, one after another, those of the whole.

        Each but the last has at least `size` characters, and more where there is no such place to cut.
        """
        return self._splitter.chunks(texts, self._special, size)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes; of UTF-8 text, those of :meth:`encode` with all special tokens as ordinary text."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        try:
            return self.encode(bytes(data).decode(), disallowed_special=())
        except UnicodeDecodeError:
            text = bytes(data).decode("utf-8", "surrogateescape")  # each stray byte is a character: one code point
        return [i for piece in self._splitter.split(self._written(text)) for i in self._merged(piece)]

    def merges_of(self, text: str) -> list[Merge]:
        """The merges that turn a word's bytes into tokens, in order, each with all tokens after it.

        Of several words, each merges in turn. A word that is looked up as a whole, and that merges do not lead to, takes none.
        """
        pieces = self._splitter.split(self._written(_repaired(text)))
        words = [self._symbols(piece) for piece in pieces]
        steps = []
        for at, word in enumerate(words):
            before, left, right = list(word), self._names(chain(*words[:at])), self._names(chain(*words[at + 1 :]))
            mine = []
            for i, ids in merge_steps(word, self._ranks, self._made):
                pair = before[i], before[i + 1]
                mine.append(Merge(*self._names(pair), self._ranks[pair], [*left, *self._names(ids), *right]))
                before = list(ids)
            if word == (tokens := self._merged(pieces[at])):
                steps += mine
            words[at] = tokens
        return steps

    def _names(self, ids: Iterable[int]) -> list[bytes]:
        return [self._token[i] for i in ids]

    def _allow(self, text: str, allowed: Collection[str] | str, disallowed: Collection[str] | str) -> SpecialTokens | None:
        """The special tokens to look for, once none is found that must not be there."""
        known = self.special_tokens
        allowed = known.keys() if allowed == "all" else _known_special("allowed_special", allowed, known)
        disallowed = known.keys() - allowed if disallowed == "all" else _known_special("disallowed_special", disallowed, known)
        if disallowed and (found := (self._special if len(disallowed) == len(known) else SpecialTokens(disallowed)).first(text)):
            raise ValueError(
                f"the text holds the special token {found!r}: allow it with allowed_special={{{found!r}}} (or 'all'), "
                "or take it for ordinary text with disallowed_special=()"
            )
        if not allowed:
            return None
        return self._special if len(allowed) == len(known) else SpecialTokens(allowed)

    def _pack(self, text: str, special: SpecialTokens | None, begins: bool) -> Iterator[bytes]:
        end = 0
        for start, stop in special.spans(text) if special else ():
            yield from self._pack_ordinary(text[end:start], begins, end > 0)
            yield self._packed([self.special_tokens[text[start:stop]]])
            end = stop
        yield from self._pack_ordinary(text[end:], begins, end > 0)

    def _pack_ordinary(self, text: str, begins: bool, after_special: bool) -> Iterator[bytes]:
        split, ids_of = self._splitter.split, self._cache.__getitem__
        for chunk in self._splitter.chunks([self._written(text, begins and not after_special, after_special)]):
            yield b"".join(map(ids_of, split(chunk)))

    def _packed(self, ids: list[int]) -> bytes:
        return np.array(ids, self.dtype).tobytes()

    def _merged(self, piece: str) -> list[int]:
        """The ids of a pre-token."""
        whole = self._whole.get(piece.encode("utf-8", "surrogateescape")) if self._whole else None
        return merge(self._symbols(piece), self._ranks, self._made) if whole is None else [whole]

    def _symbols(self, piece: str) -> list[int]:
        """What a pre-token starts as: its bytes."""
        return [self._bytes[byte] for byte in piece.encode("utf-8", "surrogateescape")]

    def _written(self, text: str, begins: bool = True, after_special: bool = False) -> str:
        """The text as it is split."""
        return text

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool | None = None,
        tokenize: bool = True,
        chat_template: str | None = None,
        **values: Any,
    ) -> list[int] | str | dict[str, list[int]]:
        """A conversation as the checkpoint was trained on it.

        Parameters
        ----------
        messages : sequence of mappings
            ``{"role": "user", "content": "..."}``, oldest first. What is None is left out.
        add_generation_prompt : bool, optional
            End with what opens the assistant's answer. Default yes, unless the last message is to be continued.
        tokenize : bool
            Return ids; otherwise the text.
        chat_template : str, optional
            In Jinja's language, or the name of one of the checkpoint's; default its own, for tools the one called ``tool_use``.
        continue_final_message : bool or str
            End where the last message does, or its field of that name, so that the answer goes on with it.
        sanitize_control_tokens : bool
            Special tokens that a message spells are ordinary text, which is the default; False takes them for what they spell.
        return_dict, return_assistant_tokens_mask : bool
            Return ``input_ids`` and ``attention_mask``, and ``assistant_masks``: 1 for what the assistant says.
        values
            Whatever else the template asks for: ``tools``, ``documents``, ``date_string``, ...

        Raises
        ------
        CheckpointError
            If the template cannot be parsed, or tries what the sandbox forbids.
        ValueError
            If it refuses these messages, or takes more time or memory than it may.
        """
        from numllama.tokenizer.conversation import apply_chat_template

        return apply_chat_template(self, messages, add_generation_prompt, tokenize, chat_template, **values)

    # -------------------------------------------------------------------------------------------- to text

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD, or as `errors` says.

        An id that no token has stands for nothing: a model may have more rows than its tokenizer has tokens.
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids."""
        return b"".join(self.decode_each(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, never half a character: joined, what :meth:`decode` gives."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in self.decode_each(ids):
            if text := decoder.decode(token):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def decode_each(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The bytes of each id, one after another: those of the first may depend on its being the first."""
        for i in ids.tolist() if isinstance(ids, np.ndarray) else ids:
            if type(i) is not int or i < 0:
                i = checked_id(i)
            yield self._token.get(i, b"")

    # -------------------------------------------------------------------------------------------- in another process

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = {**state, "_cache": _Pieces(self)}


class _Pieces(dict):
    """From pre-tokens to packed ids, filled when they are asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __missing__(self, piece: str) -> bytes:
        piece.encode()  # a surrogate without its partner ends here
        packed = self.tokenizer._packed(self.tokenizer._merged(piece))
        if len(piece) <= CACHED_LENGTH:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = packed
        return packed


def _known_special(name: str, tokens: Collection[str] | str, known: Mapping[str, int]) -> set[str]:
    if isinstance(tokens, str):
        raise ValueError(f"{name} is {tokens!r}, but must be 'all' or a set of special tokens")
    if unknown := set(tokens) - known.keys():
        raise ValueError(f"{name} holds {min(unknown)!r}, which is not a special token of this tokenizer")
    return set(tokens)


def _repaired(text: str) -> str:
    """Surrogate pairs as the characters they mean, other surrogates as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
