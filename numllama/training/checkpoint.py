"""A training run on disk: written so that a kill at any moment leaves a whole checkpoint behind.

    RUN/config.json         how the run was started
    RUN/metrics.jsonl       one line for each step
    RUN/step-000250/        weights.safetensors, optimizer.safetensors, state.json (with checksums of both and of itself)
    RUN/latest.json, best.json    which step folder; small files, replaced atomically

A step folder is written under a temporary name, flushed to the disk, and renamed once. Nothing is ever written over.
"""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from numllama.backend import compute_dtype, real_dtype, to_numpy
from numllama.errors import CheckpointError
from numllama.model import ModelConfig, Parameters, Transformer
from numllama.optim.optimizer import Optimizer

FORMAT = 1
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(run: Path, step: int, model: Transformer, optimizer: Optimizer, state: dict[str, Any]) -> Path:
    """Write ``RUN/step-NNNNNN`` as a whole or not at all.

    Raises
    ------
    CheckpointError
        If it cannot be written, a full disk, say. What was there before is still there.
    """
    folder = run / step_name(step)
    if folder.exists():  # written by a save that failed only afterwards, at a pointer
        return folder
    part = run / f".part-{folder.name}-{os.getpid()}"
    files = {WEIGHTS: _serialise(model.learnt), OPTIMIZER: _serialise(_joined(optimizer.state))}
    state = {
        "format": FORMAT,
        "step": step,
        "model": model.config.to_dict(),
        "lora": model.adapter.config.to_dict() if model.adapter else None,
        "dtype": model.dtype.name,
        "optimizer_steps": optimizer.steps,
        **state,
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    files[STATE] = _sealed_json(state)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, content in files.items():
            _write_through(part / name, content)
        os.replace(part, folder)
        _flush_folder(run)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise CheckpointError(f"the checkpoint of step {step} could not be saved in {run}: {error.strerror}") from error
    return folder


def step_name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:06d}"


def load_checkpoint(folder: Path, model: Transformer, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Fill a model, and an optimizer, from a step folder; returns its state.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or belongs to another model; nothing was changed then.
    """
    state = read_state(folder)
    if ModelConfig.from_dict(state["model"]) != model.config:
        raise CheckpointError(f"{folder} holds a model of another configuration")
    if state.get("lora") != (model.adapter.config.to_dict() if model.adapter else None):
        raise CheckpointError(f"{folder} holds a model with another adapter, or with none")
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
        ``"best"`` or ``"latest"``.
    """
    folder = find_step(Path(path), which)
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
        folder = path / json.loads(pointer.read_text(encoding="utf-8"))["folder"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{pointer} is damaged: {error}") from error
    if not folder.is_dir():
        raise CheckpointError(f"{pointer} names {folder.name}, which is not there")
    return folder


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json``, verified."""
    path = folder / STATE
    try:
        state = json.loads(path.read_bytes().decode("utf-8"))
        seal = state.pop("seal")
        whole = seal == _seal(state)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, but this version reads format {FORMAT}")
    return state


def point_to(run: Path, name: str, folder: Path, **about: Any) -> None:
    """Let ``RUN/{name}.json`` name a step folder, atomically."""
    write_json(run / f"{name}.json", {"folder": folder.name, **about})


def prune(run: Path) -> None:
    """Delete the step folders that neither ``latest.json`` nor ``best.json`` names, and what a kill left half-written."""
    try:
        named = {find_step(run, which).name for which in ("latest", "best") if (run / f"{which}.json").exists()}
    except CheckpointError:  # whatever a damaged pointer named is not for us to delete
        return
    for folder in run.iterdir():
        if re.fullmatch(r"step-\d{6,}", folder.name) and folder.is_dir() and folder.name not in named:
            with suppress(OSError):
                folder.rename(run / f".old-{folder.name}")  # half-deleted, it must not look like a step folder
    for pattern in (".part-*", ".old-*"):
        for left in run.glob(pattern):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a small file whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; what it held before stays until then."""
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    try:
        _write_through(part, text.encode())
        os.replace(part, path)
        _flush_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise CheckpointError(f"{path} could not be written: {error.strerror}") from error


def _serialise(tensors: Any) -> bytes:
    return save_tensors({name: to_numpy(view) for name, view in tensors.items()})


def _read_tensors(folder: Path, name: str, state: dict, expected: Any) -> dict:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != state["sha256"].get(name):
        raise CheckpointError(f"{path} is damaged: its checksum is wrong")
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    for key, view in expected.items():
        if key not in tensors or tensors[key].shape != view.shape:
            raise CheckpointError(f"{path} lacks {key} of shape {tuple(view.shape)}")
    return {key: tensors[key] for key in expected}


def _joined(buffers: dict[str, Parameters]) -> dict:
    return {f"{name}.{key}": view for name, params in buffers.items() for key, view in params.items()}


def _sealed_json(state: dict) -> bytes:
    return (json.dumps({**state, "seal": _seal(state)}, indent=1) + "\n").encode()


def _seal(state: dict) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_through(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make a rename last through a power cut, where the system lets folders be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
