"""GGUF files, llama.cpp's format: the model in one file, often with its weights quantised.

The container is read by :mod:`numllama.storage.gguf_file`, the tokenizer in it by :mod:`numllama.tokenizer.gguf`. Weights in
float32, float16 and bfloat16 need nothing else; quantised ones are expanded by the `gguf` package, a block of rows at a time.

llama.cpp rotates neighbours in a Llama, so the rows of wq and wk are reordered, as rows of bytes, to Hugging Face's halves. What
a file needs and numllama does not compute is refused by name.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import pi, prod
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16
from numllama.errors import CheckpointError, listed, shown
from numllama.install import install_command
from numllama.interop.families import stored_name
from numllama.interop.huggingface import Checkpoint, rope_heads, to_halves
from numllama.model import ModelConfig, parameter_shapes
from numllama.storage.fields import FLAG, POSITIVE, TEXT, as_json, check, only, require, whole
from numllama.storage.files import reading
from numllama.storage.gguf_file import GGUFFile, GGUFTensor, read_gguf
from numllama.tokenizer.gguf import SENTENCEPIECE, own_values

PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: BFLOAT16}  # types of tensors that are not quantised
PLAIN_NAMES = {0: "F32", 1: "F16", 30: "BF16"}
BLOCK = 2**20  # numbers that are expanded at a time

NAMES = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
BLOCK_NAMES = {
    "attn_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "ffn_norm": "ffn_norm", "w_gate": "ffn_gate", "w_up": "ffn_up", "w_down": "ffn_down",
}  # fmt: skip
ROPE_FACTORS = "rope_freqs.weight"  # by which the frequencies are divided, for Llama 3.1's scaling
# Our field: the name behind that of the architecture, and the values allowed.
FIELDS = {
    "dim": ("embedding_length", whole(1)),
    "n_layers": ("block_count", whole(1)),
    "n_heads": ("attention.head_count", whole(1)),
    "ffn_dim": ("feed_forward_length", whole(1)),
    "max_seq_len": ("context_length", whole(1)),
    "norm_eps": ("attention.layer_norm_rms_epsilon", POSITIVE),
    "n_kv_heads": ("attention.head_count_kv", whole(1)),
    "head_dim": ("attention.key_length", whole(1)),
    "rope_theta": ("rope.freq_base", POSITIVE),
}
OPTIONAL = ("n_kv_heads", "head_dim", "rope_theta")
# The other values: those that are computed, and those that say nothing new.
OTHERS = {
    "attention.value_length": whole(1), "rope.dimension_count": whole(1), "vocab_size": whole(1),
    "rope.scaling.type": TEXT, "rope.scaling.factor": POSITIVE, "rope.scale_linear": POSITIVE,
    "rope.scaling.original_context_length": whole(1), "rope.scaling.finetuned": FLAG,
    "expert_count": only(0), "expert_used_count": only(0), "attention.causal": only(True),
    "use_parallel_residual": only(False), "tensor_data_layout": only("Meta AI original pth"),
}  # fmt: skip
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


# ------------------------------------------------------------------------------------------------ weights


@cache
def quantisers() -> ModuleType:
    """The `gguf` package; CheckpointError if it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(f"quantised weights need the package gguf: {install_command('gguf')}") from error
    return gguf


def type_name(kind: int) -> str:
    """The name of a type of tensors: Q4_1, ...; CheckpointError if it cannot be read."""
    if kind in PLAIN_NAMES:
        return PLAIN_NAMES[kind]
    gguf = quantisers()
    try:
        name = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise CheckpointError(f"weights are of type {kind}, which the package gguf does not know") from error
    if name not in gguf.quants._type_traits:
        raise CheckpointError(f"weights are of type {name.name}, which the package gguf cannot expand")
    return name.name


def row_bytes(kind: int, columns: int) -> int:
    """The bytes of a row of numbers of a type."""
    if kind in PLAIN:
        return columns * PLAIN[kind].itemsize
    gguf = quantisers()
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if columns % block:
        raise CheckpointError(f"a row of {columns} numbers is not a multiple of the {block} of a block of {type_name(kind)}")
    return columns // block * size


class StoredTensor:
    """A tensor in a file, of which rows are read and expanded on access: ``tensor[rows]``.

    Parameters
    ----------
    place : GGUFTensor
    heads : int, optional
        Reorder the rows of this many heads from neighbouring pairs to halves.
    """

    def __init__(self, name: str, place: GGUFTensor, heads: int | None = None) -> None:
        self.shape, self.ndim, self.dtype = place.shape, len(place.shape), PLAIN.get(place.type, PLAIN[0])
        self._place, self._heads = place, heads
        self.type_name = type_name(place.type)
        self._row = row_bytes(place.type, place.shape[-1]) if place.shape else 0
        if place.begin + self._row * prod(place.shape[:-1]) > place.end:
            raise CheckpointError(f"{place.path} is cut short: it does not hold all of the tensor {shown(name)}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Some of the rows, in float32 or as stored; of a vector some of its numbers."""
        if self.ndim == 1:
            vector = self._expanded(self._read(0, 1))[0]
            return (vector if self._heads is None else to_halves(vector, self._heads))[rows]
        begin, end, _ = rows.indices(len(self))
        if self._heads is None:
            return self._expanded(self._read(begin, end))
        D = len(self) // self._heads                                   # read whole heads
        first, last = begin // D, -(-end // D)
        data = to_halves(self._read(first * D, last * D), last - first)
        return self._expanded(data[begin - first * D : end - first * D])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def astype(self, dtype: Any) -> np.ndarray:
        """All of it in another dtype."""
        return self[:].astype(dtype)

    def _read(self, begin: int, end: int) -> np.ndarray:
        """Rows of bytes. They are read, not mapped: mapped pages would count as memory beside the model."""
        at = self._place.begin + begin * self._row
        data = np.fromfile(self._place.path, np.uint8, (end - begin) * self._row, offset=at)
        return data.reshape(end - begin, self._row)

    def _expanded(self, data: np.ndarray) -> np.ndarray:
        kind = self._place.type
        if kind in PLAIN:
            return data.view(PLAIN[kind])
        gguf = quantisers()
        with np.errstate(all="ignore"):  # a damaged scale may be infinite
            return gguf.dequantize(data, gguf.GGMLQuantizationType(kind))


class _Tensors(Mapping):
    """The tensors of a file by our names."""

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._stored = {
            name: StoredTensor(stored, file.tensors[stored], rope_heads(config, name))
            for name, stored in gguf_names(config).items()
        }

    def __getitem__(self, name: str) -> Any:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Our name of each parameter: the one in a file."""
    return {name: stored_name(name, NAMES, "blk", BLOCK_NAMES) for name in parameter_shapes(config)}


# ------------------------------------------------------------------------------------------------ configuration


class Architecture(NamedTuple):
    """What a model is whose general.architecture has a certain name: the fields of its configuration that are the same in all."""

    fields: dict[str, Any]


ARCHITECTURES = {"llama": Architecture({})}


def read(path: Path) -> Checkpoint:
    """Read a model; its tensors are read from the file on access.

    Raises
    ------
    CheckpointError
        If the file is damaged, or needs something that numllama does not compute.
    """
    file = read_gguf(path)
    with reading(path):
        try:
            config = config_of(file)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return Checkpoint(config, _Tensors(file, config), generation_config(file.values))


def config_of(file: GGUFFile) -> ModelConfig:
    """The ModelConfig of a file; a ValueError names what numllama cannot honour."""
    name = file.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ValueError(f"general.architecture is {shown(name)}, but must be one of {', '.join(map(repr, ARCHITECTURES))}")
    start = f"{name}."
    values = {key.removeprefix(start): _one(value) for key, value in file.values.items() if key.startswith(start)}
    known = dict(FIELDS.values()) | OTHERS
    if unknown := values.keys() - known.keys():
        raise ValueError(f"the model needs {start}{min(unknown)}, which numllama does not compute")
    check(values, known, as_json, start)
    require(values, [key for field, (key, _) in FIELDS.items() if field not in OPTIONAL], "the model's description")
    fields = {field: values[key] for field, (key, _) in FIELDS.items() if key in values}
    embed = file.tensors.get("token_embd.weight")
    if embed is None or len(embed.shape) != 2:
        raise ValueError("it has no matrix token_embd.weight")
    bias = "blk.0.attn_q.bias" in file.tensors
    config = ModelConfig(
        **ARCHITECTURES[name].fields | fields, vocab_size=embed.shape[0], bias=bias,
        tie_embeddings="output.weight" not in file.tensors, rope_scaling=_linear(values),
    )  # fmt: skip
    for key in ("attention.value_length", "rope.dimension_count"):
        if values.get(key, config.head_dim) != config.head_dim:
            raise ValueError(f"{start}{key} is {values[key]}, but only the head size, {config.head_dim}, is supported")
    if ROPE_FACTORS in file.tensors:
        factors = StoredTensor(ROPE_FACTORS, file.tensors[ROPE_FACTORS])[:].astype("float64")
        config = replace(config, rope_scaling=scaling_of(factors, config))
    _check_tensors(file, config)
    return config


def _one(value: Any) -> Any:
    """A number that is given for each layer but is the same for all of them."""
    same = isinstance(value, np.ndarray) and value.size and (value == value[0]).all()
    return value[0].item() if same else value


def _linear(values: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = values.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise ValueError(f"RoPE is scaled by {shown(kind)}, but only none and linear are supported")
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))
    return None if kind == "none" or factor == 1 else {"rope_type": "linear", "factor": factor}


def scaling_of(factors: np.ndarray, config: ModelConfig) -> dict[str, Any] | None:
    """Llama 3.1's scaling, from the factors by which it divides RoPE's frequencies; ValueError if it is another."""
    if (factors == 1).all():
        return config.rope_scaling
    for original in (2**n for n in range(25)):  # 13 in all published models
        scaling = {
            "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }  # fmt: skip
        if config.rope_scaling is None and np.allclose(rope_factors(config, scaling), factors, rtol=1e-4):
            return scaling
    raise ValueError(f"{ROPE_FACTORS} scales RoPE in another way than Llama 3.1, which is not supported")


def rope_factors(config: ModelConfig, scaling: Mapping[str, Any]) -> np.ndarray:
    """The factors by which Llama 3.1's scaling divides the frequencies, shape (D/2,)."""
    frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((scaling["original_max_position_embeddings"] * frequencies / (2 * pi) - low) / (high - low)).clip(0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])


def _check_tensors(file: GGUFFile, config: ModelConfig) -> None:
    """Raise ValueError if a tensor is missing, has another shape, or is unknown."""
    if config.n_layers > len(file.tensors):  # before a list of all missing tensors is made
        raise ValueError(f"it has {len(file.tensors)} tensors, which cannot be {config.n_layers} layers")
    wanted = {stored: parameter_shapes(config)[name] for name, stored in gguf_names(config).items()}
    if missing := [name for name in wanted if name not in file.tensors]:
        raise ValueError(f"it lacks {listed(missing)}")
    for name, shape in wanted.items():
        if (found := file.tensors[name].shape) != shape:
            raise ValueError(f"{name} has shape {shown(found)}, but {shape} is needed")
    if extra := [name for name in file.tensors if name not in wanted and name != ROPE_FACTORS]:
        raise ValueError(f"it has tensors that this model does not have: {listed(extra)}")


def generation_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a generation_config.json would say: the tokens that begin a text, and those that end one."""
    found = own_values(values)
    if found.get("model") == "llama":
        found = SENTENCEPIECE | found
    ends = list(dict.fromkeys(found[name] for name in ENDS if name in found))
    named = {"bos_token_id": found.get("bos_token_id"), "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    return {name: value for name, value in named.items() if value is not None}


def quantisations(path: Path) -> dict[str, int]:
    """How many tensors of a file are stored in each type."""
    return dict(Counter(type_name(tensor.type) for tensor in read_gguf(path).tensors.values()).most_common())
