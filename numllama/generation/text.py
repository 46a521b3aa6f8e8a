"""complete: text in, text out; and stream_text: the same text in pieces, as it is generated."""

import codecs
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from numllama.errors import shown
from numllama.generation.config import checkpoint_settings
from numllama.generation.generate import stream
from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.model import ModelConfig, Transformer
from numllama.tokenizer.config import beside

MAX_NEW_TOKENS = 256  # the default


def complete(
    model: Transformer,
    tokenizer: Any,
    text: str,
    max_new_tokens: int | None = None,
    *,
    stop: str | Sequence[str] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    special: bool = True,
    skip_special_tokens: bool = True,
    **settings: Any,
) -> str:
    """Continue a text.

    Parameters
    ----------
    model : Transformer
    tokenizer
        With ``encode(text)`` and ``decode_stream(ids)``.
    text : str
        The prompt. The tokenizer's opening tokens, usually one beginning-of-text token, are put before it.
    max_new_tokens : int, optional
        Default 256, or as many as fit the model's max_seq_len.
    stop : str or sequence of str
        Strings or special tokens that end the text; they are not part of it.
    window, kv_cache, sampling
        See :func:`generate`.
    special : bool
        Encode the names of special tokens in the prompt as those tokens; False encodes them as ordinary text.
    skip_special_tokens : bool
        Leave special tokens out of the new text.
    settings
        See :class:`SamplingConfig`. Default those in the checkpoint's generation_config.json, and its end tokens.

    Returns
    -------
    str
        The new text only.
    """
    pieces = stream_text(
        model, tokenizer, text, max_new_tokens, stop=stop, window=window, kv_cache=kv_cache, sampling=sampling, special=special,
        skip_special_tokens=skip_special_tokens, **settings,
    )  # fmt: skip
    return "".join(pieces)


def stream_text(
    model: Transformer,
    tokenizer: Any,
    prompt: str | Sequence[int],
    max_new_tokens: int | None = None,
    *,
    stop: str | Sequence[str] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    special: bool = True,
    skip_special_tokens: bool = True,
    **settings: Any,
) -> "TextStream":
    """Continue a text like :func:`complete`, in pieces of whole characters. The prompt may be ids, which are used unchanged."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(word, str) and word for word in stop):
        raise ValueError(f"stop is {shown(stop)}, but must be texts of at least one character")
    encoded = encode_prompt(model, tokenizer, prompt, special)
    ids = encoded.ids
    if sampling is None:
        sampling, settings = SamplingConfig(**{**default_settings(model, tokenizer), **settings}), {}
    sampling = with_stops(sampling, model, tokenizer, stop)
    if max_new_tokens is None:
        windowed = window is not None or (kv_cache is not None and kv_cache.window is not None)
        fits = model.config.max_seq_len - len(ids) + 1                     # the last token is not an input
        max_new_tokens = MAX_NEW_TOKENS if windowed else max(1, min(MAX_NEW_TOKENS, fits))
    new = stream(model, ids, max_new_tokens, window=window, kv_cache=kv_cache, sampling=sampling, **settings)
    hidden = special_ids(tokenizer) if skip_special_tokens else ()
    return TextStream(
        tokenizer, encoded.context, new, stop=stop, prompt_tokens=len(ids), max_new_tokens=max_new_tokens, hidden=hidden
    )


class TextStream:
    """An iterator of pieces of text that counts tokens and time.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    prompt_seconds : float
        Time to the first new token.
    seconds : float
        Time for the other tokens.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: Sequence[int],
        ids: Iterable[int],
        *,
        stop: Sequence[str] = (),
        prompt_tokens: int,
        max_new_tokens: int | None = None,
        hidden: Collection[int] = (),
    ) -> None:
        self.prompt_tokens, self.new_tokens, self.prompt_seconds = prompt_tokens, 0, 0.0
        self.seconds = 0.0
        self._most, self._exhausted = max_new_tokens, False
        self._pieces = until(decode_behind(tokenizer, context, self._counted(ids), hidden), stop)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens_per_second(self) -> float:
        """Speed of the tokens after the first; 0 if there are none."""
        return (self.new_tokens - 1) / self.seconds if self.seconds > 0 else 0.0

    @property
    def finish(self) -> str:
        """Why the text ended: ``length`` at the limit of new tokens, else ``stop``."""
        return "length" if self._exhausted and self.new_tokens == self._most else "stop"

    def _counted(self, ids: Iterable[int]) -> Iterator[int]:
        before = time.perf_counter()
        for i in ids:
            taken = time.perf_counter() - before
            if self.new_tokens == 0:
                self.prompt_seconds = taken
            else:
                self.seconds += taken
            self.new_tokens += 1
            yield i
            before = time.perf_counter()  # the caller's time does not count
        self._exhausted = True


# ------------------------------------------------------------------------------------------------ prompts and settings


class EncodedPrompt(NamedTuple):
    """The ids of a prompt's own text, and all ids that the model sees, with the tokenizer's opening and closing tokens."""

    context: list[int]
    ids: list[int]


def encode_prompt(
    model: Transformer, tokenizer: Any, prompt: str | Sequence[int], special: bool = True
) -> EncodedPrompt:
    """Encode a prompt; ids are used unchanged."""
    if isinstance(prompt, str):
        context = list(encode_text(tokenizer, prompt, special))
        ids = [*opening(model, tokenizer), *context, *getattr(tokenizer, "after", ())]
    else:
        context = ids = list(prompt)
    if not ids and isinstance(prompt, str):  # transformers too begins an empty prompt with this token
        first = getattr(model, "generation_config", {}).get("bos_token_id")
        ids = [first] if type(first) is int and 0 <= first < model.config.vocab_size else []
    if not ids:
        raise ValueError("the prompt is empty, but at least one token is needed to begin with")
    return EncodedPrompt(context, ids)


def encode_text(tokenizer: Any, text: str, special: bool = True) -> Sequence[int]:
    """The ids of a text. Names of special tokens become those tokens; without `special` they are ordinary text."""
    if not special_ids(tokenizer):
        return tokenizer.encode(text)
    return tokenizer.encode(text, allowed_special="all") if special else tokenizer.encode(text, disallowed_special=())


def opening(model: Transformer, tokenizer: Any) -> list[int]:
    """The tokens that open a text, usually one beginning-of-text token.

    The tokenizer decides, never the model: a checkpoint may name such a token without having been trained with it.
    """
    return list(getattr(tokenizer, "before", ()))


def default_settings(model: Transformer, tokenizer: Any) -> dict[str, Any]:
    """The checkpoint's fields of :class:`SamplingConfig`, with the end tokens of model and tokenizer as stop ids.

    A fine-tuned model's generation_config.json may name only the end-of-text token, while its tokenizer's ``eos_token`` ends a
    turn: both end an answer.
    """
    stop_ids = [*getattr(model, "stop_ids", ()), *(i for i in end_ids(tokenizer) if i < model.config.vocab_size)]
    return {**checkpoint_settings(getattr(model, "generation_config", {})), "stop_ids": tuple(dict.fromkeys(stop_ids))}


def with_stops(sampling: SamplingConfig, model: Transformer, tokenizer: Any, stop: Iterable[str]) -> SamplingConfig:
    """Add the stop strings that are special tokens to the stop ids: they cannot be found in a text that leaves them out."""
    special = getattr(tokenizer, "special_tokens", {})
    ids = [special[word] for word in stop if special.get(word, model.config.vocab_size) < model.config.vocab_size]
    return replace(sampling, stop_ids=(*sampling.stop_ids, *ids)) if ids else sampling


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The id of the ``eos_token`` in the tokenizer's files, if the vocabulary has it; else no id."""
    folder, special = getattr(tokenizer, "folder", None), getattr(tokenizer, "special_tokens", None)
    names = getattr(tokenizer, "config", None) or (beside(folder).names if folder and special is not None else {})
    token = names.get("eos_token")
    ids = encode_text(tokenizer, token) if token else ()
    return tuple(ids) if len(ids) == 1 else ()


def fewest_tokens(tokenizer: Any, texts: Iterable[str], most: int) -> int:
    """A lower bound on the number of tokens of some texts, without encoding them; exact only for characters.

    With most tokenizers, no token stands for more bytes than the longest one of the vocabulary. For texts that cannot have more
    than `most` tokens the bound is 0.
    """
    texts = list(texts)
    if hasattr(tokenizer, "characters"):
        return sum(map(len, texts))
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return n_bytes // longest if n_bytes > most and (longest := getattr(tokenizer, "longest", None)) else 0


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's special tokens."""
    return frozenset(getattr(tokenizer, "special_tokens", {}).values())


def window_for(config: ModelConfig, prompt_tokens: int, new_tokens: int) -> int | None:
    """A window for a text longer than the model's max_seq_len; None if the text fits, or if positions are learned."""
    fits = prompt_tokens + new_tokens - 1 <= config.max_seq_len            # the last token is not an input
    return None if fits or config.positions == "learned" else config.max_seq_len


# ------------------------------------------------------------------------------------------------ from ids to text


class TextDecoder:
    """Decodes tokens one at a time into whole characters.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    hidden : collection of int
        Tokens to leave out of the text.

    Attributes
    ----------
    offset : int
        Where the last token begins: the number of characters before the one that contains its first byte.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int] = ()) -> None:
        self.tokenizer, self.hidden, self.offset, self._length = tokenizer, hidden, 0, 0
        self._ids: deque[int] = deque()
        self._bytes = tokenizer.decode_each(iter(self._ids.popleft, None)) if hasattr(tokenizer, "decode_each") else None
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, i: int) -> str:
        """The characters that this token completes."""
        self.offset = self._length
        if i in self.hidden:
            return ""
        if self._bytes is None:
            return self._counted(self.tokenizer.decode([i]))
        self._ids.append(i)
        token = next(self._bytes)
        text = ""
        if self._half() and token:  # its first byte may continue that character, or follow an invalid one
            text = self._counted(self._utf8.decode(token[:1]))
            self.offset = self._length - (not self._half())
            token = token[1:]
        return text + self._counted(self._utf8.decode(token))

    def forget(self) -> None:
        """Begin to count the text at the next token; an incomplete character is kept."""
        self._length = 0

    def end(self) -> str:
        """The rest of the text: U+FFFD for an incomplete character."""
        return self._counted(self._utf8.decode(b"", final=True))

    def _half(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _counted(self, text: str) -> str:
        self._length += len(text)
        return text


def decode_behind(tokenizer: Any, context: Sequence[int], ids: Iterable[int], hidden: Collection[int] = ()) -> Iterator[str]:
    """The text of ids, in pieces. The context matters: only the first word of a text loses its space."""
    return filter(None, decode_one_by_one(tokenizer, context, ids, hidden))


def decode_one_by_one(
    tokenizer: Any, context: Sequence[int], ids: Iterable[int], hidden: Collection[int] = ()
) -> Iterator[str]:
    """The same, with one piece for each id, which may be empty, and one for the rest."""
    decoder = TextDecoder(tokenizer, hidden)
    for i in context:
        decoder.push(i)
    yield from map(decoder.push, ids)
    yield decoder.end()


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """A text up to the first stop string that is complete. Text that may begin a stop string is held back."""
    return filter(None, until_one_by_one(pieces, stop))


def until_one_by_one(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The same, with one piece for each piece of the text, which may be empty, and one for the text held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(word), at) for word in stop if (at := held.find(word)) >= 0]     # its end, its beginning
        if found:
            held = held[: min(found)[1]]
            break
        safe = len(held) - max((overlap(held, word) for word in stop), default=0)
        yield held[:safe]
        held = held[safe:]
    yield held


def overlap(text: str, word: str) -> int:
    """The length of the longest proper prefix of `word` that `text` ends with."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
