"""The command line's `generate` and `chat`: open a model, and write to the terminal as the text comes."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numllama
from numllama.generation.chat import Chat
from numllama.generation.text import TextStream, stream_text
from numllama.model import Transformer
from numllama.tokenizer import CharTokenizer, Tokenizer

INTERRUPTED = 130


def generate_run(model: Path, tokenizer: Path | None, device: str, dtype: str | None, prompt: str, **settings: Any) -> int:
    """Continue a prompt, and say how fast that was; returns the exit code.

    Parameters
    ----------
    model : path
        Whatever :func:`numllama.load` reads.
    tokenizer : path, optional
        A tokenizer's file or folder; default the one beside the model.
    device, dtype : str
        See :func:`numllama.load`.
    prompt : str
    settings
        See :func:`numllama.generation.stream_text`.
    """
    pieces = stream_text(*open_model(model, tokenizer, device, dtype), prompt, **settings)
    print(prompt, end="", flush=True)
    show(pieces)
    report([pieces])
    return 0


def chat_run(
    model: Path, tokenizer: Path | None, device: str, dtype: str | None, system: str | None, **settings: Any
) -> int:
    """Answer each line of standard input; Ctrl-C ends an answer, or between two of them, as the input's end does, the talk.

    Parameters
    ----------
    model, tokenizer, device, dtype
        See :func:`generate_run`.
    system : str, optional
    settings
        See :class:`numllama.generation.chat.Chat`.
    """
    chat = Chat(*open_model(model, tokenizer, device, dtype), system, **settings)
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


def open_model(
    path: Path, tokenizer: Path | None, device: str, dtype: str | None
) -> tuple[Transformer, Tokenizer | CharTokenizer]:
    """A model and its tokenizer, which lies beside it; of one step of a training run, beside the step."""
    model = numllama.load(path, dtype, device)
    folder = path if path.is_dir() else path.parent
    beside = folder.parent if folder.name.startswith("step-") else folder
    return model, Tokenizer.load(tokenizer or beside)


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
