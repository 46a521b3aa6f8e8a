"""Data sets of texts and token files, batches of them, and the windows that a validation sees."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numllama.data.token_files import TokenShards, checksum, numbered_files, read_tokens
from numllama.errors import DataError, shown
from numllama.storage.checksums import check_files
from numllama.storage.files import reading, regular
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.train_bpe import check_vocab_size, train_on_text

VAL_FRACTION = 0.1
VAL_STREAM = 2**32  # validation estimates draw their batches apart from any training step
BPE_VOCABULARY = 1024  # of a text of about a megabyte: each token is still seen often enough to be learnt


@dataclass(frozen=True)
class Dataset:
    """Two arrays of ids and what is known of them.

    Attributes
    ----------
    train, val : integer array, shape (n,), or TokenShards
    vocab_size : int
    tokenizer : CharTokenizer or Tokenizer, optional
    name : str
        Where it came from, for people to read.
    """

    train: "np.ndarray | TokenShards"
    val: "np.ndarray | TokenShards"
    vocab_size: int
    tokenizer: CharTokenizer | Tokenizer | None = None
    name: str = "data"

    def check(self, vocab_size: int, seq_len: int) -> None:
        """Raise DataError unless a model of this vocabulary can train on windows of this length."""
        if self.vocab_size > vocab_size:
            raise DataError(f"{self.name} has a vocabulary of {self.vocab_size}, but the model's is {vocab_size}")
        for split, least in (("train", seq_len + 1), ("val", 2)):
            n = len(getattr(self, split))
            if n < least:
                raise DataError(f"the {split} split of {self.name} has {n} tokens, but at least {least} are needed")

    def batch(
        self, batch_size: int, seq_len: int, seed: int, step: int, rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A step's inputs and targets."""
        return random_batch(self.train, batch_size, seq_len, seed, step, rows)

    def some_of_val(self, batch_size: int, seq_len: int, seed: int, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some `n` batches of the validation split, always the same ones."""
        seq_len = min(seq_len, len(self.val) - 1)
        return (random_batch(self.val, batch_size, seq_len, seed, VAL_STREAM + i) for i in range(n))

    def checksums(self) -> dict[str, str]:
        """What tells these tokens from others."""
        return {"train": checksum(self.train), "val": checksum(self.val)}

    def all_of_val(self, batch_size: int, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The whole validation split, every target once."""
        return all_windows(self.val, batch_size, seq_len)

    def val_rows(self, seq_len: int) -> int:
        """How many windows the whole validation split has."""
        return -(-(len(self.val) - 1) // seq_len)


def load_dataset(
    path: str | Path, tokenizer: Tokenizer | CharTokenizer | str | None = None, vocab_size: int | None = None
) -> Dataset:
    """Open training data.

    Parameters
    ----------
    path : path
        A text file; a token file (`.bin` or `.npy`); or a folder with ``train`` and ``val`` token files, as ``numllama prepare``
        makes it, each whole or in many parts (``train-00000.bin``, ``train-00001.bin``, ...). Of a single file the last tenth
        is the validation split.
    tokenizer : tokenizer or str, optional
    vocab_size : int, optional
        Of a text file: see :func:`text_dataset`.

    Returns
    -------
    Dataset
    """
    path = Path(path)
    if (tokenizer is not None or vocab_size is not None) and (path.is_dir() or path.suffix in (".bin", ".npy")):
        name = "tokenizer" if vocab_size is None else "vocab_size"
        raise ValueError(f"{name} is for texts, but {path} is made of tokens already")
    with reading(path, DataError):
        if path.is_dir():
            return _load_folder(path)
        if path.suffix in (".bin", ".npy"):
            tokens, about = read_tokens(path)
            return Dataset(*split(tokens), about["vocab_size"], None, str(path))
        if path.suffix == ".npz":
            raise DataError(f"{path} is an archive of arrays, but a single array is needed: save it with numpy.save")
        text = read_text(path)
    return text_dataset(text, str(path), tokenizer, vocab_size)


def _load_folder(path: Path) -> Dataset:
    """``train`` and ``val`` token files, and their tokenizer if it is there."""
    check_files(path, DataError, large=False)
    tokens, sizes, known = [], [], []
    for name in ("train", "val"):
        file = next((path / f"{name}{suffix}" for suffix in (".bin", ".npy") if (path / f"{name}{suffix}").exists()), None)
        parts = numbered_files(path, name)
        if file and parts:
            raise DataError(f"{path} has {file.name} and {parts[0].name}: which of them is the {name} split?")
        if not file and not parts:
            raise DataError(f"{path} has neither {name}.bin nor {name}.npy nor {name}-00000.bin")
        if parts:
            ids = TokenShards(parts)
            vocab_sizes = ids.vocab_sizes
        else:
            ids, about = read_tokens(file)
            vocab_sizes = {about["vocab_size"]}
        tokens.append(ids)
        sizes += vocab_sizes
        known += vocab_sizes if parts or file.suffix == ".bin" else []  # an .npy file shows only its largest id
    tokenizer = Tokenizer.load(path) if (path / "tokenizer.json").exists() else None
    known += [tokenizer.vocab_size] if tokenizer else []
    if len(set(known)) > 1 or (known and max(sizes) > known[0]):
        raise DataError(f"the files in {path} disagree on the size of the vocabulary: {', '.join(map(str, {*known, *sizes}))}")
    return Dataset(*tokens, known[0] if known else max(sizes), tokenizer, str(path))


def text_dataset(
    text: str, name: str, tokenizer: Tokenizer | CharTokenizer | str | None = None, vocab_size: int | None = None
) -> Dataset:
    """A text in memory.

    Parameters
    ----------
    text, name : str
    tokenizer : tokenizer or str, optional
        ``char``, the default: one token for each character. ``bpe``: byte-pair encoding, trained on the training split. Or
        a tokenizer, or a path to one.
    vocab_size : int, optional
        Of ``bpe``, which it asks for. Default BPE_VOCABULARY.
    """
    tokenizer = trained_tokenizer(tokenizer, vocab_size)
    if len(text) < 2:
        raise DataError(f"{name} is empty" if not text else f"{name} has a single character, which is too short to learn from")
    parts = split(text)
    if tokenizer in (None, "char"):
        tokenizer = CharTokenizer(text)
    elif tokenizer == "bpe":
        tokenizer = train_on_text(parts[0], vocab_size or BPE_VOCABULARY)
    elif isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer)
    return Dataset(*(encode_plain(tokenizer, part) for part in parts), tokenizer.vocab_size, tokenizer, name)


def trained_tokenizer(tokenizer: Any, vocab_size: int | None) -> Any:
    """The tokenizer, which is ``bpe`` where a vocabulary's size is given; ValueError if it is another one, or has no room."""
    if vocab_size is None:
        return tokenizer
    if tokenizer not in (None, "bpe"):
        name = f"tokenizer is {shown(tokenizer)}" if isinstance(tokenizer, str | Path) else "a tokenizer is given"
        raise ValueError(f"vocab_size is the size of a BPE vocabulary to train, but {name}: give one of them")
    check_vocab_size(vocab_size)
    return "bpe"


def encode_plain(tokenizer: Tokenizer | CharTokenizer, text: str) -> np.ndarray:
    """The ids of a text in which nothing is special."""
    plain = {} if isinstance(tokenizer, CharTokenizer) else {"disallowed_special": ()}
    return tokenizer.encode_array(text, **plain)


def split(tokens: np.ndarray | str) -> tuple:
    """The first nine tenths to train on, the rest to validate."""
    n = int(len(tokens) * (1 - VAL_FRACTION))
    return tokens[:n], tokens[n:]


def read_text(path: Path) -> str:
    """A UTF-8 text file, line ends as they are; of pipes, only one that a shell has opened: others may never end."""
    with reading(path, DataError):
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
            regular(path, DataError)
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from error


# ------------------------------------------------------------------------------------------------ batches


def random_batch(
    tokens: "np.ndarray | TokenShards", batch_size: int, seq_len: int, seed: int, step: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Windows at random places: a function of (seed, step) alone, so that any step can be done again.

    Returns
    -------
    inputs, targets : int64 arrays, shape (batch_size, seq_len), or of some rows only
        See :func:`windows`.
    """
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - seq_len, size=batch_size)
    return windows(tokens, starts[slice(None) if rows is None else rows], seq_len)


def windows(tokens: "np.ndarray | TokenShards", starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows that begin at some places; nothing else is read.

    Returns
    -------
    inputs, targets : int64 arrays, shape (len(starts), seq_len)
        ``targets[b, t]`` is the token that follows ``inputs[b, t]``.
    """
    read = np.empty((len(starts), seq_len + 1), dtype=np.int64)
    for row, start in zip(read, starts.tolist(), strict=True):
        row[:] = tokens[start : start + seq_len + 1]
    return read[:, :-1], read[:, 1:]


def all_windows(tokens: np.ndarray, batch_size: int, seq_len: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbouring windows that ask for every token but the first exactly once; the last one may be shorter.

    Yields
    ------
    inputs, targets : int64 arrays, shape (up to batch_size, seq_len)
    """
    whole = (len(tokens) - 1) // seq_len
    for start in range(0, whole, batch_size):
        n = min(batch_size, whole - start)
        block = np.asarray(tokens[start * seq_len : (start + n) * seq_len + 1], dtype=np.int64)
        yield block[:-1].reshape(n, seq_len), block[1:].reshape(n, seq_len)
    rest = np.asarray(tokens[whole * seq_len :], dtype=np.int64)
    if len(rest) > 1:
        yield rest[None, :-1], rest[None, 1:]


def cache_folder() -> Path:
    """Where downloads are kept: ``$NUMLLAMA_CACHE``, else the user's cache folder."""
    if own := os.environ.get("NUMLLAMA_CACHE"):
        return Path(own)
    default = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(default) / "numllama"
