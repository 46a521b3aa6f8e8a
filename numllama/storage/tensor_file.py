"""safetensors files, mapped into memory: pages are read on first access, and nothing is copied.

    8 bytes                 N, the header's length, little endian
    N bytes                 JSON: {"name": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [begin, end]}, ...}
    the rest                the tensors; offsets count from here

The `safetensors` package copies each tensor it reads. A model is read from the map in one pass, so memory holds only the model.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike

from numllama.backend import BFLOAT16
from numllama.errors import CheckpointError, shown
from numllama.install import required
from numllama.storage import fields
from numllama.storage.files import reading, regular
from numllama.system.webassembly import IN_WEBASSEMBLY

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
        If the file cannot be read, is cut short, or is not a safetensors file; or if two tensors share bytes. A tensor of
        integers (from a quantised model, say) is refused on access.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = mapped(path)
        with reading(path):
            start, self._header = self._read_header()
            self._data = self._bytes[start:]
            self._check_places(start)

    def _check_places(self, start: int) -> None:
        """Check that each tensor begins where the previous one ends, and that the last one ends with the file."""
        whole = max((end for _, _, (_, end) in self._header.values()), default=0)
        if whole > len(self._data):
            raise CheckpointError(f"{self.path} is cut short: it has {len(self._bytes)} bytes of {start + whole}")
        reached = 0
        for name, (kind, shape, (begin, end)) in sorted(self._header.items(), key=lambda item: item[1][2]):
            if begin != reached:
                raise ValueError(f"{shown(name)} begins at byte {begin}, but the tensor before it ends at byte {reached}")
            if kind in DTYPES and end - begin != prod(shape) * DTYPES[kind].itemsize:
                raise ValueError(f"{shown(name)} has {end - begin} bytes, which is not its shape {shown(shape)}")
            reached = end
        if reached != len(self._data):
            raise ValueError(f"{len(self._data) - reached} bytes at its end belong to no tensor")

    def _read_header(self) -> tuple[int, dict[str, tuple[str, tuple[int, ...], tuple[int, int]]]]:
        """The offset of the tensors, and the dtype, shape and place of each."""
        length = int.from_bytes(self._bytes[:8].tobytes(), "little")
        if len(self._bytes) < 8 or length > MAX_HEADER or not self._bytes[8:9].tobytes() == b"{":
            raise CheckpointError(f"{self.path} is not a safetensors file")
        if 8 + length > len(self._bytes):
            raise CheckpointError(f"{self.path} is cut short: its header alone has {8 + length} bytes of {len(self._bytes)}")
        try:
            header = json.loads(self._bytes[8 : 8 + length].tobytes(), object_pairs_hook=_without_repeats)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{self.path} is damaged: its header is not that of a safetensors file") from error
        header.pop("__metadata__", None)
        return 8 + length, {name: _checked_entry(name, entry) for name, entry in header.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, read from the header only."""
        return self._header[name][1]

    def __getitem__(self, name: str) -> np.ndarray:
        kind, shape, (begin, end) = self._header[name]
        if kind not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {shown(name, quote=False)} is stored as {shown(kind, quote=False)}, "
                f"but only {', '.join(DTYPES)} can be read (is the model quantised?)"
            )
        if kind == "BF16":
            required("ml_dtypes", f"{self.path}, stored in bfloat16,")
        return self._data[begin:end].view(DTYPES[kind]).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; repeated keys are refused as ambiguous."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in values if names.count(name) > 1))} stands twice in its header")
    return values


SIZE = fields.whole()
ENTRY = {
    "dtype": fields.TEXT,
    "shape": fields.Kind(lambda value: isinstance(value, list) and all(map(SIZE.fits, value)), "must be a list of sizes"),
    "data_offsets": fields.Kind(
        lambda value: isinstance(value, list) and len(value) == 2 and all(map(SIZE.fits, value)) and value[0] <= value[1],
        "must be where it begins and where it ends",
    ),
}


def _checked_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if not isinstance(entry, dict) or not set(ENTRY) <= set(entry):
        raise ValueError(f"{shown(name)} is {fields.as_json(entry)} in its header, but must have {', '.join(ENTRY)}")
    fields.check(entry, ENTRY, fields.as_json, f"of {shown(name)}, ")
    return entry["dtype"], tuple(entry["shape"]), tuple(entry["data_offsets"])


@cache
def safetensors() -> ModuleType:
    """The package's functions for NumPy, for tensors that are small or of several dtypes; NumllamaError if it is missing."""
    return required("safetensors.numpy", "a file of tensors")


def mapped(path: Path) -> np.ndarray:
    """The bytes of a regular file, mapped into memory; in WebAssembly, which cannot, read."""
    size = regular(path)
    with reading(path):
        return np.asarray(map_array(path, np.uint8)) if size else np.empty(0, np.uint8)


def map_array(path: Path, dtype: DTypeLike, offset: int = 0) -> np.ndarray:
    """The numbers in a file from byte `offset` on, of which there must be some: mapped into memory, or read in WebAssembly."""
    if IN_WEBASSEMBLY:
        return np.frombuffer(Path(path).read_bytes(), dtype, offset=offset)
    return np.memmap(path, dtype, "r", offset)


def write_tensors(
    file: BinaryIO, dtype: np.dtype, shapes: Mapping[str, tuple[int, ...]], tensors: Iterable[np.ndarray]
) -> None:
    """Write a safetensors file: `tensors`, of one dtype and in the order of `shapes`, one at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    begin = 0
    for name, shape in shapes.items():
        end = begin + prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
