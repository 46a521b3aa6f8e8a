"""Tokens on disk, batches of them, and the windows that a validation sees.

A token file is a plain array of ids, memory-mapped, so that it may be larger than memory: `NAME.bin` of little-endian
uint16 or uint32 with `NAME.json` beside it, which says the dtype, the count, the vocabulary and the tokenizer; or a
one-dimensional integer `.npy`. Many of them, `NAME-00000.bin`, `NAME-00001.bin` and so on, are read as one.
"""

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from numllama.errors import DataError
from numllama.tokenizer import CharTokenizer, Tokenizer
from numllama.tokenizer.train_bpe import train_on_text

VAL_FRACTION = 0.1
VAL_STREAM = 2**32  # validation estimates draw their batches apart from any training step
CHECKED_PIECES, CHECKED_PIECE = 1024, 2**14  # all of 16 million tokens; of more, so many places with so many tokens each
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


def load_dataset(path: str | Path, tokenizer: Tokenizer | CharTokenizer | str | None = None) -> Dataset:
    """Open training data.

    Parameters
    ----------
    path : path
        A text file; a token file (`.bin` or `.npy`); or a folder with ``train`` and ``val`` token files, as ``numllama prepare``
        makes it, each whole or in many parts (``train-00000.bin``, ``train-00001.bin``, ...). Of a single file the last tenth
        is the validation split.
    tokenizer : tokenizer or str, optional
        Of a text file: see :func:`text_dataset`.

    Returns
    -------
    Dataset
    """
    path = Path(path)
    if tokenizer is not None and (path.is_dir() or path.suffix in (".bin", ".npy")):
        raise ValueError(f"tokenizer is for texts, but {path} is made of tokens already")
    if path.is_dir():
        return _load_folder(path)
    if path.suffix in (".bin", ".npy"):
        tokens, about = read_tokens(path)
        return Dataset(*split(tokens), about["vocab_size"], None, str(path))
    return text_dataset(read_text(path), str(path), tokenizer)


def _load_folder(path: Path) -> Dataset:
    """``train`` and ``val`` token files, and their tokenizer if it is there."""
    tokens, sizes, known = [], [], []
    for name in ("train", "val"):
        file = next((path / f"{name}{suffix}" for suffix in (".bin", ".npy") if (path / f"{name}{suffix}").exists()), None)
        parts = _numbered(path, name)
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


def text_dataset(text: str, name: str, tokenizer: Tokenizer | CharTokenizer | str | None = None) -> Dataset:
    """A text in memory.

    Parameters
    ----------
    text, name : str
    tokenizer : tokenizer or str, optional
        ``char``, the default: one token for each character. ``bpe``: byte-pair encoding, learnt from the training split. Or
        a tokenizer, or a path to one.
    """
    if len(text) < 2:
        raise DataError(f"{name} is empty" if not text else f"{name} has a single character, which is too short to learn from")
    parts = split(text)
    if tokenizer in (None, "char"):
        tokenizer = CharTokenizer(text)
    elif tokenizer == "bpe":
        tokenizer = train_on_text(parts[0], BPE_VOCABULARY)
    elif isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer)
    return Dataset(*(encode_plain(tokenizer, part) for part in parts), tokenizer.vocab_size, tokenizer, name)


def encode_plain(tokenizer: Tokenizer | CharTokenizer, text: str) -> np.ndarray:
    """The ids of a text in which nothing is special."""
    plain = {} if isinstance(tokenizer, CharTokenizer) else {"disallowed_special": ()}
    return tokenizer.encode_array(text, **plain)


def split(tokens: np.ndarray | str) -> tuple:
    """The first nine tenths to train on, the rest to validate."""
    n = int(len(tokens) * (1 - VAL_FRACTION))
    return tokens[:n], tokens[n:]


def read_text(path: Path) -> str:
    """A UTF-8 text file, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}") from error


def write_tokens(path: str | Path, ids: np.ndarray, vocab_size: int) -> Path:
    """Write a `.bin` token file and the `.json` beside it.

    Parameters
    ----------
    path : path
        Ends in `.bin`.
    ids : integer array, shape (n,)
    vocab_size : int
        Up to 65,536 the file has two bytes for each token, above four.
    """
    path = Path(path)
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= vocab_size)):
        raise ValueError(f"ids must be a one-dimensional array of integers that lie in 0..{vocab_size - 1}")
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    ids.astype(np.dtype(dtype).newbyteorder("<")).tofile(path)
    describe_tokens(path, len(ids), vocab_size)
    return path


def describe_tokens(path: Path, tokens: int, vocab_size: int, **more: Any) -> None:
    """Write the `.json` that belongs to a token file."""
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    about = {"dtype": dtype, "tokens": tokens, "vocab_size": vocab_size, **more}
    path.with_suffix(".json").write_text(json.dumps(about) + "\n", encoding="utf-8")


def read_tokens(path: str | Path) -> tuple[np.ndarray, dict]:
    """Memory-map a token file.

    Returns
    -------
    tokens : integer array, shape (n,)
    about : dict
        With at least ``vocab_size``.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.suffix == ".npy":
        return _read_npy(path)
    side = path.with_suffix(".json")
    try:
        about = json.loads(side.read_text(encoding="utf-8"))
        dtype, n = about["dtype"], about["tokens"]
        if dtype not in ("uint16", "uint32") or not isinstance(n, int) or not isinstance(about["vocab_size"], int):
            raise ValueError("dtype, tokens or vocab_size is not what it should be")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} needs a {side.name} beside it that describes it: {error}") from error
    size = n * np.dtype(dtype).itemsize
    if path.stat().st_size != size:
        raise DataError(f"{path} has {path.stat().st_size} bytes, but {side.name} says {size}: it is truncated or not its own")
    if n == 0:
        raise DataError(f"{path} is empty")
    return np.memmap(path, dtype=np.dtype(dtype).newbyteorder("<"), mode="r"), about


def _numbered(folder: Path, name: str) -> list[Path]:
    """``NAME-00000.bin``, ``NAME-00001.bin``, ...; DataError if one of them is missing, of as many as their `.json` says."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"{name}-*.bin")):
        if match := re.fullmatch(rf"{name}-(\d+)", path.stem):
            first = found.setdefault(int(match[1]), path)
            if first != path:
                raise DataError(f"{folder} has {path.name} and {first.name}: which of them is number {int(match[1])}?")
    if not found:
        return []
    _, about = read_tokens(found[min(found)])
    missing = set(range(max(max(found) + 1, about.get("shards", 0)))) - found.keys()
    if missing:
        what = f"number {min(missing)} is missing: {name}-{min(missing):05}.bin"
        raise DataError(f"{folder} has {len(found)} files {name}-*.bin, but {what}")
    return [found[i] for i in range(len(found))]


class TokenShards:
    """Many token files, read as one array of ids; only slices of it are ever in memory.

    None of them is kept open or mapped, for a system lets a program have only so many.

    Parameters
    ----------
    paths : sequence of path
        `.bin` files, each with its `.json`.

    Attributes
    ----------
    vocab_sizes : set of int
        Of the files; they should agree.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: list[tuple[Path, np.dtype, int]] = []
        self._starts, self.vocab_sizes = [0], set()
        for path in paths:
            tokens, about = read_tokens(path)
            self._files.append((path, tokens.dtype, about["vocab_size"]))
            self._starts.append(self._starts[-1] + len(tokens))
            self.vocab_sizes.add(about["vocab_size"])

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError(f"the step of a slice is {step}, but must be 1")
        stop, pieces = max(start, stop), [np.empty(0, self._files[0][1])]
        for i in range(bisect_right(self._starts, start) - 1, len(self._files)):
            first = self._starts[i]
            if first >= stop:
                break
            pieces.append(self._read(*self._files[i], max(start - first, 0), min(stop, self._starts[i + 1]) - max(start, first)))
        return np.concatenate(pieces)

    def _read(self, path: Path, dtype: np.dtype, vocab_size: int, start: int, count: int) -> np.ndarray:
        try:
            tokens = np.fromfile(path, dtype, count, offset=start * dtype.itemsize)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if len(tokens) < count:
            raise DataError(f"{path} is shorter than when it was opened")
        if count and (highest := int(tokens.max())) >= vocab_size:
            raise DataError(f"{path} holds the token {highest}, but its vocabulary is {vocab_size}")
        return tokens


def checksum(tokens: "np.ndarray | TokenShards") -> str:
    """SHA-256 of ids; of very many, of pieces spread over all of them and of their number."""
    n = len(tokens)
    everything, some = range(0, n, CHECKED_PIECE), np.linspace(0, n - CHECKED_PIECE, CHECKED_PIECES)
    digest = hashlib.sha256(str(n).encode())
    for start in map(int, everything if len(everything) <= CHECKED_PIECES else some):
        digest.update(np.ascontiguousarray(tokens[start : start + CHECKED_PIECE], dtype="<u4"))
    return digest.hexdigest()


def _read_npy(path: Path) -> tuple[np.ndarray, dict]:
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from error
    if not isinstance(tokens, np.ndarray):
        tokens.close()
        raise DataError(f"{path} is an archive of arrays, but a single array is needed")
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"{path} holds {tokens.dtype}{tokens.shape}, but a one-dimensional array of integers is needed")
    if len(tokens) == 0:
        raise DataError(f"{path} is empty")
    if tokens.min() < 0:
        raise DataError(f"{path} holds {tokens.min()}, but ids are not negative")
    return tokens, {"vocab_size": int(tokens.max()) + 1}


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
