"""Convert models between formats: Hugging Face's folder, llama2.c's .bin, the best model of a training run."""

from pathlib import Path

from numllama.errors import NumllamaError
from numllama.interop.load import load
from numllama.storage.folders import is_empty, locked
from numllama.tokenizer import Tokenizer


def convert(source: Path, target: Path, *, dtype: str | None = None, tokenizer: Path | None = None) -> str:
    """Convert a model; returns a sentence that says what was written.

    Parameters
    ----------
    source : path
        Any model that :func:`numllama.load` reads.
    target : path
        A folder, for Hugging Face's layout with the tokenizer; or a name that ends in .bin, for llama2.c, whose tokenizer is a
        separate file.
    dtype : str, optional
        dtype of the weights: float32, float64 or bfloat16.
    tokenizer : path, optional
        Default the one in the source's folder, if any.

    Raises
    ------
    NumllamaError
        If the target exists: nothing is overwritten.
    """
    if target.suffix == ".bin":
        if target.exists():
            raise NumllamaError(f"{target} exists already, and is not overwritten: choose another name")
        model, found = load(source, dtype=dtype), _tokenizer(source, tokenizer)
        model.save(target)
        return f"{target}: {target.stat().st_size:,} bytes" + (
            " (llama2.c keeps the tokenizer in a separate file)" if found else ""
        )
    with locked(target):
        if not is_empty(target):
            raise NumllamaError(f"{target} exists already, and is not overwritten: choose another name")
        model, found = load(source, dtype=dtype), _tokenizer(source, tokenizer)
        model.save(target, found)
    return f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}"


def _tokenizer(source: Path, named: Path | None) -> object | None:
    if named is not None:
        return Tokenizer.load(named)
    folder = source if source.is_dir() else source.parent
    home = folder.parent if folder.name.startswith("step-") else folder
    if not any((home / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None  # a model need not have one
    return Tokenizer.load(home)
