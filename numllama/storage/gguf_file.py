"""GGUF files, the format of llama.cpp: a header with named values, such as the vocabulary, and then the tensors.

    4 bytes               GGUF
    uint32                the version: 2 or 3
    2 × uint64            how many tensors there are, and how many values
    each value            its name, the number of its type, and it; a text is its length (uint64) and UTF-8,
                          a list is the type of its items, their number, and they
    each tensor           its name, the number of its axes (uint32), their lengths (uint64) with the last axis first,
                          the number of its type (uint32), its offset (uint64)
    the rest              the tensors; offsets count from the next multiple of general.alignment

A large model may be split into files, NAME-00001-of-00003.gguf and so on; the first has the values that describe the model.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from numllama.errors import CheckpointError, NumllamaError, listed, shown
from numllama.storage.files import is_there, reading
from numllama.storage.tensor_file import mapped

SUFFIX, MAGIC, ALIGNMENT, MOST_AXES = ".gguf", b"GGUF", 32, 4
NUMBERS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"
}  # fmt: skip
TEXT, LIST = 8, 9
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_u64 = struct.Struct("<Q").unpack_from


class GGUFTensor(NamedTuple):
    """Where a tensor is, and how it is stored.

    Attributes
    ----------
    shape : tuple of int
        The last axis is contiguous, as in NumPy.
    type : int
        The number of its type: 0 is float32.
    path : path
        The file that it is in.
    begin, end : int
        Its first byte there, and the last that it may have: where the file ends.
    """

    shape: tuple[int, ...]
    type: int
    path: Path
    begin: int
    end: int


class GGUFFile(NamedTuple):
    """The header of a file, or of all files that a model is split into.

    Attributes
    ----------
    values : dict
        By name: a number, a bool, a text, a list of texts, or an array of numbers.
    tensors : dict of str to GGUFTensor
    """

    values: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path, error: type[NumllamaError] = CheckpointError) -> GGUFFile:
    """Read the header of a GGUF file, with those of the other files of a split model.

    Raises
    ------
    CheckpointError, or `error`
        If a file is missing, cut short, damaged or not GGUF.
    """
    paths = _shards(path, error)
    values, tensors = {}, {}
    for i, shard in enumerate(paths):
        with reading(shard, error):
            found = _Header(shard)
            if len(paths) > 1 and (found.values.get("split.no"), found.values.get("split.count")) != (i, len(paths)):
                raise ValueError(f"its header does not say that it is file {i + 1} of {len(paths)}")
            if len(paths) == 1 and found.values.get("split.count", 1) != 1:
                raise ValueError("it is one of several files, but its name does not say which (NAME-00001-of-00002.gguf)")
            if twice := tensors.keys() & found.tensors.keys():
                raise ValueError(f"it repeats the tensor {shown(min(twice))}")
            values = values or found.values
            tensors |= found.tensors
    return GGUFFile(values, tensors)


def _shards(path: Path, error: type[NumllamaError]) -> list[Path]:
    """The files of a split model, in order; any other path alone."""
    if (match := SHARD.fullmatch(path.name)) is None:
        return [path]
    name, _, count = match.groups()
    if int(count) > 10_000:
        raise error(f"{path} names {int(count):,} files, more than a model is split into")
    paths = [path.with_name(f"{name}-{i + 1:05}-of-{count}.gguf") for i in range(int(count))]
    if missing := [shard.name for shard in paths if not is_there(shard)]:
        raise error(f"{path.parent} lacks {listed(missing)}, which the model is split into")
    return paths or [path]


class _Header:
    """Reads the header of one file from its start."""

    def __init__(self, path: Path) -> None:
        self.data = memoryview(mapped(path).data)
        if self.data[:4] != MAGIC:
            raise ValueError("it is not a GGUF file")
        self.at = 4
        version = self._number(4)
        if version & 0xFFFF == 0:
            raise ValueError("its numbers are big-endian, but only little-endian files are read")
        if version not in (2, 3):
            raise ValueError(f"it is version {version} of the format, but only 2 and 3 are read")
        n_tensors, n_values = self._number(10), self._number(10)
        self.values: dict[str, Any] = {}
        for _ in range(n_values):
            name = self._text()
            if name in self.values:
                raise ValueError(f"it repeats the value {shown(name)}")
            self.values[name] = self._value(self._number(4))
        places = [self._tensor() for _ in range(min(n_tensors, len(self.data)))]
        alignment = self.values.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 2**32 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {shown(alignment)}, but must be a power of two")
        start = -(-self.at // alignment) * alignment
        self.tensors: dict[str, GGUFTensor] = {}
        for name, shape, kind, offset in places:
            if name in self.tensors:
                raise ValueError(f"it repeats the tensor {shown(name)}")
            self.tensors[name] = GGUFTensor(shape, kind, path, start + offset, len(self.data))
        self.data.release()

    def _bytes(self, n: int) -> int:
        """Take the next n bytes; returns where they begin."""
        begin = self.at
        if n > len(self.data) - begin:
            raise ValueError("it is cut short, or its header is wrong")
        self.at = begin + n
        return begin

    def _number(self, kind: int) -> Any:
        """A number; a float32 becomes the shortest decimal that it may have been written from: 1e-05."""
        dtype = np.dtype(NUMBERS[kind])
        number = np.frombuffer(self.data, dtype, 1, self._bytes(dtype.itemsize))[0]
        return float(str(number)) if dtype == np.float32 else number.item()

    def _text(self) -> str:
        begin = self._bytes(_u64(self.data, self._bytes(8))[0])
        return str(self.data[begin : self.at], "utf-8")

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind in NUMBERS:
            return self._number(kind)
        if kind != LIST:
            raise ValueError(f"it has a value of type {kind}, which is not known")
        items, n = self._number(4), self._number(10)
        if items == TEXT:
            return self._texts(n)
        if items not in NUMBERS:
            raise ValueError(f"it has a list of items of type {items}, which is not known")
        dtype = np.dtype(NUMBERS[items])
        return np.frombuffer(self.data, dtype, n, self._bytes(n * dtype.itemsize)).copy()

    def _texts(self, n: int) -> list[str]:
        """A list of texts: the vocabulary is one of 100,000, so this is the loop that takes time."""
        data, at, texts = self.data, self.at, []
        last = len(data) - 8
        for _ in range(n):
            if at > last:
                raise ValueError("it is cut short, or its header is wrong")
            begin = at + 8
            at = begin + _u64(data, at)[0]
            texts.append(str(data[begin:at], "utf-8"))
        self.at = at
        self._bytes(0)
        return texts

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text()
        axes = self._number(4)
        if axes > MOST_AXES:
            raise ValueError(f"the tensor {shown(name)} has {axes} axes, but at most {MOST_AXES} are possible")
        shape = tuple(self._number(10) for _ in range(axes))[::-1]
        return name, shape, self._number(4), self._number(10)


# ------------------------------------------------------------------------------------------------ writing


class Stored(NamedTuple):
    """A tensor to write: its shape, the number of its type, and how many bytes it takes."""

    shape: tuple[int, ...]
    type: int
    nbytes: int


def write_gguf(
    file: BinaryIO, values: Mapping[str, Any], tensors: Mapping[str, Stored], contents: Iterable[np.ndarray]
) -> None:
    """Write a GGUF file: `contents` holds the tensors, in order, one at a time.

    A value is a bool, a text, a list of texts, a NumPy number, or an array of numbers.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(values))]
    for name, value in values.items():
        parts += [_packed_text(name), _packed(value)]
    begin = 0
    for name, (shape, kind, nbytes) in tensors.items():
        parts += [_packed_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, begin)]
        begin += _padded(nbytes)
    header = b"".join(parts)
    file.write(header + bytes(_padded(len(header)) - len(header)))
    for tensor, content in zip(tensors.values(), contents, strict=True):
        data = np.ascontiguousarray(content).view(np.uint8).reshape(-1)
        assert len(data) == tensor.nbytes == prod(content.shape) * content.itemsize
        file.write(data.data)
        file.write(bytes(_padded(len(data)) - len(data)))


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def _packed_text(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _packed(value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", TEXT) + _packed_text(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", LIST, TEXT, len(value)) + b"".join(map(_packed_text, value))
    value = np.asarray(value)
    kind = next(number for number, name in NUMBERS.items() if np.dtype(name) == value.dtype)
    start = (LIST, kind) if value.ndim else (kind,)
    return struct.pack(f"<{len(start)}I", *start) + (struct.pack("<Q", value.size) if value.ndim else b"") + value.tobytes()
