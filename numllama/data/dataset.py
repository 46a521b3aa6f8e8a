"""Datasets of texts and token files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numllama.data.batches import BatchSource, TokenBatches
from numllama.data.token_files import TokenShards, checksum, numbered_files, read_tokens
from numllama.errors import DataError, shown
from numllama.storage.checksums import check_files
from numllama.storage.files import reading, regular
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.train_bpe import check_vocab_size, train_on_text

VAL_FRACTION = 0.1
BPE_VOCABULARY = 1024  # for about a megabyte of text: each token still occurs often enough to be learned


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split of token ids, and their tokenizer.

    Attributes
    ----------
    train, val : integer array, shape (n,), or TokenShards
    vocab_size : int
    tokenizer : CharTokenizer or Tokenizer, optional
    name : str
        The source, for display.
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

    @property
    def default_sampling(self) -> str:
        """``epochs`` for data in shards, else ``random``."""
        return "epochs" if isinstance(self.train, TokenShards) else "random"

    def batches(self, batch_size: int, seq_len: int, seed: int = 0, sampling: str = "random") -> BatchSource:
        """The data as batches of this shape: see :class:`~numllama.data.batches.TokenBatches`."""
        return TokenBatches(self, batch_size, seq_len, seed, sampling)

    def fingerprint(self) -> dict[str, str]:
        """Checksums of both splits, to identify the data."""
        return {"train": checksum(self.train), "val": checksum(self.val)}

    def val_rows(self, seq_len: int) -> int:
        """The number of windows in the whole validation split."""
        return -(-(len(self.val) - 1) // seq_len)


def load_dataset(
    path: str | Path, tokenizer: Tokenizer | CharTokenizer | str | None = None, *, vocab_size: int | None = None
) -> Dataset:
    """Open training data.

    Parameters
    ----------
    path : path
        A text file; a token file (`.bin` or `.npy`); or a folder with ``train`` and ``val`` token files, as written by
        ``numllama prepare``, each a single file or shards (``train-00000.bin``, ``train-00001.bin``, ...). The last tenth of
        a single file is the validation split.
    tokenizer : tokenizer or str, optional
    vocab_size : int, optional
        For a text file: see :func:`text_dataset`.

    Returns
    -------
    Dataset
    """
    path = Path(path)
    if (tokenizer is not None or vocab_size is not None) and (path.is_dir() or path.suffix in (".bin", ".npy")):
        name = "tokenizer" if vocab_size is None else "vocab_size"
        raise ValueError(f"{name} is for texts, but {path} holds tokens already")
    with reading(path, DataError):
        if path.is_dir():
            return _load_folder(path)
        if path.suffix in (".bin", ".npy"):
            tokens, about = read_tokens(path)
            train, val = split(tokens)
            return Dataset(train, val, about["vocab_size"], None, str(path))
        if path.suffix == ".npz":
            raise DataError(f"{path} is an archive of arrays, but a single array is needed: save it with numpy.save")
        text = read_text(path)
    return text_dataset(text, str(path), tokenizer, vocab_size)


def _load_folder(path: Path) -> Dataset:
    """Open ``train`` and ``val`` token files, and their tokenizer if there is one."""
    check_files(path, DataError, large=False)
    tokens, sizes, known = [], [], []
    for name in ("train", "val"):
        file = next((path / f"{name}{suffix}" for suffix in (".bin", ".npy") if (path / f"{name}{suffix}").exists()), None)
        parts = numbered_files(path, name)
        if file and parts:
            raise DataError(f"{path} has {file.name} and {parts[0].name}: which of them is the {name} split?")
        if not file and not parts:
            raise DataError(f"{path} has neither {name}.bin nor {name}.npy nor {name}-00000.bin")
        if file:
            ids, about = read_tokens(file)
            vocab_sizes = {about["vocab_size"]}
        else:
            ids = TokenShards(parts)
            vocab_sizes = ids.vocab_sizes
        tokens.append(ids)
        sizes += vocab_sizes
        known += vocab_sizes if file is None or file.suffix == ".bin" else []  # an .npy file shows only its largest id
    tokenizer = Tokenizer.load(path) if (path / "tokenizer.json").exists() else None
    known += [tokenizer.vocab_size] if tokenizer else []
    if len(set(known)) > 1 or (known and max(sizes) > known[0]):
        raise DataError(f"the files in {path} disagree on the size of the vocabulary: {', '.join(map(str, {*known, *sizes}))}")
    train, val = tokens
    return Dataset(train, val, known[0] if known else max(sizes), tokenizer, str(path))


def text_dataset(
    text: str, name: str, tokenizer: Tokenizer | CharTokenizer | str | None = None, vocab_size: int | None = None
) -> Dataset:
    """Make a dataset from a text in memory.

    Parameters
    ----------
    text, name : str
    tokenizer : tokenizer or str, optional
        ``char``, the default: one token per character. ``bpe``: byte-pair encoding, trained on the training split. Or
        a tokenizer, or a path to one.
    vocab_size : int, optional
        Size of the ``bpe`` vocabulary; implies ``bpe``. Default BPE_VOCABULARY.
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
    train, val = (encode_plain(tokenizer, part) for part in parts)
    return Dataset(train, val, tokenizer.vocab_size, tokenizer, name)


def trained_tokenizer(tokenizer: Any, vocab_size: int | None) -> Any:
    """``bpe`` if `vocab_size` is given, else the tokenizer; ValueError if the two conflict or the size is too small."""
    if vocab_size is None:
        return tokenizer
    if tokenizer not in (None, "bpe"):
        name = f"tokenizer is {shown(tokenizer)}" if isinstance(tokenizer, str | Path) else "a tokenizer is given"
        raise ValueError(f"vocab_size is the size of a BPE vocabulary to train, but {name}: give one of them")
    check_vocab_size(vocab_size)
    return "bpe"


def encode_plain(tokenizer: Tokenizer | CharTokenizer, text: str) -> np.ndarray:
    """The ids of a text, with special tokens as ordinary text."""
    plain = {} if isinstance(tokenizer, CharTokenizer) else {"disallowed_special": ()}
    return tokenizer.encode_array(text, **plain)


def split(tokens: Any) -> tuple[Any, Any]:
    """The first nine tenths for training, the rest for validation."""
    n = int(len(tokens) * (1 - VAL_FRACTION))
    return tokens[:n], tokens[n:]


def read_text(path: Path) -> str:
    """Read UTF-8 text, keeping line ends; refuses pipes, which may never end, unless a shell opened them."""
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


def cache_folder() -> Path:
    """The folder for downloads: ``$NUMLLAMA_CACHE``, else the user's cache folder."""
    if own := os.environ.get("NUMLLAMA_CACHE"):
        return Path(own)
    default = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(default) / "numllama"
