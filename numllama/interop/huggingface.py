"""Hugging Face's layout: config.json, model.safetensors (or shards with an index), generation_config.json.

A configuration that is exactly a Llama has Hugging Face's names and rotates halves; interleaved weights are permuted on the way.
Anything else (layer norms, GELU, query/key norms, ...) is written in the same layout with our own names and
``"model_type": "numllama"``. What a config.json asks for and this code does not do is refused by name: to ignore it would
give wrong numbers.
"""

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from numllama.backend import Array, to_numpy
from numllama.errors import CheckpointError
from numllama.interop.pickles import refuse_pickle
from numllama.interop.tensor_file import TensorFile, write_files, write_tensors
from numllama.model import ModelConfig, Transformer, parameter_shapes
from numllama.storage.files import read_json

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
# Our fields, Hugging Face's, and what Hugging Face takes where a config.json says nothing (REQUIRED: it has to). The last two
# matter in training alone, and are ours: transformers passes over them.
REQUIRED = object()
FIELDS = {
    "vocab_size": ("vocab_size", REQUIRED),
    "dim": ("hidden_size", REQUIRED),
    "n_layers": ("num_hidden_layers", REQUIRED),
    "n_heads": ("num_attention_heads", REQUIRED),
    "ffn_dim": ("intermediate_size", REQUIRED),
    "n_kv_heads": ("num_key_value_heads", None),
    "head_dim": ("head_dim", None),
    "max_seq_len": ("max_position_embeddings", 2048),
    "norm_eps": ("rms_norm_eps", 1e-6),
    "tie_embeddings": ("tie_word_embeddings", False),
    "init_std": ("initializer_range", 0.02),
    "dropout": ("dropout", 0.0),
    "init": ("numllama_init", "normal"),
}
# What a Llama's config.json may hold that changes the numbers, and the only values that are the same as leaving it out.
HONOURED = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0, None),
    "sliding_window": (None,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}


# ------------------------------------------------------------------------------------------------ configuration


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a config.json; a ValueError names what cannot be honoured."""
    kind = values.get("model_type")
    if kind == "numllama":
        return ModelConfig.from_dict({key: value for key, value in values.items() if key not in _about({})})
    if kind != "llama":
        raise ValueError(f"model_type is {kind!r}, but must be 'llama' or 'numllama'")
    for key, allowed in HONOURED.items():
        if key in values and values[key] not in allowed:
            raise ValueError(f"{key} is {json.dumps(values[key])}, but only {json.dumps(allowed[0])} is supported")
    biases = values.get("attention_bias", False), values.get("mlp_bias", False)
    if biases[0] != biases[1]:
        raise ValueError(
            f"attention_bias is {json.dumps(biases[0])} and mlp_bias is {json.dumps(biases[1])}, "
            "but biases are supported in all linear maps of a block or in none"
        )
    missing = [name for name, default in FIELDS.values() if default is REQUIRED and name not in values]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    fields = {field: values.get(name, default) for field, (name, default) in FIELDS.items()}
    return ModelConfig(**fields, bias=biases[0], **_rope(values))


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE's base and scaling: in ``rope_parameters``, or in ``rope_theta`` and ``rope_scaling`` as before transformers 5."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ValueError(f"rope_scaling is {rope!r}, but must be a mapping")
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": values.get("rope_theta", 10000.0), **rope}
    rope.pop("type", None)
    unknown = sorted(set(rope) - {"rope_type", "rope_theta"})
    if rope["rope_type"] == "default" and unknown:
        raise ValueError(f"RoPE of type 'default' comes with {', '.join(unknown)}, which is not supported")
    return {"rope_scaling": rope}  # ModelConfig takes the base out of it


def is_llama(config: ModelConfig) -> bool:
    """Whether `LlamaForCausalLM` computes the same. It divides `dim` by the heads even where heads have a width of their own."""
    c = config
    switches = c.norm, c.positions, c.ffn, c.qk_norm
    return switches == ("rmsnorm", "rope", "swiglu", None) and c.dim % c.n_heads == 0


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """What a config.json says about the model."""
    if not is_llama(config):
        return {"model_type": "numllama", **config.to_dict()}
    values = {name: getattr(config, field) for field, (name, _) in FIELDS.items()}
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **values,
        "hidden_act": "silu",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope_scaling,
    }


def _about(generation_config: Mapping[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """What a config.json says beside the model's configuration. Without ids, transformers would take 1 and 2."""
    ids = {name: generation_config.get(name) for name in SPECIAL_IDS}
    return {"model_type": "numllama", **ids, "torch_dtype": dtype}


# ------------------------------------------------------------------------------------------------ names and layouts


def huggingface_names(config: ModelConfig) -> dict[str, str]:
    """Our names and Hugging Face's, of all parameters of a Llama."""
    return {name: _huggingface_name(name) for name in parameter_shapes(config)}


def _huggingface_name(name: str) -> str:
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if not name.startswith("blocks."):
        return f"{NAMES[name]}.{kind}"
    _, i, short = name.split(".")
    return f"model.layers.{i}.{BLOCK_NAMES[short]}.{kind}"


def to_halves(rows: Array, n_heads: int) -> Array:
    """Rows of wq or wk, neighbours paired, for a RoPE that pairs halves: each head's even rows, then its odd ones."""
    return _regrouped(rows, n_heads, (-1, 2))


def to_neighbours(rows: Array, n_heads: int) -> Array:
    """The inverse of :func:`to_halves`."""
    return _regrouped(rows, n_heads, (2, -1))


def _regrouped(rows: Array, n_heads: int, pairs: tuple[int, int]) -> Array:
    return rows.reshape(n_heads, *pairs, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_heads(config: ModelConfig, name: str) -> int | None:
    """How many heads RoPE turns the outputs of this parameter in; None if it does not turn them."""
    short = name.rpartition(".")[-1].removesuffix("_bias")
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(short)


# ------------------------------------------------------------------------------------------------ reading


def read(folder: Path, file: Path | None = None) -> tuple[ModelConfig, Mapping[str, np.ndarray], dict[str, Any]]:
    """The configuration, the tensors by our names, and the generation config of a checkpoint.

    Parameters
    ----------
    folder : path
    file : path, optional
        The file with all tensors; default, what is in the folder.
    """
    values = read_json(folder / CONFIG)
    try:
        config = config_from_huggingface(values)
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    tensors = ChainMap(*map(TensorFile, [file] if file else _weight_files(folder)))
    if config.n_layers > len(tensors):  # before a list of all that is missing is made
        raise CheckpointError(f"{folder} has {len(tensors)} tensors, which cannot be {config.n_layers} layers")
    native = values["model_type"] == "numllama"
    names = {name: name for name in parameter_shapes(config)} if native else huggingface_names(config)
    _check_tensors(folder, config, names, tensors)
    return config, _Renamed(tensors, names), generation_config(folder, values)


class _Renamed(Mapping):
    """Tensors by our names; they are looked at when asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, names

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names."""
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        for path in sorted(folder.iterdir()):
            refuse_pickle(path)
        raise CheckpointError(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there")
    try:
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        outside = [shard for shard in shards if Path(shard).name != shard]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / INDEX} is damaged: it does not say which tensor is in which file") from error
    if outside:
        raise CheckpointError(f"{folder / INDEX} names {outside[0]!r}, which is not a file of this folder")
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {listed(missing)}, which its {INDEX} names")
    return [folder / shard for shard in shards]


def _check_tensors(folder: Path, config: ModelConfig, names: Mapping[str, str], tensors: ChainMap) -> None:
    """Every tensor is there, has its shape, and has a place in the model."""
    found = {name: file.shape(name) for file in tensors.maps for name in file}
    wanted = {names[name]: shape for name, shape in parameter_shapes(config).items()}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise CheckpointError(f"{folder} lacks {listed(missing)}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise CheckpointError(f"{folder}: {name} has shape {found[name]}, but {shape} is needed")
    extra = [name for name in found if name not in wanted and not name.endswith(".rotary_emb.inv_freq")]  # a RoPE table
    if extra == ["lm_head.weight"]:  # tied, and written nevertheless
        if np.array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"]):
            return
        raise CheckpointError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not model.embed_tokens.weight")
    if extra:
        raise CheckpointError(f"{folder} has tensors that this model has no place for: {listed(extra)}")


def generation_config(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json; where there is none, the special ids of config.json, whose values these are."""
    path = folder / (GENERATION if (folder / GENERATION).exists() else CONFIG)
    values = read_json(path) if path.name == GENERATION else {name: values[name] for name in SPECIAL_IDS if name in values}
    ids = values.get("eos_token_id")
    if not all(type(i) is int and i >= 0 for i in (ids if isinstance(ids, list) else [ids] if ids is not None else [])):
        raise CheckpointError(f"{path}: eos_token_id is {ids!r}, but must be a token or a list of tokens")
    return values


def listed(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ------------------------------------------------------------------------------------------------ writing


def save_folder(model: Transformer, folder: Path) -> None:
    """Write config.json, model.safetensors and generation_config.json: all of them, or none."""
    config, params = model.config, model.params
    names = huggingface_names(config) if is_llama(config) else {name: name for name in params}
    shapes = {names[name]: shape for name, shape in params.shapes.items()}
    values = config_to_huggingface(config)
    values = {**_about(model.generation_config, params.flat.dtype.name), **values}
    write_files(
        folder,
        {
            WEIGHTS: lambda file: write_tensors(file, params.flat.dtype, shapes, _arrays(model)),
            CONFIG: lambda file: file.write(json_bytes(values)),
            GENERATION: lambda file: file.write(json_bytes(model.generation_config)),
        },
    )


def _arrays(model: Transformer) -> Iterator[np.ndarray]:
    """The weights one after another, as they are written."""
    permute = is_llama(model.config) and model.config.rope_layout == "interleaved"
    for name, view in model.params.items():
        heads = rope_heads(model.config, name) if permute else None
        yield to_numpy(view if heads is None else to_halves(view, heads))


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
