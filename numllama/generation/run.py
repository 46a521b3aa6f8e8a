"""The command line's `generate`: open a model, and write to the terminal as the text comes."""

import sys
from pathlib import Path
from typing import Any

import numllama
from numllama.generation.text import stream_text


def generate_run(path: Path, tokenizer_path: Path | None, device: str, prompt: str, **arguments: Any) -> int:
    """Continue a prompt, and say how fast that was; returns the exit code.

    Parameters
    ----------
    path : path
        A training run, or whatever else :func:`numllama.load` reads.
    tokenizer_path : path, optional
        A tokenizer's file or folder; default the model's folder.
    device : str
    prompt : str
    arguments
        See :func:`numllama.generation.stream_text`.
    """
    load = getattr(numllama, "load", numllama.load_run)
    tokenizers = getattr(numllama, "Tokenizer", numllama.CharTokenizer)
    model = load(path, device=device)
    tokenizer = tokenizers.load(tokenizer_path or (path if path.is_dir() else path.parent))
    pieces = stream_text(model, tokenizer, prompt, **arguments)
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
    print(
        f"{pieces.prompt_tokens} prompt tokens in {pieces.prompt_seconds:.2f} s, "
        f"{pieces.new_tokens} new ones, {pieces.tokens_per_second:,.0f} tokens/s",
        file=sys.stderr,
    )
    return 0
