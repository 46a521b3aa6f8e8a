"""safetensors files, mapped into memory: a page of the file is read when a number on it is asked for, and nothing is copied.

    8 bytes                 N, the header's length, little endian
    N bytes                 JSON: {"name": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [begin, end]}, ...}
    the rest                the tensors; offsets count from here

The `safetensors` package reads a tensor as a copy. A model is read in one pass from a map, so only the model is in memory.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from numllama.backend import BFLOAT16
from numllama.errors import CheckpointError

DTYPES = {"BF16": BFLOAT16, "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 100_000_000  # bytes, as in the safetensors package


class TensorFile(Mapping):
    """The tensors of a safetensors file by name, as read-only views of the file.

    Parameters
    ----------
    path : path

    Raises
    ------
    CheckpointError
        If the file cannot be read, is cut short, or is something else. A tensor of integers (a quantised one, say) is refused
        when it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = mapped(path)
        start, self._header = self._read_header()
        self._data = self._bytes[start:]
        for name, (kind, shape, (begin, end)) in self._header.items():
            if end > len(self._data):
                whole = start + max(end for _, _, (_, end) in self._header.values())
                raise CheckpointError(f"{path} is cut short: it has {len(self._bytes)} bytes of {whole}")
            if kind in DTYPES and end - begin != prod(shape) * DTYPES[kind].itemsize:
                raise CheckpointError(f"{path} is damaged: {name} has {end - begin} bytes, which is not its shape {shape}")

    def _read_header(self) -> tuple[int, dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]]:
        """Where the tensors begin, and the dtype, shape and place of each."""
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if len(self._bytes) < 8 or length > MAX_HEADER or not self._bytes[8:9].tobytes() == b"{":
            raise CheckpointError(f"{self.path} is not a safetensors file")
        if 8 + length > len(self._bytes):
            raise CheckpointError(f"{self.path} is cut short: its header alone has {8 + length} bytes of {len(self._bytes)}")
        try:
            header = json.loads(self._bytes[8 : 8 + length].tobytes())
            header.pop("__metadata__", None)
            return 8 + length, {name: _checked_entry(entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{self.path} is damaged: its header is not that of a safetensors file") from error

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header alone."""
        return self._header[name][1]

    def __getitem__(self, name: str) -> np.ndarray:
        kind, shape, (begin, end) = self._header[name]
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} is stored as {kind}, but only {', '.join(DTYPES)} can be read (is the model quantised?)"
            )
        return self._data[begin:end].view(DTYPES[kind]).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def _checked_entry(entry: dict) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not isinstance(kind, str) or not all(type(n) is int and n >= 0 for n in (*shape, begin, end - begin)):
        raise ValueError(entry)
    return kind, shape, (begin, end)


def mapped(path: Path) -> np.ndarray:
    """The bytes of a file, read as they are looked at."""
    try:
        return np.asarray(np.memmap(path, np.uint8, mode="r")) if path.stat().st_size else np.empty(0, np.uint8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def write_tensors(
    file: BinaryIO, dtype: np.dtype, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[np.ndarray]
) -> None:
    """Write a safetensors file: `tensors`, of one dtype and in the order of `shapes`, one at a time."""
    header, begin = {"__metadata__": {"format": "pt"}}, 0  # transformers opens nothing without it
    for name, shape in shapes.items():
        end = begin + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def write_files(folder: Path, writers: Mapping[str, Callable[[BinaryIO], Any]]) -> None:
    """Write some files into a folder: all of them whole, or none.

    Each is written under a temporary name and flushed to the disk. Only when all are there do they take their places.

    Raises
    ------
    CheckpointError
        If something cannot be written, a full disk, say. What was there before is still there.
    """
    parts = {name: folder / f".part-{name}-{os.getpid()}" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            with open(parts[name], "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for name, part in parts.items():
            os.replace(part, folder / name)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be written: {error.strerror}") from error
    finally:
        for part in parts.values():
            with suppress(OSError):
                part.unlink(missing_ok=True)
