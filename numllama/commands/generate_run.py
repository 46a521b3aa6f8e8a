"""What `numllama generate` and `numllama chat` do: load a model, and print text as it is generated."""

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
from numllama.model.transformer import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer

INTERRUPTED = 130
TEMPERATURE = 0.8  # default if neither flags nor checkpoint set it: more coherent text than at 1
STDIN = "-"
BETWEEN = "-----"  # separates several texts


def generate_run(
    source: ModelSource,
    prompt: str | None = None,
    prompt_file: Path | None = None,
    n: int = 1,
    as_json: bool = False,
    **settings: Any,
) -> int:
    """Continue a prompt, and print the speed; returns the exit code.

    Parameters
    ----------
    source : ModelSource
    prompt : str, optional
        ``-`` for standard input.
    prompt_file : path, optional
        A file with the prompt instead.
    n : int
        Number of texts.
    as_json : bool
        Print one JSON object instead of the texts.
    settings
        See :func:`numllama.generation.text.stream_text`. A text that does not fit the model's max_seq_len gets a sliding window
        of that length, unless a window is given.
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
        sentence = f"the text is longer than max_seq_len, so each token sees only {most} tokens, as with --window {most}"
        print(sentence, file=sys.stderr)
    return 0


def _prompt(prompt: str | None, file: Path | None) -> str:
    """The text to continue, as given, from a file or from standard input, without its last newline."""
    if prompt is not None and file is not None:
        raise ValueError("prompt and prompt_file are both given, but only one is allowed")
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
    """The given settings, completed by the checkpoint's (which are printed) and then by the command's defaults."""
    own = {name: value for name, value in checkpoint_settings(model.generation_config).items() if name not in settings}
    if own:
        print(settings_line(own), file=sys.stderr)
    return {"temperature": TEMPERATURE, **own, **settings}


def _texts(
    model: Transformer, tokenizer: Tokenizer | CharTokenizer, prompt: str, n: int, settings: dict[str, Any]
) -> Iterator[TextStream]:
    """The texts, one after another; the prompt is computed only once."""
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
    """The output of `generate --json`."""
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
    """Answer each line of standard input. Ctrl-C ends an answer; between answers it ends the chat, as end of input does.

    Parameters
    ----------
    source : ModelSource
    system : str, optional
    settings
        See :class:`numllama.generation.chat.Chat`.
    """
    opened = source.open()
    chat = Chat(*opened, system=system, **_with_defaults(opened[0], settings))
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
        except ValueError as error:  # a character that the tokenizer does not know, or a chat that is too long
            print(f"error: {error}", file=sys.stderr)


def show(pieces: Iterable[str]) -> None:
    """Print a text as it is generated."""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)


def report(texts: list[TextStream]) -> None:
    """Print the numbers of tokens and the speed to standard error."""
    tokens, new = sum(text.prompt_tokens for text in texts), sum(text.new_tokens for text in texts)
    first, seconds = sum(text.prompt_seconds for text in texts), sum(text.seconds for text in texts)
    later = sum(max(0, text.new_tokens - 1) for text in texts)
    rate = f", {later / seconds:,.0f} tokens/s" if seconds else ""
    print(f"{tokens} prompt tokens in {first:.2f} s, {new} new ones{rate}", file=sys.stderr)
