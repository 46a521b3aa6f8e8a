"""A training run on disk, written so that a kill at any moment leaves a complete checkpoint.

    RUN/config.json         how the run was started
    RUN/metrics.jsonl       one line for each step
    RUN/step-000250/        weights.safetensors, optimizer.safetensors, state.json (with checksums of both and of itself)
    RUN/latest.json, best.json    which step folder; small files, replaced atomically

A step folder is written under a temporary name, flushed to disk, then renamed. Nothing is ever overwritten.

A `Snapshot` is a copy taken between two steps; a thread writes it to disk while training continues.
"""

import hashlib
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from numllama.backend import to_numpy
from numllama.errors import CheckpointError, DamagedError, shown
from numllama.model import LoraConfig, ModelConfig, Transformer
from numllama.model.lora import adapter_shapes
from numllama.model.parameters import FlatTensors, parameter_shapes
from numllama.optim.optimizer import Optimizer
from numllama.storage.checksums import file_checksum, read_verified, with_checksum
from numllama.storage.fields import as_json, check, whole
from numllama.storage.files import flush_folder, json_bytes, reading, write_json
from numllama.storage.folders import new_folder
from numllama.storage.tensor_file import TensorFile, write_tensors
from numllama.system.blas import blas
from numllama.system.webassembly import IN_WEBASSEMBLY
from numllama.training.run_folder import fingerprint, identity
from numllama.training.state import LOADED, POINTER, check_state
from numllama.version import __version__

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
STEP = re.compile(r"step-([0-9]{6,18})")  # a step folder's name


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint, copied at one moment.

    Attributes
    ----------
    step : int
    state : dict
        Contents of `state.json`.
    tensors : dict
        For each file, the shapes of its tensors and the buffers that hold them back to back.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, tuple[dict[str, tuple[int, ...]], list[np.ndarray]]]

    @classmethod
    def take(cls, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any]) -> "Snapshot":
        """Copy everything; training may continue as soon as this returns."""
        metadata = {
            "format": FORMAT,
            "step": step,
            "model": model.config.to_dict(),
            "lora": model.adapter.config.to_dict() if model.adapter else None,
            "below": _base_fingerprint(model),
            "dtype": model.compute_dtype.name,
            "optimizer_steps": optimizer.steps,
            "versions": versions(),
        }
        moments = optimizer.state.values()
        shapes_of_moments = {name: view.shape for name, view in _joined(optimizer.state).items()}
        shapes = {WEIGHTS: model.trainable.shapes, OPTIMIZER: shapes_of_moments}
        buffers = {WEIGHTS: [_copy(model.trainable)], OPTIMIZER: [_copy(moment) for moment in moments]}
        return cls(step, metadata | state, {name: (shapes[name], buffers[name]) for name in shapes})

    def write(self, run: Path) -> Path:
        """Write ``RUN/step-NNNNNN`` atomically: all of it or nothing.

        Raises
        ------
        CheckpointError
            If it cannot be written, as on a full disk. Existing files are untouched.
        """
        folder = run / step_name(self.step)
        try:
            if folder.exists():  # an earlier save wrote it and failed at a pointer
                flush_folder(run)
                return folder
            with new_folder(folder) as part:
                sums = {name: _write_tensors(part / name, *tensors) for name, tensors in self.tensors.items()}
                with open(part / STATE, "wb") as file:
                    file.write(json_bytes(with_checksum({**self.state, "sha256": sums})))
        except OSError as error:
            raise CheckpointError(f"the checkpoint of step {self.step} could not be saved in {run}: {error.strerror}") from error
        return folder


def save_checkpoint(run: Path, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any]) -> Path:
    """Write ``RUN/step-NNNNNN`` atomically: see :meth:`Snapshot.write`."""
    return Snapshot.take(step, model, optimizer, state).write(run)


@cache
def versions() -> dict[str, str]:
    """Versions that affect the last bits of a result, in addition to configuration, seed and data."""
    libraries = [] if IN_WEBASSEMBLY else blas().info()
    names = {f"{library['internal_api']} {library['version']} {library.get('architecture', '')}" for library in libraries}
    return {
        "numllama": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": ", ".join(sorted(names)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load_checkpoint(folder: Path, model: Transformer, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Load a model, and optionally an optimizer, from a step folder; returns its state.

    Raises
    ------
    DamagedError
        If a file is missing or damaged.
    CheckpointError
        If it belongs to another model or cannot be read. After any error, nothing has changed.
    """
    state = read_state(folder)
    if model_config(folder, state) != model.config:
        raise CheckpointError(f"{folder} holds a model of another configuration")
    if state.get("lora") != (model.adapter.config.to_dict() if model.adapter else None):
        raise CheckpointError(f"{folder} holds a model with another adapter, or with none")
    saved, below = state.get("below"), _base_fingerprint(model)
    if saved and below and saved.get("dtype") == below["dtype"] and saved != below:
        raise CheckpointError(f"{folder} holds an adapter that was trained on other base weights")
    views = {WEIGHTS: dict(model.trainable), OPTIMIZER: _joined(optimizer.state) if optimizer else {}}
    read = {name: _read_tensors(folder, name, state, expected) for name, expected in views.items() if expected}
    for name, tensors in read.items():  # all files are verified, so there is no partial load
        for key, value in tensors.items():
            views[name][key][...] = model.xp.asarray(value)
    model.trainable.sync_low_precision()
    if optimizer:
        optimizer.steps = state["optimizer_steps"]
    return state


def model_config(folder: Path, state: dict[str, Any]) -> ModelConfig:
    with reading(folder / STATE, DamagedError):
        return ModelConfig.from_dict(state["model"])


def lora_config(folder: Path, state: dict[str, Any]) -> LoraConfig | None:
    with reading(folder / STATE, DamagedError):
        return LoraConfig(**state["lora"]) if state.get("lora") else None


def check_header(folder: Path, config: ModelConfig, lora: LoraConfig | None) -> None:
    """Check that the weights file matches the configuration, before allocating the sizes that it claims."""
    tensors = _tensor_file(folder / WEIGHTS)
    with reading(folder / STATE, DamagedError):
        if config.n_layers > len(tensors):
            raise DamagedError(f"{folder / WEIGHTS} has {len(tensors)} tensors, which cannot be {config.n_layers} layers")
        _check_shapes(folder / WEIGHTS, tensors, adapter_shapes(config, lora) if lora else parameter_shapes(config))


def find_step(path: Path, which: str = "latest") -> Path:
    """The step folder named by ``latest.json`` or ``best.json``; a step folder is returned unchanged."""
    pointer = path / f"{which}.json"
    with reading(path):
        if (path / STATE).exists():
            return path
        if not pointer.exists():
            raise CheckpointError(f"{path} is not a training run with a checkpoint: it has no {pointer.name}")
    folder = path / read_pointer(pointer)["folder"]
    if not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name}, which is not there")
    return folder


def read_pointer(pointer: Path) -> dict[str, Any]:
    """``latest.json`` or ``best.json``, verified: the name of a step folder, and metadata."""
    with reading(pointer, DamagedError):
        values = read_verified(pointer, legacy_keys=("folder",))
        name = values["folder"]
        if not isinstance(name, str) or not STEP.fullmatch(name):
            raise ValueError(f"folder is {as_json(name)}, but must be the name of a step folder")
        check(values, POINTER, as_json)
        if values.get("pointer", pointer.stem) != pointer.stem:
            raise ValueError(f"it is {values['pointer']}.json, renamed")
    _check_owner(pointer, values.get("run"), pointer.parent)
    return values


def _check_owner(path: Path, owner: str | None, run: Path) -> None:
    """DamagedError if another run wrote the file. Older versions did not write the run's name."""
    own = owner
    with suppress(CheckpointError):  # a damaged config.json is reported elsewhere
        own = identity(run) if owner is not None else None
    if own != owner:
        raise DamagedError(f"{path} belongs to another run than {run}")


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06d}"


def step_folders(run: Path) -> list[Path]:
    """The step folders of a run, the newest first."""
    found = [path for path in run.glob("step-*") if STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step in a step folder's name."""
    return int(folder.name.removeprefix("step-"))


def read_state(folder: Path, needed: Sequence[str] = LOADED) -> dict[str, Any]:
    """``state.json``, verified: its checksum, its fields, and that it belongs to this folder and run.

    Parameters
    ----------
    folder : path
    needed : sequence of str
        Required fields; it is damaged without them.
    """
    path = folder / STATE
    if not path.exists():
        raise DamagedError(f"{path} is not there")
    state = read_verified(path)
    with reading(path, DamagedError):
        if whole().fits(state["format"]) and state["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {state['format']}, but this version reads format {FORMAT}")
        check_state(state, needed)
        if STEP.fullmatch(folder.name) and state["step"] != step_of(folder):
            raise ValueError(f"it is of step {state['step']}, so the folder was renamed or holds files of another one")
    _check_owner(path, state.get("run"), folder.parent)
    return state


def write_pointer(run: Path, name: str, folder: Path, /, **metadata: Any) -> None:
    """Point ``RUN/{name}.json`` at a step folder, atomically."""
    write_json(run / f"{name}.json", with_checksum({"pointer": name, "folder": folder.name, **metadata}))


def point(
    run: Path, folder: Path, best_step: int | None, owner: str | None = None, log: Mapping[str, Any] | None = None
) -> None:
    """Point ``latest.json`` at `folder`, and ``best.json`` at the best one if it exists; correct pointers are not rewritten.

    `owner` is the run's unique name, `log` the value of :attr:`MetricsLog.mark`.
    """
    best = run / step_name(best_step) if best_step is not None else None
    for name, target, metadata in (("latest", folder, {"log": log}), ("best", best, {})):
        if target is not None and target.is_dir() and _pointed(run, name) != target:
            write_pointer(run, name, target, run=owner, **metadata)


def _pointed(run: Path, name: str) -> Path | None:
    with suppress(CheckpointError):
        return find_step(run, name)
    return None


def log_mark(run: Path, step: int) -> dict[str, Any] | None:
    """The log's mark in ``latest.json``, if that names this step."""
    with suppress(CheckpointError):
        pointer = read_pointer(run / "latest.json")
        return pointer.get("log") if pointer["folder"] == step_name(step) else None
    return None


def quarantine(folder: Path) -> Path:
    """Rename a damaged step folder, so that its step can be saved again; nothing is deleted."""
    names = (folder.with_name(f"damaged-{folder.name}{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    aside = next(path for path in names if not path.exists())
    try:
        return folder.rename(aside)
    except OSError as error:
        raise CheckpointError(f"{folder} is damaged and cannot be renamed: {error.strerror}") from error


def prune(run: Path, keep: int = 1) -> None:
    """Delete old step folders, and files left half-written by a kill.

    The newest `keep` stay, and those named by ``latest.json`` and ``best.json``.
    """
    kept = set()
    for which in ("latest", "best"):
        try:
            kept.add(find_step(run, which).name)
        except DamagedError:  # a damaged pointer may have named any of them: delete nothing
            return
        except CheckpointError:  # there is no pointer, or its folder was deleted
            pass
    for folder in step_folders(run)[keep:]:
        if folder.name not in kept:
            with suppress(OSError):
                folder.rename(run / f".old-{folder.name}")  # half-deleted, it must not look like a step folder
    for pattern in (".part-*", ".old-*"):
        for left in run.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def _base_fingerprint(model: Transformer) -> dict[str, str] | None:
    """A fingerprint of the weights below an adapter: a checksum of a sample of them."""
    if model.adapter is None:
        return None
    return {"dtype": model.params.flat.dtype.name, "sha256": fingerprint(model.params)}


def _copy(params: FlatTensors) -> np.ndarray:
    flat = to_numpy(params.flat)
    return flat.copy() if flat is params.flat else flat  # already a copy if it came from a GPU


def _tensor_file(path: Path) -> TensorFile:
    if not path.exists():
        raise DamagedError(f"{path} is not there")
    return TensorFile(path)


def _check_shapes(path: Path, tensors: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in tensors or tensors.shape(name) != tuple(shape):
            raise CheckpointError(f"{path} lacks {shown(name, quote=False)} of shape {tuple(shape)}")


def _read_tensors(folder: Path, name: str, state: dict, expected: Mapping[str, Any]) -> dict:
    """The tensors of a file, after its checksum is verified; memory-mapped, so the file is never copied to memory."""
    path = folder / name
    with reading(path):
        if not path.exists():
            raise DamagedError(f"{path} is not there")
        if file_checksum(path) != state["sha256"].get(name):
            raise DamagedError(f"{path} is damaged: its checksum is wrong")
    tensors = _tensor_file(path)
    _check_shapes(path, tensors, {key: view.shape for key, view in expected.items()})
    return {key: tensors[key] for key in expected}


def _joined(buffers: Mapping[str, FlatTensors]) -> dict:
    return {f"{name}.{key}": view for name, params in buffers.items() for key, view in params.items()}


class _Summed:
    """A file that computes the checksum of everything written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        self.sum.update(content)
        self._file.write(content)


def _write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], buffers: list[np.ndarray]) -> str:
    """Write a safetensors file; returns its checksum."""
    dtype = buffers[0].dtype if buffers else np.dtype("float32")
    with open(path, "wb") as file:
        summed = _Summed(file)
        write_tensors(cast(BinaryIO, summed), dtype, shapes, buffers)
    return summed.sum.hexdigest()
