"""Convert models between formats: Hugging Face's folder, llama2.c's .bin, llama.cpp's .gguf, the best model of a run."""

from pathlib import Path
from typing import Any

from numllama.errors import NumllamaError
from numllama.interop.load import gguf_of, load, save
from numllama.storage.folders import is_empty, locked
from numllama.storage.gguf_file import SUFFIX, read_gguf
from numllama.tokenizer import Tokenizer
from numllama.tokenizer.gguf import has_tokenizer


def convert(source: Path, target: Path, *, dtype: str | None = None, tokenizer: Path | None = None) -> str:
    """Convert a model; returns a sentence that says what was written.

    Parameters
    ----------
    source : path
        Any model that :func:`numllama.load` reads.
    target : path
        A folder, for Hugging Face's layout with the tokenizer; a name that ends in .gguf, for llama.cpp, with the tokenizer; or
        one that ends in .bin, for llama2.c, whose tokenizer is a separate file.
    dtype : str, optional
        dtype of the weights: float32, float64 or bfloat16; for a .gguf float32, float16, bfloat16 or q8_0.
    tokenizer : path, optional
        Default the one in the source's folder, if any.

    Raises
    ------
    NumllamaError
        If the target exists: nothing is overwritten.
    """
    if target.suffix in (".bin", SUFFIX):
        if target.exists():
            raise NumllamaError(f"{target} exists already, and is not overwritten: choose another name")
        found = load_own_tokenizer(source, tokenizer)
        if target.suffix == SUFFIX:
            save(load(source, dtype="bfloat16" if dtype == "bfloat16" else None), target, found, dtype)
            return f"{target}: {target.stat().st_size:,} bytes"
        load(source, dtype=dtype).save(target)
        return f"{target}: {target.stat().st_size:,} bytes" + (
            " (llama2.c keeps the tokenizer in a separate file)" if found else ""
        )
    with locked(target):
        if not is_empty(target):
            raise NumllamaError(f"{target} exists already, and is not overwritten: choose another name")
        model, found = load(source, dtype=dtype), load_own_tokenizer(source, tokenizer)
        model.save(target, found)
    return f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}"


def load_own_tokenizer(source: Path, named: Path | None) -> Any:
    """The named tokenizer, or the one that comes with a model; None if it has none."""
    if named is not None:
        return Tokenizer.load(named)
    if (file := gguf_of(source)) is not None:
        return Tokenizer.load(file) if has_tokenizer(read_gguf(file).values) else None
    folder = source if source.is_dir() else source.parent
    home = folder.parent if folder.name.startswith("step-") else folder
    if not any((home / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None  # a model need not have one
    return Tokenizer.load(home)
