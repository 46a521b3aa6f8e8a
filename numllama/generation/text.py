"""complete: text in, text out; and the same text in pieces, as it comes."""

import codecs
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from numllama.errors import shown
from numllama.generation.config import checkpoint_settings
from numllama.generation.generate import stream
from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.model import ModelConfig, Transformer
from numllama.tokenizer.config import beside

MAX_NEW_TOKENS = 256  # where nobody says how many


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
        The prompt. What the tokenizer puts before a text, a beginning-of-text token most often, is put before it.
    max_new_tokens : int, optional
        Default 256, or as many as fit the model's max_seq_len.
    stop : str or sequence of str
        The first of these that comes up ends the text; it is not part of it. It may be a special token.
    window, kv_cache, sampling
        See :func:`generate`.
    special : bool
        Special tokens that the prompt spells are those tokens; False takes them for ordinary text.
    skip_special_tokens : bool
        Leave special tokens out of the new text.
    settings
        See :class:`SamplingConfig`. Default what the checkpoint's generation_config.json says, and its end tokens.

    Returns
    -------
    str
        The new text only.
    """
    how = dict(sampling=sampling, special=special, skip_special_tokens=skip_special_tokens, **settings)
    return "".join(stream_text(model, tokenizer, text, max_new_tokens, stop, window, kv_cache, **how))


def stream_text(
    model: Transformer,
    tokenizer: Any,
    prompt: str | Sequence[int],
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    *,
    special: bool = True,
    skip_special_tokens: bool = True,
    **settings: Any,
) -> "TextStream":
    """As :func:`complete`, in pieces of whole characters, as they come. The prompt may be ids, which are taken as they are."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(word, str) and word for word in stop):
        raise ValueError(f"stop is {shown(stop)}, but must be texts of at least one character")
    context, ids = encode_prompt(model, tokenizer, prompt, special)
    if sampling is None:
        sampling, settings = SamplingConfig(**{**default_settings(model, tokenizer), **settings}), {}
    sampling = with_stops(sampling, model, tokenizer, stop)
    if max_new_tokens is None:
        windowed = window is not None or (kv_cache is not None and kv_cache.window is not None)
        fits = model.config.max_seq_len - len(ids) + 1                     # the last token is not looked at
        max_new_tokens = MAX_NEW_TOKENS if windowed else max(1, min(MAX_NEW_TOKENS, fits))
    new = stream(model, ids, max_new_tokens, window=window, kv_cache=kv_cache, sampling=sampling, **settings)
    hidden = special_ids(tokenizer) if skip_special_tokens else ()
    return TextStream(tokenizer, context, new, stop, len(ids), max_new_tokens, hidden)


class TextStream:
    """An iterator of pieces of text, and what they took.

    Attributes
    ----------
    prompt_tokens, new_tokens : int
    prompt_seconds : float
        Until the first new token was there.
    seconds : float
        For the others.
    """

    def __init__(
        self,
        tokenizer: Any,
        context: Sequence[int],
        ids: Iterable[int],
        stop: Sequence[str],
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
        """Of the tokens after the first; 0 where there are none."""
        return (self.new_tokens - 1) / self.seconds if self.seconds > 0 else 0.0

    @property
    def finish(self) -> str:
        """Why it ended: ``length`` if it could have gone on, else ``stop``."""
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
            before = time.perf_counter()  # what the reader does with a token is not our time
        self._exhausted = True


# ------------------------------------------------------------------------------------------------ before the text


def encode_prompt(
    model: Transformer, tokenizer: Any, prompt: str | Sequence[int], special: bool = True
) -> tuple[list[int], list[int]]:
    """The ids of a prompt: those that it spells, and all that the model sees, with what the tokenizer puts around a text."""
    if isinstance(prompt, str):
        context = list(encode_text(tokenizer, prompt, special))
        ids = [*opening(model, tokenizer), *context, *getattr(tokenizer, "after", ())]
    else:
        context = ids = list(prompt)
    if not ids and isinstance(prompt, str):  # as transformers begins where there is no prompt
        first = getattr(model, "generation_config", {}).get("bos_token_id")
        ids = [first] if type(first) is int and 0 <= first < model.config.vocab_size else []
    if not ids:
        raise ValueError("the prompt is empty, but at least one token is needed to begin with")
    return context, ids


def encode_text(tokenizer: Any, text: str, special: bool = True) -> Sequence[int]:
    """The ids of a text. Special tokens that it spells are those tokens, or with `special` off ordinary text."""
    if not special_ids(tokenizer):
        return tokenizer.encode(text)
    return tokenizer.encode(text, allowed_special="all") if special else tokenizer.encode(text, disallowed_special=())


def opening(model: Transformer, tokenizer: Any) -> list[int]:
    """What belongs before a text, the beginning-of-text token most often.

    The tokenizer says so, never the model: a checkpoint may name such a token without having been trained with it.
    """
    return list(getattr(tokenizer, "before", ()))


def default_settings(model: Transformer, tokenizer: Any) -> dict[str, Any]:
    """Fields of :class:`SamplingConfig` as the checkpoint asks for them, and the end tokens of model and tokenizer.

    A tuned model's generation_config.json may name the end of a text alone, while its tokenizer's ``eos_token`` ends a turn: both
    end an answer.
    """
    stop_ids = [*getattr(model, "stop_ids", ()), *(i for i in end_ids(tokenizer) if i < model.config.vocab_size)]
    return {**checkpoint_settings(getattr(model, "generation_config", {})), "stop_ids": tuple(dict.fromkeys(stop_ids))}


def with_stops(sampling: SamplingConfig, model: Transformer, tokenizer: Any, stop: Iterable[str]) -> SamplingConfig:
    """Settings by which a stop word that is a special token ends a text: it would not be found in a text that shows none."""
    special = getattr(tokenizer, "special_tokens", {})
    ids = [special[word] for word in stop if special.get(word, model.config.vocab_size) < model.config.vocab_size]
    return replace(sampling, stop_ids=(*sampling.stop_ids, *ids)) if ids else sampling


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The token that the tokenizer's files call ``eos_token``; none if they name none, or one that it does not have."""
    folder, special = getattr(tokenizer, "folder", None), getattr(tokenizer, "special_tokens", None)
    token = beside(folder).names.get("eos_token") if folder and special is not None else None
    ids = encode_text(tokenizer, token) if token else ()
    return tuple(ids) if len(ids) == 1 else ()


def fewest_tokens(tokenizer: Any, texts: Iterable[str], most: int) -> int:
    """How many tokens some texts have at least, without encoding them; exact only for characters.

    Each token stands for no more bytes than the longest one of the vocabulary, with most tokenizers. Texts that cannot have more
    than `most` are not looked at any closer.
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
    """A window for a text that goes on beyond the model's max_seq_len; one that fits needs none, and learned positions end."""
    fits = prompt_tokens + new_tokens - 1 <= config.max_seq_len            # the last token is not looked at
    return None if fits or config.positions == "learned" else config.max_seq_len


# ------------------------------------------------------------------------------------------------ from ids to text


class TextDecoder:
    """The text of tokens, one after another, and never half a character.

    Parameters
    ----------
    tokenizer : Tokenizer or CharTokenizer
    hidden : collection of int
        Tokens that are left out of the text.

    Attributes
    ----------
    offset : int
        Where in the text the last token begins: how many characters stand before the one that its first byte is part of.
    """

    def __init__(self, tokenizer: Any, hidden: Collection[int] = ()) -> None:
        self.tokenizer, self.hidden, self.offset, self._length = tokenizer, hidden, 0, 0
        self._ids: deque[int] = deque()
        self._bytes = tokenizer.decode_each(iter(self._ids.popleft, None)) if hasattr(tokenizer, "decode_each") else None
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, i: int) -> str:
        """The characters that are whole with this token."""
        self.offset = self._length
        if i in self.hidden:
            return ""
        if self._bytes is None:
            return self._counted(self.tokenizer.decode([i]))
        self._ids.append(i)
        token = next(self._bytes)
        text = ""
        if self._half() and token:  # its first byte may go on with that character, or stand behind what was none
            text = self._counted(self._utf8.decode(token[:1]))
            self.offset = self._length - (not self._half())
            token = token[1:]
        return text + self._counted(self._utf8.decode(token))

    def forget(self) -> None:
        """The text begins with the next token; half a character is finished by it."""
        self._length = 0

    def end(self) -> str:
        """What is left: U+FFFD for half a character."""
        return self._counted(self._utf8.decode(b"", final=True))

    def _half(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _counted(self, text: str) -> str:
        self._length += len(text)
        return text


def decode_behind(tokenizer: Any, context: Sequence[int], ids: Iterable[int], hidden: Collection[int] = ()) -> Iterator[str]:
    """The text of ids as they come. What stands before them counts: only the first word of a text loses its space."""
    return filter(None, decode_one_by_one(tokenizer, context, ids, hidden))


def decode_one_by_one(
    tokenizer: Any, context: Sequence[int], ids: Iterable[int], hidden: Collection[int] = ()
) -> Iterator[str]:
    """The same, but for each id there is a piece, which may be empty, and one for what is left."""
    decoder = TextDecoder(tokenizer, hidden)
    for i in context:
        decoder.push(i)
    yield from map(decoder.push, ids)
    yield decoder.end()


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass a text on up to the word that is complete first; what may be the beginning of one is held back."""
    return filter(None, until_one_by_one(pieces, stop))


def until_one_by_one(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The same, but for each piece there is one, which may be empty, and one for what was held back."""
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
    """The length of the longest beginning of `word`, short of all of it, that `text` ends with."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
