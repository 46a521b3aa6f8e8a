"""Write GGUF files, which llama.cpp opens: a Llama in float32, float16, bfloat16 or Q8_0, with its tokenizer."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, to_numpy
from numllama.errors import CheckpointError, shown
from numllama.interop.gguf import FIELDS, ROPE_FACTORS, gguf_names, quantisers, rope_factors, row_bytes, scaling_of
from numllama.interop.huggingface import is_llama, rope_heads, to_neighbours
from numllama.model import ModelConfig, Transformer
from numllama.storage.files import write_file
from numllama.storage.gguf_file import Stored, write_gguf
from numllama.tokenizer.conversation import chat_templates
from numllama.tokenizer.gguf import values_of

ROWS = 4096  # of a matrix that are converted at a time


class Kind(NamedTuple):
    """How matrices are stored: the number of the type of tensors, and that of the kind of file (general.file_type)."""

    type: int
    file: int
    dtype: np.dtype


KINDS = {
    "float32": Kind(0, 0, np.dtype("<f4")),
    "float16": Kind(1, 1, np.dtype("<f2")),
    "bfloat16": Kind(30, 32, BFLOAT16),
    "q8_0": Kind(8, 7, np.dtype("<f4")),
}


def save(model: Transformer, path: Path, tokenizer: Any = None, dtype: str | None = None) -> None:
    """Write a model; vectors are always float32, as llama.cpp needs them.

    Parameters
    ----------
    model : Transformer
    path : path
    tokenizer : optional
    dtype : str, optional
        One of KINDS; default that of the weights.

    Raises
    ------
    ValueError
        If the format cannot hold the model or the tokenizer, or llama.cpp would compute something else.
    """
    name = (dtype or str(model.dtype)).lower()
    if name not in KINDS:
        raise ValueError(f"dtype is {shown(name)}, but weights in a GGUF file can be {', '.join(KINDS)}")
    kind = KINDS[name]
    values = _values(model, path, kind)
    values |= {"tokenizer.ggml.model": "none"} if tokenizer is None else _tokenizer(tokenizer, model.config.vocab_size)
    names, tensors = gguf_names(model.config), {}
    for ours, shape in model.params.shapes.items():
        stored = kind.type if len(shape) == 2 else 0
        tensors[names[ours]] = Stored(shape, stored, prod(shape[:-1]) * row_bytes(stored, shape[-1]))
    factors = _factors(model.config)
    if factors is not None:
        tensors[ROPE_FACTORS] = Stored(factors.shape, 0, factors.nbytes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the folder {path.parent} cannot be written: {error.strerror}") from error
    write_file(path, lambda file: write_gguf(file, values, tensors, _arrays(model, kind, factors)))


def _values(model: Transformer, path: Path, kind: Kind) -> dict[str, Any]:
    """What describes the model."""
    c = model.config
    if not is_llama(c):
        raise ValueError("only a Llama can be written as a GGUF file: RMSNorm, RoPE, SwiGLU, and no query/key norm")
    values: dict[str, Any] = {
        "general.architecture": "llama", "general.type": "model", "general.name": path.stem,
        "general.file_type": np.uint32(kind.file), "general.quantization_version": np.uint32(2),
        "llama.vocab_size": np.uint32(c.vocab_size), "llama.rope.dimension_count": np.uint32(c.head_dim),
        "llama.attention.value_length": np.uint32(c.head_dim),
    }  # fmt: skip
    for field, (name, _) in FIELDS.items():
        value = getattr(c, field)
        values[f"llama.{name}"] = np.float32(value) if isinstance(value, float) else np.uint32(value)
    if c.rope_scaling is not None and c.rope_scaling["rope_type"] == "linear":
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": np.float32(c.rope_scaling["factor"])}
    return values


def _factors(config: ModelConfig) -> np.ndarray | None:
    """The tensor with the factors of RoPE's scaling; ValueError if they would be read as another scaling."""
    scaling = config.rope_scaling
    if scaling is None or scaling["rope_type"] == "linear":
        return None
    factors = rope_factors(config, scaling).astype("<f4")
    plain = ModelConfig(**{**config.to_dict(), "rope_scaling": None})
    try:
        scaling_of(factors.astype("float64"), plain)
    except ValueError as error:
        raise ValueError("rope_scaling cannot be held by a GGUF file: only that of Llama 3.1 and linear can") from error
    return factors


def _tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    found = chat_templates(tokenizer)
    values = values_of(tokenizer, vocab_size, found.tokens)
    for name, template in found.templates.items():
        values["tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"] = template
    return values


def _arrays(model: Transformer, kind: Kind, factors: np.ndarray | None) -> Iterator[np.ndarray]:
    """The tensors in the layout of the file, one at a time."""
    for name, view in model.params.items():
        values = to_numpy(view)
        if values.ndim == 1:
            values = values.astype("<f4")
        heads = rope_heads(model.config, name) if model.config.rope_layout == "half" else None
        values = values if heads is None else to_neighbours(values, heads)
        yield values if values.ndim == 1 else _stored(values, kind)
    if factors is not None:
        yield factors


def _stored(matrix: np.ndarray, kind: Kind) -> np.ndarray:
    """A matrix as it is stored."""
    if kind.type != KINDS["q8_0"].type:
        return matrix.astype(kind.dtype, copy=False)
    gguf = quantisers()
    blocks = [matrix[i : i + ROWS].astype("<f4") for i in range(0, len(matrix), ROWS)]
    return np.concatenate([gguf.quantize(rows, gguf.GGMLQuantizationType.Q8_0) for rows in blocks])
