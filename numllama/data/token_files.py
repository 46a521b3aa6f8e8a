"""Files of tokens: plain arrays of ids, memory-mapped, so that they may be larger than memory.

`NAME.bin` of little-endian uint16 or uint32 with `NAME.json` beside it, which says the dtype, the count, the vocabulary and the
tokenizer; or a one-dimensional integer `.npy`. Many of them, `NAME-00000.bin`, `NAME-00001.bin` and so on, are read as one.
"""

import hashlib
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from numllama.errors import DataError, shown
from numllama.storage.fields import as_json, check, one_of, require, whole
from numllama.storage.files import read_json, reading, regular, write_file, write_json
from numllama.storage.tensor_file import map_array

CHECKED_PIECES, CHECKED_PIECE = 1024, 2**14  # checksum: this many pieces of this many tokens (or all, up to 16 million)
OPENED_PIECES = 64  # pieces checked when a file is opened, as there may be thousands of files
CHECKED_AT_ONCE = 2**22  # tokens
MOST_VOCABULARY = 2**24  # of a file: a model gets a row for each token, and the largest vocabulary published has a million
FIELDS = {
    "dtype": one_of("uint16", "uint32"), "tokens": whole(), "vocab_size": whole(1, MOST_VOCABULARY), "shards": whole(1)
}  # fmt: skip
NPY_HEADER = 2**16  # bytes
NPY_DTYPE = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[iu][1248])['"]""")
NPY_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(\s*([0-9]{1,20})L?\s*,\s*\)""")


def write_tokens(path: str | Path, ids: np.ndarray, vocab_size: int) -> Path:
    """Write a `.bin` token file and its `.json`.

    Parameters
    ----------
    path : path
        Ends in `.bin`.
    ids : integer array, shape (n,)
    vocab_size : int
        Up to 65,536 the file has two bytes per token, above that four.
    """
    path = Path(path)
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or (ids.size and (ids.min() < 0 or ids.max() >= vocab_size)):
        raise ValueError(f"ids must be a one-dimensional array of integers that lie in 0..{vocab_size - 1}")
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    little_endian = np.ascontiguousarray(ids, np.dtype(dtype).newbyteorder("<"))
    write_file(path, lambda file: file.write(little_endian.data), DataError)
    describe_tokens(path, len(ids), vocab_size)
    return path


def describe_tokens(path: Path, tokens: int, vocab_size: int, **more: Any) -> None:
    """Write the `.json` that belongs to a token file."""
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    metadata = {"dtype": dtype, "tokens": tokens, "vocab_size": vocab_size, **more}
    write_json(path.with_suffix(".json"), metadata, DataError)


def read_tokens(path: str | Path) -> tuple[np.ndarray, dict]:
    """Memory-map a token file.

    Returns
    -------
    tokens : integer array, shape (n,)
    metadata : dict
        With at least ``vocab_size``.
    """
    path = Path(path)
    with reading(path, DataError):
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if path.suffix == ".npy":
            return _read_npy(path)
        metadata, dtype = _described(path)
        if not metadata["tokens"]:
            raise DataError(f"{path} is empty")
        tokens = _mapped(path, metadata, dtype)
        for start in range(0, len(tokens), CHECKED_AT_ONCE):
            _check_vocabulary(path, tokens[start : start + CHECKED_AT_ONCE], metadata["vocab_size"], start)
        return tokens, metadata


def _described(path: Path) -> tuple[dict, np.dtype]:
    """What the `.json` of a `.bin` file says of it, compared with its size, and the dtype of its ids."""
    side = path.with_suffix(".json")
    try:
        metadata = read_json(side, DataError)
        require(metadata, ("dtype", "tokens", "vocab_size"))
        check(metadata, FIELDS, as_json)
    except (DataError, ValueError) as error:
        raise DataError(f"{path} needs a {side.name} beside it that describes it: {error}") from error
    dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
    size, expected = regular(path, DataError), metadata["tokens"] * dtype.itemsize
    if size != expected:
        raise DataError(f"{path} has {size} bytes, but {side.name} says {expected}: it is truncated or not its own")
    return metadata, dtype


def _mapped(path: Path, metadata: dict, dtype: np.dtype) -> np.ndarray:
    """The ids of a `.bin` file, compared with the checksum in its `.json`, if there is one."""
    tokens = map_array(path, dtype) if metadata["tokens"] else np.empty(0, dtype)
    if "checksum" in metadata and metadata["checksum"] != checksum(tokens, OPENED_PIECES):
        raise DataError(f"{path} is damaged or not its own: its checksum is not that in {path.with_suffix('.json').name}")
    return tokens


def _check_vocabulary(path: Path, ids: np.ndarray, vocab_size: int, start: int) -> None:
    """Raise DataError for an id beyond the vocabulary among the ids of a file from `start` on."""
    if len(ids) and vocab_size <= np.iinfo(ids.dtype).max and int(ids.max()) >= vocab_size:
        place = int((ids >= vocab_size).argmax())
        raise DataError(f"{path} holds the token {ids[place]} at place {start + place:,}, but its vocabulary is {vocab_size}")


def numbered_files(folder: Path, name: str) -> list[Path]:
    """``NAME-00000.bin``, ``NAME-00001.bin``, ...; DataError if one of them is missing, of as many as their `.json` says."""
    found: dict[int, Path] = {}
    for path in sorted(folder.glob(f"{name}-*.bin")):
        if match := re.fullmatch(rf"{name}-([0-9]+)", path.stem):
            first = found.setdefault(int(match[1]), path)
            if first != path:
                raise DataError(f"{folder} has {path.name} and {first.name}: which of them is number {int(match[1])}?")
    if not found:
        return []
    metadata, _ = _described(found[min(found)])
    if max(max(found) + 1, metadata.get("shards", 1)) > len(found):
        missing = next(i for i in count() if i not in found)
        what = f"number {missing} is missing: {name}-{missing:05}.bin"
        raise DataError(f"{folder} has {len(found)} files {name}-*.bin, but {what}")
    return [found[i] for i in range(len(found))]


class TokenShards:
    """Many token files, read as one array of ids; only slices of it are ever in memory.

    The files are not kept open or mapped, because the number of open files is limited.

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
            with reading(path, DataError):
                metadata, dtype = _described(path)
                if not metadata["tokens"]:
                    raise DataError(f"{path} is empty")
                _mapped(path, metadata, dtype)
            self._files.append((path, dtype, metadata["vocab_size"]))
            self._starts.append(self._starts[-1] + metadata["tokens"])
            self.vocab_sizes.add(metadata["vocab_size"])

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

    def _read(self, path: Path, dtype: np.dtype, vocab_size: int, start: int, n: int) -> np.ndarray:
        with reading(path, DataError):
            tokens = np.fromfile(path, dtype, n, offset=start * dtype.itemsize)
        if len(tokens) < n:
            raise DataError(f"{path} is shorter than when it was opened")
        _check_vocabulary(path, tokens, vocab_size, start)
        return tokens


def checksum(tokens: "np.ndarray | TokenShards", pieces: int | None = None) -> str:
    """SHA-256 of ids; above 16 million ids, of evenly spread pieces and of the count."""
    n = len(tokens)
    everything, some = range(0, n, CHECKED_PIECE), np.linspace(0, n - CHECKED_PIECE, pieces or CHECKED_PIECES)
    digest = hashlib.sha256(str(n).encode())
    for start in map(int, everything if len(everything) <= CHECKED_PIECES else some):
        digest.update(np.ascontiguousarray(tokens[start : start + CHECKED_PIECE], dtype="<u4").data)
    return digest.hexdigest()


def _read_npy(path: Path) -> tuple[np.ndarray, dict]:
    """A one-dimensional array of integers. Its header is a Python expression; it is searched, never evaluated."""
    size = regular(path, DataError)
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"PK\x03\x04":
            raise DataError(f"{path} is an archive of arrays, but a single array is needed")
        if start[:6] != b"\x93NUMPY" or len(start) < 12:
            raise DataError(f"{path} is not a readable .npy file")
        offset, length = (10, start[8:10]) if start[6] == 1 else (12, start[8:12])
        offset += (header := int.from_bytes(length, "little"))
        if offset > size:
            raise DataError(f"{path} is not a readable .npy file: its header is cut short")
        file.seek(offset - header)
        text = file.read(min(header, NPY_HEADER)).decode("latin-1")
    kind, shape = NPY_DTYPE.search(text), NPY_SHAPE.search(text)
    if not kind or not shape:
        held = shown(text.strip(), quote=False, most=100)
        raise DataError(f"{path} holds {held}, but a one-dimensional array of integers is needed")
    dtype, n = np.dtype(kind[1]), int(shape[1])
    if n == 0:
        raise DataError(f"{path} is empty")
    if size - offset != n * dtype.itemsize:
        raise DataError(f"{path} has {size - offset} bytes after its header, but {shown(n)} ids take {shown(n * dtype.itemsize)}")
    tokens = map_array(path, dtype, offset)
    if tokens.min() < 0:
        raise DataError(f"{path} holds {tokens.min()}, but ids are not negative")
    if (vocab_size := int(tokens.max()) + 1) > MOST_VOCABULARY:
        raise DataError(f"{path} holds {vocab_size - 1}, but ids are below {MOST_VOCABULARY}")
    return tokens, {"vocab_size": vocab_size}
