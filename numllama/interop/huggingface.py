"""Hugging Face's layout: config.json, model.safetensors (or shards with an index), generation_config.json.

What a config.json and its tensors mean depends on the family: :mod:`numllama.interop.families`. A model of a known family has
Hugging Face's names and rotates halves; interleaved weights are permuted on the way. Other models (layer norms, GELU, ...) are
written in the same layout with our own names and ``"model_type": "numllama"``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import Array, to_numpy
from numllama.errors import CheckpointError, listed, shown
from numllama.interop.families import (  # noqa: F401  FIELDS, HONOURED, is_llama: for those who import them from here
    HONOURED,
    NAMES,
    SPECIAL_IDS,
    about,
    config_from_huggingface,
    config_to_huggingface,
    family_of,
    huggingface_names,
    is_llama,
)
from numllama.interop.mixtures import split_experts, stack_experts
from numllama.interop.pickles import refuse_others
from numllama.model import ModelConfig, Transformer, parameter_shapes
from numllama.storage.fields import FLAG, MOST, Kind, as_json, check, number, optional, whole
from numllama.storage.files import is_there, read_json, reading
from numllama.storage.folders import published
from numllama.storage.tensor_file import TensorFile, write_tensors

CONFIG, WEIGHTS, INDEX, GENERATION = "config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"
# transformers allows -1 and ids beyond the vocabulary: tokens that never occur.
ID = Kind(optional(whole(-MOST)).fits, "must be a token")
SETTING = optional(number())
GENERATION_FIELDS = {
    "bos_token_id": ID,
    "pad_token_id": ID,
    "eos_token_id": Kind(
        lambda value: all(i is not None and ID.fits(i) for i in value) if isinstance(value, list) else ID.fits(value),
        "must be a token or a list of tokens",
    ),
    "do_sample": optional(FLAG),
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "repetition_penalty"), SETTING),
}


# ------------------------------------------------------------------------------------------------ layouts


def to_halves(rows: Array, n_heads: int) -> Array:
    """Reorder rows of wq or wk from neighbouring pairs to paired halves: each head's even rows, then its odd ones."""
    return _regrouped(rows, n_heads, (-1, 2))


def to_neighbours(rows: Array, n_heads: int) -> Array:
    """The inverse of :func:`to_halves`."""
    return _regrouped(rows, n_heads, (2, -1))


def _regrouped(rows: Array, n_heads: int, pairs: tuple[int, int]) -> Array:
    return rows.reshape(n_heads, *pairs, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_heads(config: ModelConfig, name: str) -> int | None:
    """The number of heads of a parameter whose outputs RoPE rotates; None for other parameters."""
    short = name.rpartition(".")[-1].removesuffix("_bias")
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}
    if config.qk_norm in ("rms", "rms_width"):  # one gain for all heads, or one for each
        heads |= {"q_norm": 1, "k_norm": 1} if config.qk_norm == "rms" else {"q_norm": heads["wq"], "k_norm": heads["wk"]}
    return heads.get(short)


# ------------------------------------------------------------------------------------------------ reading


class Checkpoint(NamedTuple):
    """A configuration, the tensors by our names, and the generation config."""

    config: ModelConfig
    tensors: Mapping[str, np.ndarray]
    generation_config: dict[str, Any]


def read(folder: Path, file: Path | None = None) -> Checkpoint:
    """Read a checkpoint; tensors are memory-mapped.

    Parameters
    ----------
    folder : path
    file : path, optional
        The file with all tensors; default the files in the folder.
    """
    values = read_json(folder / CONFIG)
    with reading(folder / CONFIG):
        try:
            config = config_from_huggingface(values)
        except ValueError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    with reading(folder):
        files = _files_of_tensors(folder, file)
        if config.n_layers > len(files):  # before a list of all missing tensors is made
            raise CheckpointError(f"{folder} has {len(files)} tensors, which cannot be {config.n_layers} layers")
        names = huggingface_names(config, values["model_type"])
        files = stack_experts(files, names.values())
        config, names = _resolve_head(config, names, files)
        _check_tensors(folder, config, names, files)
    return Checkpoint(config, _Tensors(parameter_shapes(config), names, files), generation_config(folder, values))


class _Tensors(Mapping):
    """Tensors by our names, read on access: those of files, or rows of them where several are stacked in one."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], files: Mapping[str, TensorFile]
    ) -> None:
        self._shapes, self._names, self._files = shapes, names, files
        self._rows: dict[str, slice] = {}
        for parts in stacked(names).values():
            start = 0
            for name in parts if len(parts) > 1 else ():
                self._rows[name] = slice(start, start + shapes[name][0])
                start += shapes[name][0]

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self._names[name]
        tensor = self._files[stored][stored]
        return tensor[self._rows[name]] if name in self._rows else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def stacked(names: Mapping[str, str]) -> dict[str, list[str]]:
    """The parameters of each tensor of a file, in their order: one, or several that are stacked."""
    parts: dict[str, list[str]] = {}
    for name, stored in names.items():
        parts.setdefault(stored, []).append(name)
    return parts


def stacked_shape(shapes: Mapping[str, tuple[int, ...]], parts: list[str]) -> tuple[int, ...]:
    """The shape of a tensor in which these are stacked."""
    return (sum(shapes[name][0] for name in parts), *shapes[parts[0]][1:])


def _resolve_head(
    config: ModelConfig, names: dict[str, str], files: Mapping[str, TensorFile]
) -> tuple[ModelConfig, dict[str, str]]:
    """Decide from the files whether embedding and head are really tied, if the config.json says so.

    As in transformers: if only the head is there, it is used for both; if both are there and differ, they are not tied.
    """
    embed = names["embed"]
    head = "head" if embed == "embed" else f"{NAMES['head']}.weight"
    if not config.tie_embeddings or head not in files:
        return config, names
    if embed not in files:
        return config, {**names, "embed": head}
    if _same(files[embed][embed], files[head][head]):
        return config, names
    return replace(config, tie_embeddings=False), {**names, "head": head}


def _check_tensors(folder: Path, config: ModelConfig, names: Mapping[str, str], files: Mapping[str, TensorFile]) -> None:
    """Raise CheckpointError if a tensor is missing, has another shape, or is unknown."""
    shapes = parameter_shapes(config)
    wanted = {stored: stacked_shape(shapes, parts) for stored, parts in stacked(names).items()}
    if missing := [name for name in wanted if name not in files]:
        raise CheckpointError(f"{folder} lacks {listed(missing)}")
    for name, shape in wanted.items():
        if (found := files[name].shape(name)) != shape:
            raise CheckpointError(f"{folder}: {name} has shape {shown(found)}, but {shape} is needed")
    spare = {"head", f"{NAMES['head']}.weight"} if config.tie_embeddings else set()  # some programs write the tied head too
    extra = [name for name in files if name not in wanted and name not in spare]
    if extra := [name for name in extra if not name.endswith(".rotary_emb.inv_freq")]:  # a RoPE table of older checkpoints
        raise CheckpointError(f"{folder} has tensors that this model does not have: {listed(extra)}")


def _same(a: np.ndarray, b: np.ndarray, rows: int = 1024) -> bool:
    """Whether two matrices are equal, compared in blocks of rows, because they may be large."""
    return a.shape == b.shape and all(np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows))


def _files_of_tensors(folder: Path, file: Path | None) -> dict[str, TensorFile]:
    """The file of each tensor: one file, or the shards that an index names."""
    if file is None and (folder / WEIGHTS).exists():
        file = folder / WEIGHTS
    if file is not None:
        tensors = TensorFile(file)
        return dict.fromkeys(tensors, tensors)
    if not (folder / INDEX).exists():
        refuse_others(folder)
        raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise CheckpointError(f"{folder / INDEX} is damaged: it does not say which tensor is in which file")
    shards = sorted(set(places.values()))
    if outside := [shard for shard in shards if Path(shard).name != shard]:
        raise CheckpointError(f"{folder / INDEX} names {shown(outside[0])}, which is not a file of this folder")
    if missing := [shard for shard in shards if not is_there(folder / shard)]:
        raise CheckpointError(f"{folder} lacks {listed(missing)}, which its {INDEX} names")
    files = {shard: TensorFile(folder / shard) for shard in shards}
    for name, shard in places.items():
        if name not in files[shard]:
            raise CheckpointError(f"{folder / INDEX} says that {shown(name)} is in {shard}, but it is not")
    for shard, tensors in files.items():
        for name in tensors:
            if places.get(name) != shard:
                raise CheckpointError(f"{folder / shard} holds {shown(name)}, which {INDEX} does not say")
    return {name: files[shard] for name, shard in places.items()}


def generation_config(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of generation_config.json; without that file, the special ids among `values`, those of config.json."""
    path = folder / (GENERATION if (folder / GENERATION).exists() else CONFIG)
    values = read_json(path) if path.name == GENERATION else {name: values[name] for name in SPECIAL_IDS if name in values}
    try:
        check(values, GENERATION_FIELDS, as_json)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return values


# ------------------------------------------------------------------------------------------------ writing


def save_folder(model: Transformer, folder: Path) -> None:
    """Write config.json, model.safetensors and generation_config.json: all of them, or none."""
    config, params = model.config, model.params
    names = stacked(huggingface_names(config))
    whole = {stored: stacked_shape(params.shapes, parts) for stored, parts in names.items()}
    shapes = {part: shape for stored, of_all in whole.items() for part, shape in split_experts(stored, of_all)}
    values = config_to_huggingface(config)
    values = {**about(model.generation_config, params.flat.dtype.name), **values}
    with published(folder, CONFIG) as part:
        with open(part / WEIGHTS, "wb") as file:
            write_tensors(file, params.flat.dtype, shapes, _arrays(model, names))
        (part / CONFIG).write_bytes(json_bytes(values))
        (part / GENERATION).write_bytes(json_bytes(model.generation_config))


def _arrays(model: Transformer, tensors: Mapping[str, list[str]]) -> Iterator[np.ndarray]:
    """The weights, one tensor at a time, in the layout of the file."""
    permute = model.config.rope_layout == "interleaved" and family_of(model.config) is not None

    def array(name: str) -> np.ndarray:
        view, heads = model.params[name], rope_heads(model.config, name) if permute else None
        return to_numpy(view if heads is None else to_halves(view, heads))

    for stored, parts in tensors.items():
        tensor = array(parts[0]) if len(parts) == 1 else np.concatenate([array(name) for name in parts])
        yield from tensor if "*" in stored else (tensor,)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
