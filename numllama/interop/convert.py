"""From one kind of file to another: Hugging Face's folder, llama2.c's .bin, a training run's best model."""

from pathlib import Path

from numllama.errors import NumllamaError
from numllama.interop.load import load
from numllama.storage.folders import is_empty, locked
from numllama.tokenizer import Tokenizer


def convert(source: Path, target: Path, dtype: str | None = None, tokenizer: Path | None = None) -> str:
    """Read a model and write it as `target` says; returns what was done, in a sentence.

    Parameters
    ----------
    source : path
        Whatever :func:`numllama.load` reads.
    target : path
        A folder, for Hugging Face's layout with the tokenizer; or a name that ends in .bin, for llama2.c, which keeps its
        tokenizer in a file of its own.
    dtype : str, optional
        Of the weights: float32, float64 or bfloat16.
    tokenizer : path, optional
        Default the one beside the source, if there is one.

    Raises
    ------
    NumllamaError
        If something is in the way: nothing is written over.
    """
    if target.suffix == ".bin":
        if target.exists():
            raise NumllamaError(f"{target} exists already, and is not written over: choose another name")
        model, found = load(source, dtype), _tokenizer(source, tokenizer)
        model.save(target)
        return f"{target}: {target.stat().st_size:,} bytes" + (
            " (llama2.c keeps its tokenizer in a file of its own)" if found else ""
        )
    with locked(target):
        if not is_empty(target):
            raise NumllamaError(f"{target} exists already, and is not written over: choose another name")
        model, found = load(source, dtype), _tokenizer(source, tokenizer)
        model.save(target, found)
    return f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}"


def _tokenizer(source: Path, named: Path | None) -> object | None:
    if named is not None:
        return Tokenizer.load(named)
    folder = source if source.is_dir() else source.parent
    beside = folder.parent if folder.name.startswith("step-") else folder
    if not any((beside / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None  # there is none, which is no fault of a model
    return Tokenizer.load(beside)
