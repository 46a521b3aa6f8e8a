"""Byte-pair encoding on bytes, lossless for any text; `core.py` does the work.

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

from numllama.errors import shown
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
    """One merge step: the merged pair, its rank, and all tokens after it."""

    left: bytes
    right: bytes
    rank: int
    tokens: list[bytes]


class Tokenizer(BytePairs):
    """Byte-level BPE.

    Parameters
    ----------
    vocab : dict
        ``{id: bytes}`` or ``{bytes: id}``. Bytes without a token are left out of a text, as in `tokenizers`.
    merges : sequence of (bytes, bytes)
        In training order: the first pair merges first.
    special_tokens : dict of str to int, or sequence of str
        Strings that never merge, and their ids. In a sequence, those that are not in the vocabulary get the ids after its last.
    pattern : str
        Splits a text before merging: ``gpt2``, ``cl100k``, ``llama3``, ``qwen2``, or a regular expression of the `regex`
        package. Refused if Oniguruma, which readers of a ``tokenizer.json`` use, cannot express it.
    ignore_merges : bool
        Look up a whole pre-token before merging it, as Llama 3 and tiktoken do.
    unk_token : str, optional
        The special token that takes the place of each byte without a token.

    Attributes
    ----------
    vocab : dict of int to bytes
    merges : list of (bytes, bytes)
    special_tokens : dict of str to int
    added_tokens : list of AddedToken
        The special tokens, and other strings that are always one token.
    pattern : str or None
        The regular expression itself; None if a text is split in several steps.
    post_processor : dict or None
        The tokens to put around a text, as a ``tokenizer.json`` specifies them.
    before, after : list of int
        The ids of those tokens.
    vocab_size : int
        The largest id plus one: the number of rows that a model's embedding needs.
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
        unk_token: str | None = None,
    ) -> None:
        vocab = by_id(vocab)
        special = numbered(special_tokens, vocab)
        if unk_token is not None and unk_token not in special:
            raise ValueError(f"unk_token is {shown(unk_token)}, but must be one of special_tokens")
        if single := [token for token, i in special.items() if i in vocab and len(vocab[i]) == 1]:
            raise ValueError(f"special_tokens holds {shown(single[0])}, but that is the token of a byte, which any text may hold")
        added = [AddedToken(token, i) for token, i in special.items()]
        layout = Layout(byte_level(as_oniguruma(pattern)))
        self._set_up(vocab, merges, added, layout, ignore_merges=ignore_merges, unknown=special.get(unk_token or ""))

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
        """The ids of a text between `before` and `after`, as other libraries encode a single text by default."""
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

        Repeatedly, the most frequent adjacent pair becomes a token; ties go to the pair of byte strings that sorts last.
        Ids: the 256 bytes, the merges, the special tokens.

        Parameters
        ----------
        files : path or sequence of paths
            UTF-8 text, read in pieces, so files may be larger than memory.
        vocab_size : int
            At least 256 plus the special tokens. The vocabulary is smaller if nothing is left to merge.
        special_tokens : sequence of str
            The text is cut at these; they take no part in merges.
        pattern : str
            ``gpt2``, ``cl100k``, ``llama3``, or a regular expression. With your own, only special tokens cut a text into pieces.
        workers : int, optional
            Processes that count words; the result does not depend on it. Default one per core for large texts.
        progress : bool
            Show a progress bar.
        errors : str
            ``strict``, or ``replace`` for files that are not quite UTF-8.

        Raises
        ------
        DataError
            If a file cannot be read or is not UTF-8, or if there is no text at all.
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
            A lone surrogate is not Unicode, and becomes U+FFFD.
        allowed_special : "all" or collection of str
            Special tokens to recognise in the text.
        disallowed_special : "all" or collection of str
            Special tokens that raise an error; "all": those not allowed. The remaining ones are ordinary text.

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
        """Like :meth:`encode`, for long texts: returns an array of `dtype`."""
        return np.frombuffer(self.pack(text, allowed_special, disallowed_special), self.dtype)

    def pack(
        self,
        text: str,
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
        begins: bool = True,
    ) -> bytes:
        """Like :meth:`encode_array`, for files and pipes: returns the array's bytes.

        `begins`: this is the beginning of a text, not one of its later :meth:`chunks`.
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
        """The ids of each text. Several workers encode in processes, which pays off for many megabytes.

        To reuse the processes, see :class:`numllama.tokenizer.parallel.ParallelEncoder`.
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
        """The ids of one long text that arrives in arbitrary parts: the same ids as for the whole.

        Memory is bounded by the longest stretch without the end of a word, a space or a special token; with a pattern of
        your own, by the longest stretch without a special token.
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
        """Recut a text that arrives in parts so that the ids of the new parts, concatenated, are those of the whole text.

        Each part but the last has at least `size` characters, and more if there is no such place to cut.
        """
        known, _ = self._sought(allowed_special, disallowed_special)
        simple = known.then is None or self.layout.normalizer.cut == ""  # else the beginning of such a token is unknown
        return chunks(texts, self.layout.cut if simple else None, known.first, size or CHUNK, known.whole)

    def encode_bytes(self, data: bytes) -> list[int]:
        """The ids of any bytes. UTF-8 text is encoded as by :meth:`encode`, with special tokens as ordinary text."""
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

        If there are several words, they merge in turn. A word found by lookup only, which merges do not produce, adds no steps.
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
        """Format a conversation as the checkpoint was trained on it.

        Parameters
        ----------
        messages : sequence of mappings
            ``{"role": "user", "content": "..."}``, oldest first. Fields that are None are left out.
        add_generation_prompt : bool, optional
            End with the opening of the assistant's answer. Default yes, unless the last message is to be continued.
        tokenize : bool
            Return ids; otherwise the text.
        chat_template : str, optional
            A Jinja template, or the name of one of the checkpoint's; default its own, or ``tool_use`` for tools if there is one.
        continue_final_message : bool or str
            End with the last message, or with its field of that name, so that the answer continues it.
        sanitize_control_tokens : bool
            Treat special tokens spelled in a message as ordinary text (default); with False they are special tokens.
        return_dict, return_assistant_tokens_mask : bool
            Return ``input_ids`` and ``attention_mask``, and ``assistant_masks``: 1 for the assistant's tokens.
        values
            Other variables of the template: ``tools``, ``documents``, ``date_string``, ...

        Raises
        ------
        CheckpointError
            If the template cannot be parsed, or violates the sandbox.
        ValueError
            If it refuses these messages, or exceeds its time or memory limit.
        """
        from numllama.tokenizer.conversation import apply_chat_template

        return apply_chat_template(self, messages, add_generation_prompt, tokenize, chat_template, **values)

    # -------------------------------------------------------------------------------------------- to text

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """The text of some ids; invalid UTF-8 becomes U+FFFD, unless `errors` says otherwise.

        Ids without a token are skipped: a model may have more rows than its tokenizer has tokens.
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
        """Decode ids as they arrive, in whole characters; joined, the parts equal :meth:`decode`."""
        if not self.layout.decoder.bytes:
            return filter(None, self.layout.decoder.joined(self._looked_up(ids, self._written)))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts = chain(map(decoder.decode, self.decode_each(ids)), (decoder.decode(b"", final=True) for _ in (1,)))
        return filter(None, texts)

    def decode_each(self, ids: Iterable[int]) -> Iterator[bytes]:
        """The bytes of each id, one by one; the first id may decode differently from later ones."""
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
