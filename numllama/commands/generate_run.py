"""The command line's `generate` and `chat`: open a model, and write to the terminal as the text comes."""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from numllama.commands.options import ModelSource
from numllama.data.dataset import read_text
from numllama.errors import DataError
from numllama.generation.chat import Chat
from numllama.generation.config import checkpoint_settings, settings_line
from numllama.generation.kv_cache import KVCache
from numllama.generation.text import MAX_NEW_TOKENS, TextStream, encode_prompt, stream_text, window_for
from numllama.model import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer

INTERRUPTED = 130
TEMPERATURE = 0.8  # where neither flags nor checkpoint say one: a text rather than a sample of the distribution
STDIN = "-"
BETWEEN = "-----"  # several texts


def generate_run(
    source: ModelSource,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    n: int = 1,
    as_json: bool = False,
    **settings: Any,
) -> int:
    """Continue a prompt, and say how fast that was; returns the exit code.

    Parameters
    ----------
    source : ModelSource
    prompt : str, optional
        ``-`` for standard input.
    prompt_file : path, optional
        A file in its place.
    n : int
        Texts.
    as_json : bool
        Print one JSON object in place of the texts.
    settings
        See :func:`numllama.generation.stream_text`. Where the text does not fit the model's max_seq_len and there is no window,
        one of that length slides over it.
    """
    if n < 1:
        raise ValueError(f"n is {n}, but must be a whole number of at least 1")
    prompt = _prompt(prompt, prompt_file)
    opened = source.open()
    settings = _with_defaults(opened[0], settings)
    texts = []
    if as_json:
        written = ["".join(_kept(pieces, texts)) for pieces in _texts(*opened, prompt, n, settings)]
        print(json.dumps(_values(prompt, written, texts, settings), indent=1))
    for i, pieces in enumerate(_texts(*opened, prompt, n, settings) if not as_json else ()):
        print(f"{BETWEEN}\n{prompt}" if i else prompt, end="", flush=True)
        show(_kept(pieces, texts))
    report(texts)
    longest = max(text.prompt_tokens + text.new_tokens - 1 for text in texts)
    if settings.get("window") is None and longest > opened[0].config.max_seq_len:
        most = opened[0].config.max_seq_len
        sentence = f"the text is longer than max_seq_len: each token follows from the {most} before it, as with --window {most}"
        print(sentence, file=sys.stderr)
    return 0


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The text to continue: as it was given, from a file, or from standard input; without the end of its last line."""
    if prompt is not None and file is not None:
        raise ValueError("prompt and prompt_file are both given, but only one of them can be the prompt")
    if prompt != STDIN and file is None:
        return prompt or ""
    if file is not None and str(file) != STDIN:
        text = read_text(file)
    else:
        content = getattr(sys.stdin, "buffer", sys.stdin).read()
        try:
            text = content.decode("utf-8") if isinstance(content, bytes) else content
        except UnicodeDecodeError as error:
            raise DataError(f"standard input is not UTF-8 text: byte {error.start}") from error
    return text.removesuffix("\n").removesuffix("\r")


def _with_defaults(model: Transformer, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, those of the checkpoint where none are given, which are told, and below them the command line's own."""
    own = {name: value for name, value in checkpoint_settings(model.generation_config).items() if name not in settings}
    if own:
        print(settings_line(own), file=sys.stderr)
    return {"temperature": TEMPERATURE, **own, **settings}


def _texts(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer, prompt: str, n: int, settings: dict[str, Any]
) -> Iterator[TextStream]:
    """The texts, one after another; their prompt is computed once."""
    _, ids = encode_prompt(model, tokenizer, prompt, settings.get("special", True))
    seed, window, new = settings.get("seed"), settings.get("window"), settings.get("max_new_tokens")
    if window is None:
        window = window_for(model.config, len(ids), MAX_NEW_TOKENS if new is None else new)
    cache = KVCache(model, window=window) if n > 1 else None
    for i in range(n):
        own = {"window": window, "kv_cache": cache, "seed": None if seed is None else seed + i}
        yield stream_text(model, tokenizer, prompt, **{**settings, **own})


def _kept(pieces: TextStream, texts: list[TextStream]) -> TextStream:
    texts.append(pieces)
    return pieces


def _values(prompt: str, written: list[str], texts: list[TextStream], settings: dict[str, Any]) -> dict[str, Any]:
    """What `generate --json` prints."""
    kept = {name: value for name, value in settings.items() if value is not None and value != ()}
    return {
        "prompt": prompt,
        "prompt_tokens": texts[0].prompt_tokens,
        "settings": kept,
        "texts": [
            {"text": text, "new_tokens": stream.new_tokens, "finish_reason": stream.finish}
            for text, stream in zip(written, texts, strict=True)
        ],
    }


def chat_run(source: ModelSource, system: str | None, **settings: Any) -> int:
    """Answer each line of standard input; Ctrl-C ends an answer, or between two of them, as the input's end does, the talk.

    Parameters
    ----------
    source : ModelSource
    system : str, optional
    settings
        See :class:`numllama.generation.chat.Chat`.
    """
    opened = source.open()
    chat = Chat(*opened, system, **_with_defaults(opened[0], settings))
    answers = []
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt) as end:
            print()
            report(answers)
            return INTERRUPTED if isinstance(end, KeyboardInterrupt) else 0
        if not line.strip():
            continue
        try:
            pieces = chat.say(line)
            answers.append(chat.last)
            show(pieces)
        except KeyboardInterrupt:
            print()
        except ValueError as error:  # of this line: a character that the tokenizer does not know, a talk that is too long
            print(f"error: {error}", file=sys.stderr)


def show(pieces: Iterable[str]) -> None:
    """Write a text as it comes."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def report(texts: list[TextStream]) -> None:
    """One line on standard error: how many tokens, and how fast."""
    tokens, new = sum(text.prompt_tokens for text in texts), sum(text.new_tokens for text in texts)
    first, seconds = sum(text.prompt_seconds for text in texts), sum(text.seconds for text in texts)
    later = sum(max(0, text.new_tokens - 1) for text in texts)
    rate = f", {later / seconds:,.0f} tokens/s" if seconds else ""
    print(f"{tokens} prompt tokens in {first:.2f} s, {new} new ones{rate}", file=sys.stderr)
