"""complete: text in, text out; and the same text in pieces, as it comes."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from numllama.generation.generate import stream
from numllama.generation.kv_cache import KVCache
from numllama.generation.sampling import SamplingConfig
from numllama.model import Transformer

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
    **settings: Any,
) -> str:
    """Continue a text.

    Parameters
    ----------
    model : Transformer
    tokenizer
        With ``encode(text)`` and ``decode_stream(ids)``.
    text : str
        The prompt. It begins with the checkpoint's beginning-of-text token, if it has one.
    max_new_tokens : int, optional
        Default 256, or as many as fit the model's max_seq_len.
    stop : str or sequence of str
        The first of these that comes up ends the text; it is not part of it.
    window, kv_cache, sampling
        See :func:`generate`.
    settings
        See :class:`SamplingConfig`. By default the model's own stop ids end the text.

    Returns
    -------
    str
        The new text only.
    """
    return "".join(stream_text(model, tokenizer, text, max_new_tokens, stop, window, kv_cache, sampling, **settings))


def stream_text(
    model: Transformer,
    tokenizer: Any,
    prompt: str | Sequence[int],
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Any,
) -> "TextStream":
    """As :func:`complete`, in pieces of whole characters, as they come. The prompt may be ids, which are taken as they are."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(word, str) and word for word in stop):
        raise ValueError(f"stop is {stop!r}, but must be texts of at least one character")
    context = list(tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    ids = [*opening(model, tokenizer), *context] if isinstance(prompt, str) else context
    if not ids:
        raise ValueError("the prompt is empty, but at least one token is needed to begin with")
    if sampling is None:
        settings = {"stop_ids": getattr(model, "stop_ids", ()), **settings}
    if max_new_tokens is None:
        windowed = window is not None or (kv_cache is not None and kv_cache.window is not None)
        fits = model.config.max_seq_len - len(ids) + 1                     # the last token is not looked at
        max_new_tokens = MAX_NEW_TOKENS if windowed else max(1, min(MAX_NEW_TOKENS, fits))
    new = stream(model, ids, max_new_tokens, window=window, kv_cache=kv_cache, sampling=sampling, **settings)
    return TextStream(tokenizer, context, new, stop, prompt_tokens=len(ids))


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
        self, tokenizer: Any, context: Sequence[int], ids: Iterable[int], stop: Sequence[str], prompt_tokens: int
    ) -> None:
        self.prompt_tokens, self.new_tokens, self.prompt_seconds = prompt_tokens, 0, 0.0
        self.seconds = 0.0
        self._pieces = until(decode_behind(tokenizer, context, self._counted(ids)), stop)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first; 0 where there are none."""
        return (self.new_tokens - 1) / self.seconds if self.seconds > 0 else 0.0

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


def opening(model: Transformer, tokenizer: Any) -> list[int]:
    """The checkpoint's beginning-of-text token, if it has one.

    A checkpoint that names such a token may still not have been trained with it: its tokenizer's post-processor says so.
    """
    first = model.generation_config.get("bos_token_id")
    post_processor = getattr(tokenizer, "post_processor", None)
    if first is None or (post_processor and "TemplateProcessing" not in json.dumps(post_processor)):
        return []
    return [first]


def decode_behind(tokenizer: Any, context: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of ids as they come. What stands before them counts: only the first word of a text loses its space."""
    begun = False

    def all_ids() -> Iterator[int]:
        nonlocal begun
        yield from context
        begun = True
        yield from ids

    return (piece for piece in tokenizer.decode_stream(all_ids()) if begun)


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass a text on up to the word that is complete first; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [(at + len(word), at) for word in stop if (at := held.find(word)) >= 0]     # its end, its beginning
        if found:
            held = held[: min(found)[1]]
            break
        safe = len(held) - max((overlap(held, word) for word in stop), default=0)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


def overlap(text: str, word: str) -> int:
    """The length of the longest beginning of `word`, short of all of it, that `text` ends with."""
    return next((n for n in range(min(len(text), len(word) - 1), 0, -1) if text.endswith(word[:n])), 0)
