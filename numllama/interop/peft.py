"""Adapters in the format of `peft`: adapter_config.json and adapter_model.safetensors, and a generation_config.json.

An adapter of a Llama or another known family has the names of peft and Hugging Face, and rows in Hugging Face's order; an adapter
of another model, or of one whose file stacks matrices (Phi-3), has our names.
Fields of adapter_config.json beyond plain LoRA are refused by name.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import real_dtype, to_numpy
from numllama.errors import CheckpointError, listed, shown
from numllama.interop.huggingface import (
    GENERATION,
    family_of,
    generation_config,
    huggingface_names,
    json_bytes,
    rope_heads,
    to_halves,
    to_neighbours,
)
from numllama.interop.pickles import refuse_others
from numllama.model import LoraConfig, ModelConfig, Parameters, Transformer
from numllama.model.lora import TARGETS, adapter_shapes
from numllama.storage.checksums import check_files
from numllama.storage.fields import FLAG, POSITIVE, as_json, check, only, optional, require, whole
from numllama.storage.files import is_there, read_json
from numllama.storage.folders import published
from numllama.storage.tensor_file import TensorFile, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {"_lora_a": ".lora_A.weight", "_lora_b": ".lora_B.weight"}
# Fields of an adapter_config.json that change the numbers, and the values that are allowed. Some initialisations (PiSSA, OLoRA,
# CorDA, LoftQ, ...) change the weights of the base model too, so they are refused.
HONOURED = {
    "r": whole(1),
    "lora_alpha": POSITIVE,
    "use_rslora": optional(FLAG),
    "peft_type": only("LORA"),
    "bias": only("none"),
    "fan_in_fan_out": only(False),
    "use_dora": only(False),
    "use_qalora": only(False),
    "lora_bias": only(False),
    "modules_to_save": only(None, []),
    "rank_pattern": only({}, None),
    "alpha_pattern": only({}, None),
    "init_lora_weights": only(True, False, None, "gaussian", "eva", "orthogonal"),
    "target_parameters": only(None, []),
    **dict.fromkeys(
        (
            "layer_replication", "trainable_token_indices", "alora_invocation_tokens",
            "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
        ),
        only(None),
    ),
}  # fmt: skip


def save_adapter(model: Transformer, path: str | PathLike, *, base: str | PathLike | None = None) -> None:
    """Save a model's adapter, with checksums of its files, atomically.

    Parameters
    ----------
    model : Transformer
    path : path
        A folder.
    base : str or path, optional
        Path of the base model, stored as ``base_model_name_or_path``, so that :func:`numllama.load` can open the adapter.

    Raises
    ------
    ValueError
        If the model has no adapter.
    CheckpointError
        If it cannot be written; the previous files stay as they are.
    """
    if model.adapter is None:
        raise ValueError("the model has no adapter to save")
    config, params = model.adapter.config, model.adapter.params
    names = peft_names(model.config, params.shapes)
    alpha = int(config.alpha) if config.alpha.is_integer() else config.alpha
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": _target_modules(model.config, config),
        "bias": "none",
        "inference_mode": True,
    }
    shapes = {names[name]: shape for name, shape in params.shapes.items()}
    arrays = (_reordered(model.config, name, to_numpy(view), to_halves) for name, view in params.items())
    with published(Path(path), CONFIG, checksums=True) as part:
        with open(part / WEIGHTS, "wb") as file:
            write_tensors(file, params.flat.dtype, shapes, arrays)
        (part / CONFIG).write_bytes(json_bytes(values))
        (part / GENERATION).write_bytes(json_bytes(model.generation_config))


def load_adapter(model: Transformer, path: str | PathLike[str]) -> None:
    """Add the adapter in a folder, written by numllama or peft, to a model.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, made for another model, or of a kind that numllama cannot honour.
    """
    folder = Path(path)
    values = read_json(folder / CONFIG)
    every = list(range(model.config.n_layers))
    try:
        require(values, ("r", "lora_alpha"), "the configuration")
        check(values, {**HONOURED, "layers_to_transform": only(None, every)}, as_json)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    if not (folder / WEIGHTS).exists():
        refuse_others(folder)
    tensors = TensorFile(folder / WEIGHTS)
    try:
        config = _lora_config(values, _targets(model.config, tensors))
        shapes = adapter_shapes(model.config, config)
    except ValueError as error:
        raise CheckpointError(f"{folder} is not an adapter for this model: {error}") from error
    names = peft_names(model.config, shapes)
    _check_tensors(folder, {names[name]: shape for name, shape in shapes.items()}, tensors)
    check_files(folder)
    params = Parameters(shapes, np.empty(sum(map(math.prod, shapes.values())), real_dtype(model.compute_dtype)))
    for name, view in params.items():
        view[...] = _reordered(model.config, name, tensors[names[name]], to_neighbours)
    model.add_adapter(config, params=Parameters(shapes, model.xp.asarray(params.flat)))
    if (folder / GENERATION).exists():
        model.generation_config = generation_config(folder, {})


def base_of(folder: Path) -> Path:
    """The path of an adapter's base model."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not is_there(name):
        raise CheckpointError(
            f"{folder} is an adapter for {shown(name, most=300)}, which is not a folder or file here: "
            "load that model, and give this folder as its adapter"
        )
    return Path(name)


def _lora_config(values: Mapping[str, Any], targets: tuple[str, ...]) -> LoraConfig:
    """The LoraConfig of an adapter_config.json. Rank-stabilised LoRA divides alpha by the root of the rank."""
    config = LoraConfig(rank=values["r"], alpha=values["lora_alpha"], targets=targets)
    return replace(config, alpha=config.alpha * math.sqrt(config.rank)) if values.get("use_rslora") else config


def peft_names(config: ModelConfig, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Our name of each parameter of an adapter: peft's name."""
    modules = _modules(config)
    cut = -len("_lora_a")
    return {name: f"{PREFIX}{modules[name[:cut]]}{KINDS[name[cut:]]}" for name in shapes}


def _modules(config: ModelConfig) -> dict[str, str]:
    """Our name of each matrix of a model: the name of its module."""
    names = huggingface_names(config)
    if len(set(names.values())) < len(names):  # stacked matrices, which peft updates as one
        names = {name: name for name in names}
    return {name: other.removesuffix(".weight") for name, other in names.items()}


def _target_modules(config: ModelConfig, lora: LoraConfig) -> list[str]:
    modules = (module for name, module in _modules(config).items() if name.rpartition(".")[-1] in lora.targets)
    return sorted({module.rpartition(".")[-1] for module in modules})


def _targets(config: ModelConfig, tensors: TensorFile) -> tuple[str, ...]:
    """Our names of the maps that the tensors update; unknown tensors are reported later."""
    ours = {module: name.rpartition(".")[-1] for name, module in _modules(config).items()}
    found = {ours.get(name.removeprefix(PREFIX).removesuffix(KINDS["_lora_a"])) for name in tensors}
    return tuple(name for name in TARGETS if name in found)


def _check_tensors(folder: Path, wanted: Mapping[str, tuple[int, ...]], tensors: TensorFile) -> None:
    """Raise CheckpointError if a tensor is missing, has another shape, or is unknown."""
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"{folder} lacks {listed(missing)}")
    if extra := [name for name in tensors if name not in wanted]:
        raise CheckpointError(f"{folder} has tensors that this model does not have: {listed(extra)}")
    for name, shape in wanted.items():
        if tensors.shape(name) != shape:
            raise CheckpointError(f"{folder}: {name} has shape {shown(tensors.shape(name))}, but {shape} is needed")


def _reordered(config: ModelConfig, name: str, values: np.ndarray, order: Any) -> np.ndarray:
    """Reorder the rows of b like those of its weight, whose order depends on RoPE's layout."""
    if not name.endswith("_lora_b") or config.rope_layout != "interleaved" or family_of(config) is None:
        return values
    heads = rope_heads(config, name.removesuffix("_lora_b"))
    return values if heads is None else order(values, heads)
