"""A training run on disk: written so that a kill at any moment leaves a whole checkpoint behind.

    RUN/config.json         how the run was started
    RUN/metrics.jsonl       one line for each step
    RUN/step-000250/        weights.safetensors, optimizer.safetensors, state.json (with checksums of both and of itself)
    RUN/latest.json, best.json    which step folder; small files, replaced atomically

A step folder is written under a temporary name, flushed to the disk, and renamed once. Nothing is ever written over.

What is written is a `Snapshot`, a copy taken between two steps, so that a thread can write it while the next steps are done.
"""

import hashlib
import json
import os
import platform
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from threadpoolctl import threadpool_info

import numllama
from numllama.backend import compute_dtype, real_dtype, to_numpy
from numllama.errors import CheckpointError, DamagedError
from numllama.model import ModelConfig, Parameters, Transformer
from numllama.optim.optimizer import Optimizer
from numllama.storage.files import flush, flush_folder, json_bytes, verified, with_checksum, write_json

FORMAT = 1
BELOW = 2**16  # so many of the weights below an adapter are looked at
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class Snapshot:
    """All that a checkpoint will hold, as it was at one moment.

    Attributes
    ----------
    step : int
    state : dict
        What `state.json` will say.
    tensors : dict
        For each file the shapes of its tensors, and the buffers in which they lie one after another.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, tuple[dict[str, tuple[int, ...]], list[np.ndarray]]]

    @classmethod
    def take(cls, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any]) -> "Snapshot":
        """Copy everything; training may go on as soon as this returns."""
        about = {
            "format": FORMAT,
            "step": step,
            "model": model.config.to_dict(),
            "lora": model.adapter.config.to_dict() if model.adapter else None,
            "below": _below(model),
            "dtype": model.dtype.name,
            "optimizer_steps": optimizer.steps,
            "versions": versions(),
        }
        moments = optimizer.state.values()
        shapes = {WEIGHTS: model.learnt.shapes, OPTIMIZER: {name: view.shape for name, view in _joined(optimizer.state).items()}}
        buffers = {WEIGHTS: [_copy(model.learnt)], OPTIMIZER: [_copy(moment) for moment in moments]}
        return cls(step, about | state, {name: (shapes[name], buffers[name]) for name in shapes})

    def write(self, run: Path) -> Path:
        """Write ``RUN/step-NNNNNN`` as a whole or not at all.

        Raises
        ------
        CheckpointError
            If it cannot be written, a full disk, say. What was there before is still there.
        """
        folder = run / step_name(self.step)
        if folder.exists():  # written by a save that failed only afterwards, at a pointer
            return folder
        part = run / f".part-{folder.name}-{os.getpid()}"
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            sums = {name: _write_tensors(part / name, *tensors) for name, tensors in self.tensors.items()}
            with open(part / STATE, "wb") as file:
                file.write(json_bytes(with_checksum({**self.state, "sha256": sums})))
                flush(file)
            flush_folder(part)
            os.replace(part, folder)
            flush_folder(run)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise CheckpointError(f"the checkpoint of step {self.step} could not be saved in {run}: {error.strerror}") from error
        return folder


def save_checkpoint(run: Path, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any]) -> Path:
    """Write ``RUN/step-NNNNNN`` as a whole or not at all: see :meth:`Snapshot.write`."""
    return Snapshot.take(step, model, optimizer, state).write(run)


@cache
def versions() -> dict[str, str]:
    """What the last bits of a result depend on, besides the configuration, the seed and the data."""
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    blas = {f"{library['internal_api']} {library['version']} {library.get('architecture', '')}" for library in libraries}
    return {
        "numllama": numllama.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": ", ".join(sorted(blas)),
        "system": f"{platform.system()} {platform.machine()}",
    }


def load_checkpoint(folder: Path, model: Transformer, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Fill a model, and an optimizer, from a step folder; returns its state.

    Raises
    ------
    DamagedError
        If a file is missing or damaged; nothing was changed then.
    CheckpointError
        If it belongs to another model or cannot be read; nothing was changed then.
    """
    state = read_state(folder)
    if ModelConfig.from_dict(state["model"]) != model.config:
        raise CheckpointError(f"{folder} holds a model of another configuration")
    if state.get("lora") != (model.adapter.config.to_dict() if model.adapter else None):
        raise CheckpointError(f"{folder} holds a model with another adapter, or with none")
    saved, below = state.get("below"), _below(model)
    if saved and saved["dtype"] == below["dtype"] and saved != below:
        raise CheckpointError(f"{folder} holds an adapter for a model of other weights than those that are below it now")
    views = {WEIGHTS: dict(model.learnt), OPTIMIZER: _joined(optimizer.state) if optimizer else {}}
    read = {name: _read_tensors(folder, name, state, expected) for name, expected in views.items() if expected}
    for name, tensors in read.items():  # all files are known to be good: nothing is changed by halves
        for key, value in tensors.items():
            views[name][key][...] = model.xp.asarray(value)
    model.learnt.round()
    if optimizer:
        optimizer.steps = state["optimizer_steps"]
    return state


def load_run(path: str | Path, device: str = "cpu", dtype: str | None = None, which: str = "best") -> Transformer:
    """The model of a training run.

    Parameters
    ----------
    path : path
        A run's folder, or one step folder of it.
    device, dtype : str
        Where to put the model; default dtype as it was trained, on a CPU float32 for what was trained in two bytes.
    which : str
        ``"best"`` or ``"latest"``, which ``"best"`` is too of a run that was stopped before its first estimate.
    """
    path = Path(path)
    if not (path / f"{which}.json").exists() and (path / "latest.json").exists():
        which = "latest"
    folder = find_step(path, which)
    state = read_state(folder)
    trained = real_dtype(compute_dtype(state["dtype"])).name if device == "cpu" else state["dtype"]
    if state.get("lora"):
        from numllama.training.finetune import load_adapted  # which knows checkpoints

        model = load_adapted(folder.parent, state["lora"], device, dtype)
    else:
        model = Transformer(ModelConfig.from_dict(state["model"]), device=device, dtype=dtype or trained)
    load_checkpoint(folder, model)
    return model


def find_step(path: Path, which: str = "latest") -> Path:
    """The step folder that ``latest.json`` or ``best.json`` names; a step folder is itself."""
    if (path / STATE).exists():
        return path
    pointer = path / f"{which}.json"
    if not pointer.exists():
        raise CheckpointError(f"{path} is not a training run with a checkpoint: it has no {pointer.name}")
    try:
        folder = path / verified(json.loads(pointer.read_text(encoding="utf-8")))["folder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{pointer} is damaged: {error}") from error
    if not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name}, which is not there")
    return folder


def step_name(step: int) -> str:
    """The name of a step's folder."""
    return f"step-{step:06d}"


def step_folders(run: Path) -> list[Path]:
    """The step folders of a run, the newest first."""
    found = [path for path in run.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json``, verified."""
    path = folder / STATE
    content = _read(path)
    try:
        state = json.loads(content.decode("utf-8"))
        state["seal"]  # a pointer may lack it, a state may not
        state = verified(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, but this version reads format {FORMAT}")
    return state


def point_to(run: Path, name: str, folder: Path, **about: Any) -> None:
    """Let ``RUN/{name}.json`` name a step folder, atomically."""
    write_json(run / f"{name}.json", with_checksum({"folder": folder.name, **about}))


def point(run: Path, folder: Path, best_step: int | None) -> None:
    """Let the pointers name the latest folder, and the best one if it is there; what they name already is not written again."""
    best = run / step_name(best_step) if best_step is not None else None
    for name, target in (("latest", folder), ("best", best)):
        if target is not None and target.is_dir() and _pointed(run, name) != target:
            point_to(run, name, target)


def _pointed(run: Path, name: str) -> Path | None:
    with suppress(CheckpointError):
        return find_step(run, name)
    return None


def set_aside(folder: Path) -> Path:
    """Rename a damaged step folder, so that its step can be saved again; nothing of it is deleted."""
    names = (folder.with_name(f"damaged-{folder.name}{suffix}") for suffix in ("", *(f"-{i}" for i in range(2, 1000))))
    aside = next(path for path in names if not path.exists())
    try:
        return folder.rename(aside)
    except OSError as error:
        raise CheckpointError(f"{folder} is damaged and cannot be renamed: {error.strerror}") from error


def prune(run: Path, keep: int = 1) -> None:
    """Delete old step folders, and what a kill left half-written.

    The newest `keep` ones stay, and those that ``latest.json`` and ``best.json`` name.
    """
    kept = set()
    for which in ("latest", "best"):
        try:
            kept.add(find_step(run, which).name)
        except DamagedError:  # whatever a damaged pointer named is not for us to delete
            return
        except CheckpointError:  # there is none, or somebody has deleted what it named
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


def _below(model: Transformer) -> dict[str, str] | None:
    """What tells the weights below an adapter from others: a checksum of some of them, spread over all."""
    if model.adapter is None:
        return None
    flat = model.params.flat
    some = to_numpy(flat[:: max(1, flat.size // BELOW)])
    return {"dtype": flat.dtype.name, "sha256": hashlib.sha256(some.tobytes()).hexdigest()}


def _copy(params: Parameters) -> np.ndarray:
    flat = to_numpy(params.flat)
    return flat.copy() if flat is params.flat else flat  # from a GPU it is a copy already


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is not there") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _read_tensors(folder: Path, name: str, state: dict, expected: Any) -> dict:
    path = folder / name
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != state["sha256"].get(name):
        raise DamagedError(f"{path} is damaged: its checksum is wrong")
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    for key, view in expected.items():
        if key not in tensors or tensors[key].shape != view.shape:
            raise CheckpointError(f"{path} lacks {key} of shape {tuple(view.shape)}")
    return {key: tensors[key] for key in expected}


def _joined(buffers: dict[str, Parameters]) -> dict:
    return {f"{name}.{key}": view for name, params in buffers.items() for key, view in params.items()}


class _Summed:
    """A file that knows the checksum of what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        self.sum.update(content)
        self._file.write(content)


def _write_tensors(path: Path, shapes: dict[str, tuple[int, ...]], buffers: list[np.ndarray]) -> str:
    """Write a safetensors file; returns its checksum."""
    from numllama.interop.tensor_file import write_tensors  # whose package imports this module

    dtype = buffers[0].dtype if buffers else np.dtype("float32")
    with open(path, "wb") as file:
        summed = _Summed(file)
        write_tensors(summed, dtype, shapes, buffers)
        flush(file)
    return summed.sum.hexdigest()
