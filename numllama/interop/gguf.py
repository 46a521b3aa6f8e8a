"""GGUF files, llama.cpp's format: the model in one file, often with its weights quantised.

The container is read by :mod:`numllama.storage.gguf_file`, the tokenizer in it by :mod:`numllama.tokenizer.gguf`. Weights in
float32, float16 and bfloat16 need nothing else; quantised ones are expanded by the `gguf` package, a block of rows at a time.

What values and tensors mean depends on the architecture: :mod:`numllama.interop.gguf_architectures`. Where llama.cpp's RoPE
turns neighbours, the rows of wq and wk are reordered, as rows of bytes, to Hugging Face's halves. What a file needs and numllama
does not compute is refused by name.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from numllama.backend import BFLOAT16
from numllama.errors import CheckpointError, listed, shown
from numllama.install import install_command
from numllama.interop.gguf_architectures import ARCHITECTURES, config_of, gguf_names, more_in_file
from numllama.interop.gguf_rope import TENSORS as SCALING_TENSORS
from numllama.interop.huggingface import Checkpoint, rope_heads, stacked, stacked_shape, to_halves
from numllama.model import ModelConfig, parameter_shapes
from numllama.storage.files import reading
from numllama.storage.gguf_file import GGUFFile, GGUFTensor, read_gguf
from numllama.tokenizer.gguf import SENTENCEPIECE, own_values

PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: BFLOAT16}  # types of tensors that are not quantised
PLAIN_NAMES = {0: "F32", 1: "F16", 30: "BF16"}
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


# ------------------------------------------------------------------------------------------------ weights


@cache
def quantisers() -> ModuleType:
    """The `gguf` package; CheckpointError if it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"quantised weights need the package gguf: {install_command('gguf')}") from error
    return gguf


def type_name(kind: int) -> str:
    """The name of a type of tensors: Q4_1, ...; CheckpointError if it cannot be read."""
    if kind in PLAIN_NAMES:
        return PLAIN_NAMES[kind]
    gguf = quantisers()
    try:
        name = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise CheckpointError(f"weights are of type {kind}, which the package gguf does not know") from error
    if name not in gguf.quants._type_traits:
        raise CheckpointError(f"weights are of type {name.name}, which the package gguf cannot expand")
    return name.name


def row_bytes(kind: int, columns: int) -> int:
    """The bytes of a row of numbers of a type."""
    if kind in PLAIN:
        return columns * PLAIN[kind].itemsize
    gguf = quantisers()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if columns % block:
        raise CheckpointError(f"a row of {columns} numbers is not a multiple of the {block} of a block of {type_name(kind)}")
    return columns // block * size


class StoredTensor:
    """A tensor in a file, of which rows are read and expanded on access: ``tensor[rows]``.

    Parameters
    ----------
    place : GGUFTensor
    heads : int, optional
        Reorder the rows of this many heads from neighbouring pairs to halves.
    minus : float
        What is taken from the numbers of a vector.
    """

    def __init__(self, name: str, place: GGUFTensor, heads: int | None = None, minus: float = 0.0) -> None:
        self.shape, self.ndim, self.dtype = place.shape, len(place.shape), PLAIN.get(place.type, PLAIN[0])
        self._place, self._heads, self._minus = place, heads, minus
        self.type_name = type_name(place.type)
        self._row = row_bytes(place.type, place.shape[-1]) if place.shape else 0
        self.end = place.begin + self._row * prod(place.shape[:-1])    # where the next part of a stacked tensor begins
        if self.end > place.end:
            raise CheckpointError(f"{place.path} is cut short: it does not hold all of the tensor {shown(name)}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some of the rows, in float32 or as stored; of a vector some of its numbers."""
        if self.ndim == 1:
            vector = self._expanded(self._read(0, 1))[0]
            vector = vector if self._heads is None else to_halves(vector, self._heads)
            return vector[rows] - np.float64(self._minus) if self._minus else vector[rows]
        begin, end, _ = rows.indices(len(self))
        if self._heads is None:
            n = prod(self.shape[1:-1])                                 # of an expert's matrix; else 1
            return self._expanded(self._read(begin * n, end * n)).reshape(end - begin, *self.shape[1:])
        D = len(self) // self._heads                                   # read whole heads
        first, last = begin // D, -(-end // D)
        data = to_halves(self._read(first * D, last * D), last - first)
        return self._expanded(data[begin - first * D : end - first * D])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def astype(self, dtype: Any) -> np.ndarray:
        """All of it in another dtype."""
        return self[:].astype(dtype)

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Rows of bytes. They are read, not mapped: mapped pages would count as memory beside the model."""
        at = self._place.begin + begin * self._row
        data = np.fromfile(self._place.path, np.uint8, (end - begin) * self._row, offset=at)
        return data.reshape(end - begin, self._row)

    def _expanded(self, data: np.ndarray) -> np.ndarray:
        kind = self._place.type
        if kind in PLAIN:
            return data.view(PLAIN[kind])
        gguf = quantisers()
        with np.errstate(all="ignore"):  # a damaged scale may be infinite
            return gguf.dequantize(data, gguf.GGMLQuantizationType(kind))


class _Tensors(Mapping):
    """The tensors of a file by our names; of a tensor in which several are stacked the rows of each."""

    def __init__(self, file: GGUFFile, config: ModelConfig, architecture: str) -> None:
        self._stored: dict[str, StoredTensor] = {}
        shapes, row = parameter_shapes(config), ARCHITECTURES[architecture]
        for stored, parts in stacked(gguf_names(config, architecture)).items():
            place = file.tensors[stored]
            for name in parts:
                heads = rope_heads(config, name) if row.turns_neighbours else None
                part = StoredTensor(stored, place._replace(shape=shapes[name]), heads, more_in_file(config, name))
                place, self._stored[name] = place._replace(begin=part.end), part

    def __getitem__(self, name: str) -> Any:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


# ------------------------------------------------------------------------------------------------ configuration


def read(path: Path) -> Checkpoint:
    """Read a model; its tensors are read from the file on access.

    Raises
    ------
    CheckpointError
        If the file is damaged, or needs something that numllama does not compute.
    """
    file = read_gguf(path)
    with reading(path):
        try:
            name, config = _config(file)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return Checkpoint(config, _Tensors(file, config, name), generation_config(file.values))


def _config(file: GGUFFile) -> tuple[str, ModelConfig]:
    """The architecture of a file and its ModelConfig; a ValueError names what numllama cannot honour."""
    name = file.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"general.architecture is {shown(name)}, but must be one of {', '.join(map(repr, ARCHITECTURES))}")
    start = f"{name}."
    values = {key.removeprefix(start): _one(value) for key, value in file.values.items() if key.startswith(start)}
    n_layers = values.get("block_count")
    if isinstance(n_layers, int) and n_layers > len(file.tensors):  # before a list of all missing tensors is made
        raise ValueError(f"it has {len(file.tensors)} tensors, which cannot be {n_layers} layers")
    vectors = {key: _vector(key, file.tensors[key]) for key in SCALING_TENSORS if key in file.tensors}
    config = config_of(name, values, {key: place.shape for key, place in file.tensors.items()}, vectors)
    _check_tensors(file, stored_shapes(config, name))
    return name, config


def _one(value: Any) -> Any:
    """A number that is given for each layer but is the same for all of them."""
    same = isinstance(value, np.ndarray) and value.size and (value == value[0]).all()
    return value[0].item() if same else value


def _vector(name: str, place: GGUFTensor) -> np.ndarray:
    if len(place.shape) != 1:
        raise ValueError(f"{name} has shape {shown(place.shape)}, but must be a vector")
    return StoredTensor(name, place)[:].astype("float64")


def stored_shapes(config: ModelConfig, name: str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file of an architecture."""
    shapes = parameter_shapes(config)
    return {stored: stacked_shape(shapes, parts) for stored, parts in stacked(gguf_names(config, name)).items()}


def _check_tensors(file: GGUFFile, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError if a tensor is missing, has another shape, or is unknown."""
    if missing := [name for name in wanted if name not in file.tensors]:
        raise ValueError(f"it lacks {listed(missing)}")
    for name, shape in wanted.items():
        if (found := file.tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {shown(found)}, but {shape} is needed")
    if extra := [name for name in file.tensors if name not in wanted and name not in SCALING_TENSORS]:
        raise ValueError(f"it has tensors that this model does not have: {listed(extra)}")


def generation_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json would say: the tokens that begin a text, and those that end one."""
    found = own_values(values)
    if found.get("model") == "llama":
        found = SENTENCEPIECE | found
    ends = list(dict.fromkeys(found[name] for name in ENDS if name in found))
    named = {"bos_token_id": found.get("bos_token_id"), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {name: value for name, value in named.items() if value is not None}


def quantisations(path: Path) -> dict[str, int]:
    """How many tensors of a file are stored in each type."""
    return dict(Counter(type_name(tensor.type) for tensor in read_gguf(path).tensors.values()).most_common())
