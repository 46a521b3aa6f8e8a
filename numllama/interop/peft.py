"""Adapters as `peft` keeps them: adapter_config.json and adapter_model.safetensors, and beside them how texts end.

An adapter of a Llama has peft's names over Hugging Face's, and its rows are in Hugging Face's order, as the model's own would be;
one of another model has our names. What an adapter_config.json asks for beyond plain LoRA is refused by name.
"""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import real_dtype, to_numpy
from numllama.errors import CheckpointError, listed, shown
from numllama.interop.huggingface import (
    GENERATION,
    generation_config,
    huggingface_names,
    is_llama,
    json_bytes,
    rope_heads,
    to_halves,
    to_neighbours,
)
from numllama.interop.pickles import refuse_others
from numllama.model import LoraConfig, ModelConfig, Parameters, Transformer, parameter_shapes
from numllama.model.lora import TARGETS, adapter_shapes
from numllama.storage.checksums import check_files
from numllama.storage.fields import FLAG, POSITIVE, as_json, check, only, optional, require, whole
from numllama.storage.files import is_there, read_json
from numllama.storage.folders import published
from numllama.storage.tensor_file import TensorFile, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {"_lora_a": ".lora_A.weight", "_lora_b": ".lora_B.weight"}
# What an adapter_config.json may hold that changes the numbers, and the only values that are the same as leaving it out. Some
# ways to begin (PiSSA, OLoRA, CorDA, LoftQ, ...) change the weights of the model below, which is then not the one that we have.
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
    **dict.fromkeys(
        (
            "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
            "use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
        ),
        only(None),
    ),
}  # fmt: skip


def save_adapter(model: Transformer, path: str | PathLike, base: str | PathLike | None = None) -> None:
    """Write a model's adapter, with checksums of its files: all of them, or none.

    Parameters
    ----------
    model : Transformer
    path : path
        A folder.
    base : str or path, optional
        Where the model below it comes from: kept as ``base_model_name_or_path``, so that :func:`numllama.load` opens the
        adapter by itself.

    Raises
    ------
    ValueError
        If the model has no adapter.
    CheckpointError
        If it cannot be written; what was there before is still there.
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
    with published(path, CONFIG, checksums=True) as part:
        with open(part / WEIGHTS, "wb") as file:
            write_tensors(file, params.flat.dtype, shapes, arrays)
        (part / CONFIG).write_bytes(json_bytes(values))
        (part / GENERATION).write_bytes(json_bytes(model.generation_config))


def load_adapter(model: Transformer, path: str | PathLike) -> None:
    """Give a model the adapter in a folder, ours or one that peft wrote.

    Raises
    ------
    CheckpointError
        If it is missing, damaged, made for another model, or of a kind that this code cannot honour.
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
        raise CheckpointError(f"{folder} is no adapter for this model: {error}") from error
    names = peft_names(model.config, shapes)
    _check_tensors(folder, {names[name]: shape for name, shape in shapes.items()}, tensors)
    check_files(folder)
    params = Parameters(shapes, np.empty(sum(map(math.prod, shapes.values())), real_dtype(model.dtype)))
    for name, view in params.items():
        view[...] = _reordered(model.config, name, tensors[names[name]], to_neighbours)
    model.add_adapter(config, params=Parameters(shapes, model.xp.asarray(params.flat)))
    if (folder / GENERATION).exists():
        model.generation_config = generation_config(folder, {})


def base_of(folder: Path) -> Path:
    """The folder or file of the model that an adapter was made for."""
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not is_there(name):
        raise CheckpointError(
            f"{folder} is an adapter for {shown(name, most=300)}, which is not a folder or file here: "
            "load that model, and give this folder as its adapter"
        )
    return Path(name)


def _lora_config(values: Mapping[str, Any], targets: tuple[str, ...]) -> LoraConfig:
    """Rank-stabilised LoRA divides alpha by the root of the rank."""
    config = LoraConfig(values["r"], values["lora_alpha"], targets)
    return LoraConfig(config.rank, config.alpha * math.sqrt(config.rank), targets) if values.get("use_rslora") else config


def peft_names(config: ModelConfig, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Our names of an adapter's parameters, and peft's."""
    modules = _modules(config)
    cut = -len("_lora_a")
    return {name: f"{PREFIX}{modules[name[:cut]]}{KINDS[name[cut:]]}" for name in shapes}


def _modules(config: ModelConfig) -> dict[str, str]:
    """Our names of a model's matrices, and those of the modules that hold them."""
    names = huggingface_names(config) if is_llama(config) else {name: name for name in parameter_shapes(config)}
    return {name: other.removesuffix(".weight") for name, other in names.items()}


def _target_modules(config: ModelConfig, lora: LoraConfig) -> list[str]:
    modules = (module for name, module in _modules(config).items() if name.rpartition(".")[-1] in lora.targets)
    return sorted({module.rpartition(".")[-1] for module in modules})


def _targets(config: ModelConfig, tensors: TensorFile) -> tuple[str, ...]:
    """Which of our maps the tensors are for; unknown ones are named later, as left over."""
    ours = {module: name.rpartition(".")[-1] for name, module in _modules(config).items()}
    found = {ours.get(name.removeprefix(PREFIX).removesuffix(KINDS["_lora_a"])) for name in tensors}
    return tuple(name for name in TARGETS if name in found)


def _check_tensors(folder: Path, wanted: Mapping[str, tuple[int, ...]], tensors: TensorFile) -> None:
    """Every tensor is there, has its shape, and has a place in the model."""
    if missing := [name for name in wanted if name not in tensors]:
        raise CheckpointError(f"{folder} lacks {listed(missing)}")
    if extra := [name for name in tensors if name not in wanted]:
        raise CheckpointError(f"{folder} has tensors that this model has no place for: {listed(extra)}")
    for name, shape in wanted.items():
        if tensors.shape(name) != shape:
            raise CheckpointError(f"{folder}: {name} has shape {shown(tensors.shape(name))}, but {shape} is needed")


def _reordered(config: ModelConfig, name: str, values: np.ndarray, order: Any) -> np.ndarray:
    """The rows of b are those of its weight, which RoPE's layout puts in an order."""
    if not name.endswith("_lora_b") or config.rope_layout != "interleaved" or not is_llama(config):
        return values
    heads = rope_heads(config, name.removesuffix("_lora_b"))
    return values if heads is None else order(values, heads)
