"""complete: text in, text out; and the same text in pieces, as it comes."""

import json
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
    text: str,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    window: int | None = None,
    kv_cache: KVCache | None = None,
    sampling: SamplingConfig | None = None,
    **settings: Any,
) -> Iterator[str]:
    """As :func:`complete`, in pieces of whole characters."""
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(word, str) and word for word in stop):
        raise ValueError(f"stop is {stop!r}, but must be texts of at least one character")
    prompt = encode_prompt(model, tokenizer, text)
    if not prompt:
        raise ValueError("text is empty, but at least one token is needed to begin with")
    if sampling is None:
        settings = {"stop_ids": getattr(model, "stop_ids", ()), **settings}
    if max_new_tokens is None:
        windowed = window is not None or (kv_cache is not None and kv_cache.window is not None)
        fits = model.config.max_seq_len - len(prompt) + 1                  # the last token is not looked at
        max_new_tokens = MAX_NEW_TOKENS if windowed else max(1, min(MAX_NEW_TOKENS, fits))
    ids = stream(model, prompt, max_new_tokens, window=window, kv_cache=kv_cache, sampling=sampling, **settings)
    return until(tokenizer.decode_stream(ids), stop)


def encode_prompt(model: Transformer, tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, behind the checkpoint's beginning-of-text token.

    A checkpoint that names such a token may still not have been trained with it: its tokenizer's post-processor says so.
    """
    ids = list(tokenizer.encode(text))
    first = getattr(model, "generation_config", {}).get("bos_token_id")
    post_processor = getattr(tokenizer, "post_processor", None)
    if first is None or (post_processor and "TemplateProcessing" not in json.dumps(post_processor)):
        return ids
    return [first, *ids]


def until(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """Pass a text on up to the first of some words; what may be the beginning of one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        found = [at for word in stop if (at := held.find(word)) >= 0]
        if found:
            held = held[: min(found)]
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
