"""Tensors of another implementation: from a .safetensors or .npz file, a folder of .npy files, or a mapping."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numllama.errors import CheckpointError, shown
from numllama.interop.pickles import refuse_pickle
from numllama.learn.vectors import MANIFEST, TENSORS
from numllama.storage.files import read_json, reading, regular
from numllama.storage.tensor_file import safetensors

BFLOAT16_BYTES = "|V2"  # how numpy.save writes bfloat16


def read_dump(source: Path | Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Tensors by name.

    Parameters
    ----------
    source : path or mapping
        A .safetensors or .npz file, a folder of .npy files (``layer.0/q.npy`` is "layer.0/q") or of vectors; or a mapping to
        arrays of NumPy, PyTorch, JAX, or whatever `numpy.asarray` takes.

    Raises
    ------
    CheckpointError
        If there is nothing to read, or nothing that can be read.
    """
    if isinstance(source, Mapping):
        tensors = {str(name): as_array(name, value) for name, value in source.items()}
    else:
        tensors = _read(Path(source))
    if not tensors:
        raise CheckpointError(f"{shown_source(source)} has no tensors")
    return tensors


def shown_source(source: Path | Mapping[str, Any]) -> str:
    return "the dump" if isinstance(source, Mapping) else str(source)


def as_array(name: str, value: Any) -> np.ndarray:
    """An array of NumPy's, from whatever library."""
    if hasattr(value, "detach"):  # PyTorch, whose bfloat16 NumPy does not know
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise CheckpointError(f"{shown(name)} has dtype {array.dtype}, but must have real numbers")
    return array


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.is_dir():
        return _read_folder(path)
    if not regular(path):
        raise CheckpointError(f"{path} is empty")
    refuse_pickle(path)
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        return _read_npz(path)
    if path.suffix == ".npy":
        return {path.stem: _read_npy(path)}
    with reading(path):
        return safetensors().load_file(path)


def _read_folder(path: Path) -> dict[str, np.ndarray]:
    if (path / MANIFEST).is_file() and read_json(path / MANIFEST).get("format") == "numllama vectors":
        return _read(path / TENSORS)
    files = sorted(path.rglob("*.npy"))
    if not files:
        raise CheckpointError(f"{path} is a folder without .npy files")
    return {file.relative_to(path).with_suffix("").as_posix(): _read_npy(file) for file in files}


def _read_npy(path: Path) -> np.ndarray:
    with reading(path):
        try:
            return _checked(str(path), np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise CheckpointError(f"{path} is not a .npy file of numbers: {error}") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with reading(path):
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: _checked(name, file[name]) for name in file.files}
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} is not a .npz file of numbers: {error}") from error


def _checked(name: str, array: Any) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{shown(name)} is not an array")
    if array.dtype.str == BFLOAT16_BYTES:
        bits = array.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).reshape(array.shape)
    return as_array(name, array)


def narrowest(tensors: Mapping[str, np.ndarray]) -> str:
    """The dtype of real numbers with the fewest bits of precision."""
    dtypes = {array.dtype for array in tensors.values() if array.dtype.kind == "f" or array.dtype.name == "bfloat16"}
    bits = {"bfloat16": 8, "float16": 11, "float32": 24}
    return min((dtype.name for dtype in dtypes), key=lambda name: bits.get(name, math.inf), default="float64")
