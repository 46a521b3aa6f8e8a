"""Hugging Face's layout: config.json, model.safetensors (or shards with an index), generation_config.json.

A configuration that is exactly a Llama has Hugging Face's names and rotates halves; interleaved weights are permuted on the way.
Other models (layer norms, GELU, query/key norms, ...) are written in the same layout with our own names and
``"model_type": "numllama"``. A config.json that needs something numllama does not compute is refused by name: ignoring it would
give wrong numbers.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import Array, to_numpy
from numllama.errors import CheckpointError, listed, shown
from numllama.interop.pickles import refuse_others
from numllama.model import ModelConfig, Transformer, parameter_shapes
from numllama.storage.fields import (
    FLAG,
    MOST,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    as_json,
    check,
    is_number,
    number,
    only,
    optional,
    require,
    whole,
)
from numllama.storage.files import is_there, read_json, reading
from numllama.storage.folders import published
from numllama.storage.tensor_file import TensorFile, write_tensors

CONFIG, WEIGHTS, INDEX, GENERATION = "config.json", "model.safetensors", "model.safetensors.index.json", "generation_config.json"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w_gate": "mlp.gate_proj",
    "w_up": "mlp.up_proj",
    "w_down": "mlp.down_proj",
}
# Our field: Hugging Face's name, the values allowed, and Hugging Face's default. The last two rows are used only in training and
# only by us: transformers ignores them.
REQUIRED = object()
FIELDS = {
    "vocab_size": ("vocab_size", whole(1), REQUIRED),
    "dim": ("hidden_size", whole(1), REQUIRED),
    "n_layers": ("num_hidden_layers", whole(1), REQUIRED),
    "n_heads": ("num_attention_heads", whole(1), REQUIRED),
    "ffn_dim": ("intermediate_size", whole(1), REQUIRED),
    "n_kv_heads": ("num_key_value_heads", optional(whole(1)), None),
    "head_dim": ("head_dim", optional(whole(1)), None),
    "max_seq_len": ("max_position_embeddings", whole(1), 2048),
    "norm_eps": ("rms_norm_eps", POSITIVE, 1e-6),
    "tie_embeddings": ("tie_word_embeddings", FLAG, False),
    "init_std": ("initializer_range", POSITIVE, 0.02),
    "dropout": ("dropout", number(), 0.0),
    "init": ("numllama_init", TEXT, "normal"),
}
# Other fields of a Llama's config.json. Attention dropout and windows are allowed and change nothing: the first is for training,
# and transformers' Llama has no windows. Other values that would change the numbers are refused.
HONOURED = {
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "attention_dropout": optional(number(lambda value: 0 <= value <= 1, "must lie in [0, 1]")),
    "sliding_window": optional(whole(1)),
    "rope_theta": POSITIVE,
    "rope_scaling": optional(OBJECT),
    "rope_parameters": optional(OBJECT),
    "original_max_position_embeddings": optional(whole(1)),
    "numllama_max_seq_len": optional(whole(1)),
    "hidden_act": only("silu", "swish"),
    "quantization_config": only(None),
    "partial_rotary_factor": only(1, None),
    "attn_logit_softcapping": only(None),
    "final_logit_softcapping": only(None),
}
BIASES = {"attention_bias": ".self_attn.", "mlp_bias": ".mlp."}  # flag: part of its parameters' names
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


# ------------------------------------------------------------------------------------------------ configuration


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json; a ValueError names fields that numllama cannot honour."""
    kind = values.get("model_type")
    if kind == "numllama":
        return ModelConfig.from_dict({key: value for key, value in values.items() if key not in _about({})})
    if kind != "llama":
        raise ValueError(f"model_type is {shown(kind)}, but must be 'llama' or 'numllama'")
    check(values, {name: kind for name, kind, _ in FIELDS.values()} | HONOURED, as_json)
    require(values, [name for name, _, default in FIELDS.values() if default is REQUIRED], "the configuration")
    fields = {field: values.get(name, default) for field, (name, _, default) in FIELDS.items()}
    bias = values.get("attention_bias", False) or values.get("mlp_bias", False)
    return ModelConfig(**{**fields, "bias": bias, **_rope(values, fields["max_seq_len"])})


def _rope(values: Mapping[str, Any], max_seq_len: int) -> dict[str, Any]:
    """RoPE's base and scaling: in ``rope_parameters``, or in ``rope_theta`` and ``rope_scaling`` as before transformers 5.

    For ``dynamic`` scaling ``max_position_embeddings`` is the original length, and the model supports `factor` times as many.
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": values.get("rope_theta", 10000.0), **rope}
    rope.pop("type", None)
    check(rope, {"partial_rotary_factor": HONOURED["partial_rotary_factor"]}, as_json)
    rope.pop("partial_rotary_factor", None)
    kind, longer = rope["rope_type"], {}
    if kind in ("llama3", "yarn", "longrope"):
        original = values.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or max_seq_len
        rope["original_max_position_embeddings"] = original
        if kind != "llama3" and rope.get("factor") is None and is_number(original) and original > 0:
            rope["factor"] = max_seq_len / original
    if kind == "dynamic":
        rope["original_max_position_embeddings"] = max_seq_len
        if is_number(factor := rope.get("factor")):
            longer = {"max_seq_len": values.get("numllama_max_seq_len") or max(max_seq_len, int(factor * max_seq_len))}
    return {"rope_scaling": rope, **longer}  # ModelConfig moves the base to rope_theta


def is_llama(config: ModelConfig) -> bool:
    """Whether `LlamaForCausalLM` computes the same. It divides `dim` by the heads even if `head_dim` is given."""
    c = config
    switches = c.norm, c.positions, c.ffn, c.qk_norm
    return switches == ("rmsnorm", "rope", "swiglu", None) and c.dim % c.n_heads == 0


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that describe the model."""
    if not is_llama(config):
        return {"model_type": "numllama", **config.to_dict()}
    values = {name: getattr(config, field) for field, (name, _, _) in FIELDS.items()}
    scaling = config.rope_scaling
    if scaling and scaling["rope_type"] == "dynamic":
        values["numllama_max_seq_len"] = config.max_seq_len
        values["max_position_embeddings"] = int(scaling["original_max_position_embeddings"])
        scaling = {key: value for key, value in scaling.items() if key != "original_max_position_embeddings"}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **values,
        "hidden_act": "silu",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
    }


def _about(generation_config: Mapping[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The other fields of a config.json. Without ids, transformers would use 1 and 2."""
    ids = {name: generation_config.get(name) for name in SPECIAL_IDS}
    return {"model_type": "numllama", **ids, "torch_dtype": dtype}


# ------------------------------------------------------------------------------------------------ names and layouts


def huggingface_names(config: ModelConfig) -> dict[str, str]:
    """Our name of each parameter of a Llama: Hugging Face's name."""
    return {name: _huggingface_name(name) for name in parameter_shapes(config)}


def _huggingface_name(name: str) -> str:
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if not name.startswith("blocks."):
        return f"{NAMES[name]}.{kind}"
    _, i, short = name.split(".")
    return f"model.layers.{i}.{BLOCK_NAMES[short]}.{kind}"


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
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(short)


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
        native = values["model_type"] == "numllama"
        names = {name: name for name in parameter_shapes(config)} if native else huggingface_names(config)
        if not native and config.bias:  # if only attention or only the feed-forward has biases, the others are zero
            zeros = [part for flag, part in BIASES.items() if not values.get(flag, False)]
            names = {ours: name for ours, name in names.items() if not any(part in name for part in zeros) or ".bias" not in name}
        config, names = _resolve_head(config, names, files)
        _check_tensors(folder, config, names, files)
    return Checkpoint(config, _Tensors(parameter_shapes(config), names, files), generation_config(folder, values))


class _Tensors(Mapping):
    """Tensors by our names, read on access; tensors without a file are zeros."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], files: Mapping[str, TensorFile]
    ) -> None:
        self._shapes, self._names, self._files = shapes, names, files

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            return np.zeros(self._shapes[name], "float32")
        stored = self._names[name]
        return self._files[stored][stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


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
    wanted = {stored: shapes[name] for name, stored in names.items()}
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
    names = huggingface_names(config) if is_llama(config) else {name: name for name in params}
    shapes = {names[name]: shape for name, shape in params.shapes.items()}
    values = config_to_huggingface(config)
    values = {**_about(model.generation_config, params.flat.dtype.name), **values}
    with published(folder, CONFIG) as part:
        with open(part / WEIGHTS, "wb") as file:
            write_tensors(file, params.flat.dtype, shapes, _arrays(model))
        (part / CONFIG).write_bytes(json_bytes(values))
        (part / GENERATION).write_bytes(json_bytes(model.generation_config))


def _arrays(model: Transformer) -> Iterator[np.ndarray]:
    """The weights, one at a time, in the layout of the file."""
    permute = is_llama(model.config) and model.config.rope_layout == "interleaved"
    for name, view in model.params.items():
        heads = rope_heads(model.config, name) if permute else None
        yield to_numpy(view if heads is None else to_halves(view, heads))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
