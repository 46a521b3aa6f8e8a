"""Adapters in the format of `peft`: adapter_config.json and adapter_model.safetensors, and a generation_config.json.

An adapter of a Llama or another known family has the names of peft and Hugging Face, and rows in Hugging Face's order; an adapter
of another model has our names. Where a file stacks matrices (Phi-3), peft updates them as one: such an update is read as one for
each, all with the same a; but ours, which need not have that, are written with our names.

Which matrices an adapter updates, with which rank and alpha, is what peft makes of ``target_modules`` (names, or a regular
expression), ``layers_to_transform``, ``rank_pattern`` and ``alpha_pattern``. Fields beyond plain LoRA are refused by name.
"""

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import regex

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
from numllama.model.lora import TARGETS, WHOLE, adapter_shapes
from numllama.storage.checksums import check_files
from numllama.storage.fields import FLAG, POSITIVE, Kind, as_json, check, only, optional, require, whole
from numllama.storage.files import is_there, read_json
from numllama.storage.folders import published
from numllama.storage.tensor_file import TensorFile, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KINDS = {"a": ".lora_A.weight", "b": ".lora_B.weight", "": ".weight"}
LONGEST = 1000  # characters of a regular expression, which may take a second for each name


def _several(kind: Kind, words: str) -> Kind:
    return Kind(lambda value: isinstance(value, list) and all(map(kind.fits, value)), words)


def _patterns(kind: Kind, words: str) -> Kind:
    return Kind(lambda value: isinstance(value, dict) and all(map(kind.fits, value.values())), words)


PATTERN = Kind(lambda value: isinstance(value, str) and len(value) <= LONGEST, f"must be a text of at most {LONGEST} characters")
NAMES = Kind(
    lambda value: PATTERN.fits(value) or _several(PATTERN, "").fits(value), "must be a regular expression or a list of names"
)
LAYERS = Kind(
    lambda value: whole(-1).fits(value) or _several(whole(-1), "").fits(value), "must be a layer or a list of layers"
)
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
    "target_modules": optional(NAMES),
    "exclude_modules": optional(NAMES),
    "layers_to_transform": optional(LAYERS),
    "layers_pattern": optional(NAMES),
    "modules_to_save": optional(_several(PATTERN, "must be a list of names")),
    "rank_pattern": optional(_patterns(whole(1), "must map names to whole numbers of at least 1")),
    "alpha_pattern": optional(_patterns(POSITIVE, "must map names to positive numbers")),
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
    config, params, modules = model.adapter.config, model.adapter.params, _modules(model.config)
    names = peft_names(model.config, params.shapes)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None if base is None else str(base),
        "r": config.rank,
        "lora_alpha": _short(config.alpha),
        "lora_dropout": 0.0,
        "rank_pattern": {modules[name]: rank for name, rank in config.ranks.items()},
        "alpha_pattern": {modules[name]: _short(alpha) for name, alpha in config.alphas.items()},
        "modules_to_save": [modules[name].rpartition(".")[2] for name in config.modules_to_save] or None,
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
    try:
        require(values, ("r", "lora_alpha"), "the configuration")
        check(values, HONOURED, as_json)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    if not (folder / WEIGHTS).exists():
        refuse_others(folder)
    tensors = TensorFile(folder / WEIGHTS)
    modules = _modules(model.config, ours=any(name.startswith(f"{PREFIX}blocks.") for name in tensors))
    try:
        config = _lora_config(model.config, modules, values, tensors)
        shapes = adapter_shapes(model.config, config)
    except ValueError as error:
        raise CheckpointError(f"{folder} is not an adapter for this model: {error}") from error
    names = _tensor_names(modules, shapes)
    starts = _starts(names, shapes)
    wanted = {names[name]: (start + shapes[name][0], shapes[name][1]) for name, start in starts.items()}  # as the last one ends
    _check_tensors(folder, wanted, tensors)
    check_files(folder)
    params = Parameters(shapes, np.empty(sum(map(math.prod, shapes.values())), real_dtype(model.compute_dtype)))
    for name, start in starts.items():
        rows = tensors[names[name]][start : start + shapes[name][0]]
        params[name][...] = _reordered(model.config, name, rows, to_neighbours)
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


def _lora_config(
    model: ModelConfig, modules: Mapping[str, str], values: Mapping[str, Any], tensors: TensorFile
) -> LoraConfig:
    """The LoraConfig of an adapter_config.json. Rank-stabilised LoRA divides alpha by the root of the rank."""
    matrices = {name: module for name, module in modules.items() if name.rpartition(".")[2] in TARGETS}
    named = [name for name, module in matrices.items() if _is_target(module, values)]
    if not values.get("target_modules"):                               # the tensors say it
        found = {name.removeprefix(PREFIX).removesuffix(KINDS["a"]) for name in tensors}
        kinds = {name.rpartition(".")[2] for name, module in matrices.items() if module in found}
        named = [name for name in matrices if name.rpartition(".")[2] in kinds]
    if not named:
        raise ValueError(f"target_modules is {as_json(values.get('target_modules'))}, but names no matrix of a block")
    ranks = {name: _by_pattern(values.get("rank_pattern"), modules[name], values["r"]) for name in named}
    alphas = {name: _by_pattern(values.get("alpha_pattern"), modules[name], values["lora_alpha"]) for name in named}
    root = math.sqrt if values.get("use_rslora") else lambda rank: 1
    alphas = {name: alpha * root(ranks[name]) for name, alpha in alphas.items()}
    rank, alpha = values["r"], values["lora_alpha"] * root(values["r"])
    return LoraConfig(
        rank=rank, alpha=alpha, targets=_compact(named, model.n_layers),
        ranks={name: value for name, value in ranks.items() if value != rank},
        alphas={name: value for name, value in alphas.items() if value != alpha},
        modules_to_save=_replaced(model, modules, values),
    )  # fmt: skip


def _is_target(module: str, values: Mapping[str, Any]) -> bool:
    """Whether peft would update this module."""
    excluded, targets = values.get("exclude_modules"), values.get("target_modules")
    if not targets or (excluded and _is_named(module, excluded)):
        return False
    if isinstance(targets, str):
        return targets == "all-linear" or _is_named(module, targets)
    if module in targets:                                              # whatever its layer
        return True
    return _is_named(module, targets) and _is_in_layers(module, values)


def _is_named(module: str, names: str | list[str]) -> bool:
    """Whether a regular expression fits a module's name, or one of several names is its end."""
    if isinstance(names, str):
        return _fits(names, module)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_in_layers(module: str, values: Mapping[str, Any]) -> bool:
    """Whether a module's layer is one of ``layers_to_transform``; all are if that is not given."""
    layers, patterns = values.get("layers_to_transform"), values.get("layers_pattern") or [r"[^.]*"]
    if layers is None or layers == []:
        return True
    wanted = layers if isinstance(layers, list) else [layers]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(_fits(rf"(.*?\.)?({pattern})\.{layer}\..*", module) for pattern in patterns for layer in wanted)


def _fits(pattern: str, module: str) -> bool:
    """Whether a regular expression fits all of a module's name; ValueError if it is none, or takes long."""
    try:
        return regex.fullmatch(pattern, module, timeout=1) is not None
    except (regex.error, TimeoutError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"{shown(pattern)} is no regular expression that can be used: {error or 'it takes too long'}") from None


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that fits the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if _fits(rf"(.*\.)?({pattern})", module):
            return value
    return default


def _compact(names: list[str], n_layers: int) -> tuple[str, ...]:
    """Matrices of blocks: those of all blocks by their short name."""
    by_kind: dict[str, list[str]] = {}
    for name in names:
        by_kind.setdefault(name.rpartition(".")[2], []).append(name)
    return tuple(each for kind, group in by_kind.items() for each in ([kind] if len(group) == n_layers else group))


def _replaced(model: ModelConfig, modules: Mapping[str, str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Our names of ``modules_to_save``: the embedding and the head can be."""
    names, others = values.get("modules_to_save") or [], {name: modules[name] for name in WHOLE if name in modules}
    ours = {spelling: name for name, module in others.items() for spelling in (module, module.rpartition(".")[2])}
    if model.tie_embeddings and names:
        raise ValueError(f"modules_to_save is {as_json(names)}, but the model's embedding and head are one matrix")
    if unknown := [name for name in names if name not in ours]:
        raise ValueError(f"modules_to_save holds {listed(unknown)}, but only {listed(sorted(ours))} can be replaced")
    return tuple(ours[name] for name in names)


def peft_names(config: ModelConfig, shapes: Mapping[str, Any]) -> dict[str, str]:
    """Our name of each parameter of an adapter: its name in a file that we write."""
    return _tensor_names(_modules(config), shapes)


def _tensor_names(modules: Mapping[str, str], shapes: Mapping[str, Any]) -> dict[str, str]:
    parts = ((name, *name.partition("_lora_")) for name in shapes)
    return {name: f"{PREFIX}{modules[matrix]}{KINDS[kind]}" for name, matrix, _, kind in parts}


def _starts(names: Mapping[str, str], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The row of a file's tensor at which each parameter begins: b is stacked like its weight, and a is shared."""
    starts, height = {}, dict.fromkeys(names.values(), 0)
    for name, other in names.items():
        starts[name] = height[other]
        height[other] += shapes[name][0] if name.endswith("_lora_b") else 0
    return starts


def _modules(config: ModelConfig, ours: bool | None = None) -> dict[str, str]:
    """Our name of each matrix of a model: the name of its module, or our own, by default where a module stacks several."""
    names = huggingface_names(config)
    if ours or (ours is None and len(set(names.values())) < len(names)):
        names = {name: name for name in names}
    return {name: other.removesuffix(".weight") for name, other in names.items()}


def _target_modules(config: ModelConfig, lora: LoraConfig) -> list[str]:
    """The modules by the last part of their names, or by their whole names if they are not in every block."""
    modules = {name: module for name, module in _modules(config).items() if lora.updates(name)}
    if any(name not in TARGETS for name in lora.targets):
        return list(modules.values())
    return sorted({module.rpartition(".")[-1] for module in modules.values()})


def _short(alpha: float) -> float:
    return int(alpha) if alpha.is_integer() else alpha


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
