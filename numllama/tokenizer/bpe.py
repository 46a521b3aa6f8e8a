"""Byte-pair encoding on bytes: any text in, the same text out; `core.py` does the work.

                                                                                 Sennrich et al. 2016; Radford et al. 2019
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from numllama.tokenizer.added_tokens import AddedToken, Sought
from numllama.tokenizer.core import BytePairs, listed, repaired
from numllama.tokenizer.cutting import CHUNK, chunks
from numllama.tokenizer.layout import Layout, byte_level
from numllama.tokenizer.merging import merge_steps
from numllama.tokenizer.patterns import as_oniguruma
from numllama.tokenizer.post_processors import around
from numllama.tokenizer.rewriting import from_oniguruma
from numllama.tokenizer.vocabulary import by_id, checked_id, numbered


class Merge(NamedTuple):
    """A step from bytes to tokens: the pair that merged, its rank, and all tokens after the merge."""

    left: bytes
    right: bytes
    rank: int
    tokens: list[bytes]


class Tokenizer(BytePairs):
    """Byte-level BPE.

    Parameters
    ----------
    vocab : dict
        ``{id: bytes}`` or ``{bytes: id}``, with all 256 single bytes.
    merges : sequence of (bytes, bytes)
        In training order: the first pair merges first.
    special_tokens : dict of str to int, or sequence of str
        Ids of their own for strings that never merge. In a sequence, those that are not in the vocabulary get the ids after its
        last.
    pattern : str
        How a text is split before it is merged: ``gpt2``, ``cl100k``, ``llama3``, ``qwen2``, or a regular expression, as the
        `regex` package reads it; one that Oniguruma, which readers of a ``tokenizer.json`` use, cannot say is refused.
    ignore_merges : bool
        Look a whole pre-token up before merging it, as Llama 3 and tiktoken do.

    Attributes
    ----------
    vocab : dict of int to bytes
    merges : list of (bytes, bytes)
    special_tokens : dict of str to int
    added_tokens : list of AddedToken
        The special ones, and the other strings that are always one token.
    pattern : str or None
        The regular expression itself; None where a text is split in several steps.
    post_processor : dict or None
        What is put around a text, as a ``tokenizer.json`` says it.
    before, after : list of int
        The ids of that.
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
        special = numbered(special_tokens, vocab)
        ordinary = {token for i, token in vocab.items() if i not in special.values()}
        if missing := [byte for byte in range(256) if bytes([byte]) not in ordinary]:
            raise ValueError(f"vocab has no token for the byte 0x{missing[0]:02x}, but each of the 256 needs one")
        added = [AddedToken(token, i) for token, i in special.items()]
        layout = Layout(byte_level(as_oniguruma(pattern)))
        self._set_up(vocab, merges, added, layout, ignore_merges=ignore_merges)

    @property
    def pattern(self) -> str | None:
        """The regular expression that splits a text."""
        found = self.layout.pre_tokenizer.pattern
        return None if found is None else from_oniguruma(found)

    @property
    def before(self) -> list[int]:
        """The ids that belong before a text."""
        return around(self.post_processor)[0]

    @property
    def after(self) -> list[int]:
        """The ids that belong after a text."""
        return around(self.post_processor)[1]

    def wrap(self, ids: Iterable[int]) -> list[int]:
        """The ids of a text with those that belong around it, as others encode a text by itself."""
        before, after = around(self.post_processor)
        return [*before, *ids, *after]

    # -------------------------------------------------------------------------------------------- made from files

    @classmethod
    def train(
        cls,
        files: str | Path | Sequence[str | Path],
        vocab_size: int,
        *,
        special_tokens: Sequence[str] = (),
        pattern: str = "gpt2",
        workers: int | None = None,
        progress: bool = True,
        errors: str = "strict",
    ) -> Tokenizer:
        """Train a vocabulary on text files.

        The most frequent pair of neighbours becomes a token, again and again; of equally frequent ones the pair of byte
        strings that comes last in the alphabet. Ids: the 256 bytes, the merges, the special tokens.

        Parameters
        ----------
        files : path or sequence of paths
            UTF-8 text. Each is read in pieces, so that it may be larger than memory.
        vocab_size : int
            At least 256 and the special tokens. A text in which nothing is left to merge gives a smaller vocabulary.
        special_tokens : sequence of str
            Text is cut at these; they take no part in the merges.
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
    def load(path: str | Path, *, special_tokens: Mapping[str, int] | None = None, pattern: str | None = None) -> Tokenizer:
        """Read a tokenizer in any supported format; see :func:`numllama.tokenizer.formats.load`."""
        from numllama.tokenizer.formats import load

        return cast(Tokenizer, load(path, pattern, special_tokens))  # a CharTokenizer offers the same for ordinary text

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
        known = self.sought(text, allowed_special, disallowed_special)
        try:
            return b"".join(self._pack(text, known, begins))
        except UnicodeEncodeError:
            return b"".join(self._pack(repaired(text), known, begins))

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
        for chunk in self.chunks(texts, None, allowed_special, disallowed_special):
            yield from np.frombuffer(self.pack(chunk, allowed_special, disallowed_special, begins), self.dtype).tolist()
            begins = False

    def chunks(
        self,
        texts: Iterable[str],
        size: int | None = None,
        allowed_special: Collection[str] | str = "all",
        disallowed_special: Collection[str] | str = "all",
    ) -> Iterator[str]:
        """Cut a text that comes in parts into new parts, whose ids, concatenated, are those of the whole text.

        Each but the last has at least `size` characters, and more where there is no such place to cut.
        """
        known, _ = self._sought(allowed_special, disallowed_special)
        simple = known.then is None or self.layout.normalizer.cut == ""  # else nobody knows where such a token begins
        return chunks(texts, self.layout.cut if simple else None, known.first, size or CHUNK, known.whole)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes; of UTF-8 text, those of :meth:`encode` with all special tokens as ordinary text."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data must be bytes, not {type(data).__name__}")
        try:
            return self.encode(bytes(data).decode(), disallowed_special=())
        except UnicodeDecodeError:
            text = bytes(data).decode("utf-8", "surrogateescape")  # each stray byte is a character: one code point
        ids: list[int] = []
        for part in self._split(text, self._sought((), ())[0], begins=True):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += chain.from_iterable(map(self._merged, self.layout.pre_tokenizer.split(part)))
        return ids

    def merges_of(self, text: str) -> list[Merge]:
        """The merges that turn a word's bytes into tokens, in order, each with all tokens after it.

        Of several words, each merges in turn. A word that is looked up as a whole, and that merges do not lead to, takes none.
        """
        parts = self._split(repaired(text), Sought(None, None, None), begins=True)
        pieces = [piece for part in parts if isinstance(part, str) for piece in self.layout.pre_tokenizer.split(part)]
        words = [self._symbols(piece) for piece in pieces]
        steps = []
        for at, word in enumerate(words):
            before, left, right = list(word), self._names(chain(*words[:at])), self._names(chain(*words[at + 1 :]))
            mine = []
            for i, ids in merge_steps(word, self._ranks, self._made):
                pair = before[i], before[i + 1]
                one, other = self._names(pair)
                mine.append(Merge(one, other, self._ranks[pair], [*left, *self._names(ids), *right]))
                before = list(ids)
            if word == (tokens := self._merged(pieces[at])):
                steps += mine
            words[at] = tokens
        return steps

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
            End where the last message does, or its field of that name, so that the answer continues it.
        sanitize_control_tokens : bool
            Treat special tokens spelled in a message as ordinary text (default); with False they are special tokens.
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
        if self.layout.decoder.bytes:
            return b"".join(self._looked_up(listed(ids), self._token)).decode("utf-8", errors)
        if errors == "replace":
            return "".join(self.layout.decoder.joined(self._looked_up(listed(ids), self._written)))
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some ids."""
        if self.layout.decoder.bytes:
            return b"".join(self._looked_up(listed(ids), self._token))
        return b"".join(self.decode_each(ids))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids as they come, never half a character: joined, what :meth:`decode` gives."""
        if not self.layout.decoder.bytes:
            return filter(None, self.layout.decoder.joined(self._looked_up(ids, self._written)))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = chain(map(decoder.decode, self.decode_each(ids)), (decoder.decode(b"", final=True) for _ in (1,)))
        return filter(None, texts)

    def decode_each(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The bytes of each id, one after another: those of the first may depend on its being the first."""
        waiting: deque[str] = deque()
        texts = self.layout.decoder.joined(iter(waiting.popleft, None), as_bytes=True)
        for i in ids.tolist() if isinstance(ids, np.ndarray) else ids:
            if type(i) is not int or i < 0:
                i = checked_id(i)
            if self.layout.decoder.bytes or i not in self._token:
                yield self._token.get(i, b"")
            else:
                waiting.append(self._written[i])
                yield next(texts).encode("utf-8", "surrogateescape")
