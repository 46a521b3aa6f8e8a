"""llama2.c's .bin files: a header of seven integers, then float32 weights, one kind after another and each for all layers.

    int32    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: the head is not tied), max_seq_len
    float32  the weights, in the order of ORDER; before the head, RoPE's cosines and sines, which today's run.c computes itself

This is version 0, which `run.c` reads. Version 1 has a header of 256 bytes that begins with a magic number, another order, and no
tables. RoPE rotates neighbours in both, and both imply eps 1e-5, RoPE with base 10000, and no biases.
"""

import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from numllama.backend import to_numpy
from numllama.errors import CheckpointError, shown
from numllama.interop.huggingface import rope_heads, to_neighbours
from numllama.model import ModelConfig, Transformer, count_parameters, parameter_shapes
from numllama.storage.files import reading, write_file
from numllama.storage.tensor_file import mapped

HEADER, MAGIC = "<7i", 0x616B3432  # "ak42"
VERSION_1_HEADER = 256
LAYERS = ("wq", "wk", "wv", "wo"), ("w_gate", "w_down", "w_up")
ORDER = {
    0: ("embed", "attn_norm", *LAYERS[0], "ffn_norm", *LAYERS[1], "norm", "cos", "sin", "head"),
    1: ("attn_norm", "ffn_norm", "norm", "embed", *LAYERS[0], *LAYERS[1], "head"),
}
# Fields that the header says, that do not change the file, or that only training needs. A file implies the others' defaults.
FREE = {"dim", "ffn_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len", "tie_embeddings", "rope_layout"}
FREE |= {"init", "init_std", "dropout", "family"}
DEFAULTS = ModelConfig(1, dim=2, n_layers=1, n_heads=1).to_dict()
# A text ends at token 1, which begins the next one (run.c), or at 2 (SentencePiece's end token, for fine-tuned models).
TABLES = "llama2c_tables"  # attribute of a model: RoPE's tables in its file
GENERATION = {"bos_token_id": 1, "eos_token_id": [1, 2]}


class Model(NamedTuple):
    """A configuration and the tensors by our names; in version 0 also ``cos`` and ``sin``."""

    config: ModelConfig
    tensors: dict[str, np.ndarray]


def read(path: Path) -> Model:
    """Read a model; tensors are views of the memory-mapped file.

    Raises
    ------
    CheckpointError
        If the file is not llama2.c's, is cut short, or is quantised (version 2).
    """
    data = mapped(path)
    if len(data) < struct.calcsize(HEADER):
        raise CheckpointError(f"{path} is not a llama2.c model: it has only {len(data)} bytes")
    magic, version = struct.unpack("<Ii", data[:8].tobytes())
    if magic != MAGIC:
        version, begin, numbers = 0, 28, data[:28]
    elif version == 1:
        begin, numbers = VERSION_1_HEADER, data[8:36]
    else:
        raise CheckpointError(f"{path} is version {version} of llama2.c's format (2 is quantised), but only 0 and 1 are read")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = map(int, struct.unpack(HEADER, numbers.tobytes()))
    tied = vocab_size > 0 if version == 0 else len(data) > 36 and bool(data[36])
    try:
        config = ModelConfig(
            abs(vocab_size), dim, n_layers, n_heads, n_kv_heads=n_kv_heads, ffn_dim=hidden_dim, max_seq_len=max_seq_len,
            rope_layout="interleaved", tie_embeddings=tied,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"{path} is not a llama2.c model: {error}") from error
    table = config.max_seq_len * (config.head_dim // 2)
    size = begin + 4 * (count_parameters(config) + (2 * table if version == 0 else 0))  # known before anything is allocated
    if len(data) != size:
        what = "cut short, or not a llama2.c model" if len(data) < size else "not a llama2.c model"
        raise CheckpointError(f"{path} is {what}: its header asks for {size} bytes, and it has {len(data)}")
    tensors, floats, start = {}, data[begin:].view("<f4"), 0
    with reading(path):
        for name, shape in _layout(config, version):
            tensors[name] = floats[start : start + prod(shape)].reshape(shape)
            start += prod(shape)
    return Model(config, tensors)


def keep_tables(model: Transformer, tensors: Mapping[str, np.ndarray]) -> None:
    """Keep the tables of a file with its model, so that saving it writes the same file."""
    if "cos" in tensors:
        setattr(model, TABLES, (tensors["cos"].copy(), tensors["sin"].copy()))


def save(model: Transformer, path: Path) -> None:
    """Write version 0, which llama2.c's run.c reads.

    A model that was read from such a file is saved with the tables of that file, so that both files are equal.

    Raises
    ------
    ValueError
        If the format cannot express the model's configuration.
    """
    c = model.config
    for name, value in {**DEFAULTS, "head_dim": c.dim / c.n_heads}.items():
        if name not in FREE and getattr(c, name) != value:
            raise ValueError(f"{name} is {shown(getattr(c, name))}, but in a llama2.c file it can only be {shown(value)}")
    if model.params.flat.dtype != np.float32:
        raise ValueError(f"weights are {model.params.flat.dtype}, but a llama2.c file holds float32: load the model as that")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the folder {path.parent} cannot be written: {error.strerror}") from error
    write_file(path, lambda file: file.writelines(_parts(model)))


def _parts(model: Transformer) -> Iterator[bytes]:
    c = model.config
    vocab_size = c.vocab_size if c.tie_embeddings else -c.vocab_size
    yield struct.pack(HEADER, c.dim, c.ffn_dim, c.n_layers, c.n_heads, c.n_kv_heads, vocab_size, c.max_seq_len)
    tables = dict(zip(("cos", "sin"), getattr(model, TABLES, None) or _tables(c), strict=True))
    for name, _ in _layout(c, version=0):
        values = tables[name] if name in tables else to_numpy(model.params[name])
        heads = rope_heads(c, name) if c.rope_layout == "half" else None
        yield (values if heads is None else to_neighbours(values, heads)).astype("<f4", copy=False).tobytes()


def _layout(config: ModelConfig, version: int) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of all tensors of a file, in order."""
    shapes = parameter_shapes(config)
    table = config.max_seq_len, config.head_dim // 2
    shapes |= {"cos": table, "sin": table}
    layout = []
    for name in ORDER[version]:
        names = [name] if name in shapes else [f"blocks.{i}.{name}" for i in range(config.n_layers)]
        layout += [(name, shapes[name]) for name in names if name in shapes]  # a tied model has no head
    return layout


def _tables(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, (T, D/2), computed in float32 throughout, as llama2.c does."""
    D = config.head_dim
    frequencies = 1 / np.float32(config.rope_theta) ** (np.arange(0, D, 2, dtype="float32") / np.float32(D))
    angles = np.outer(np.arange(config.max_seq_len, dtype="float32"), frequencies)      # (T, D/2)
    return np.cos(angles), np.sin(angles)
