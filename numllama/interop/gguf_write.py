"""Write GGUF files, which llama.cpp opens: a model in float32, float16, bfloat16 or Q8_0, with its tokenizer."""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, to_numpy
from numllama.errors import CheckpointError, shown
from numllama.interop.gguf import quantisers, row_bytes, stored_shapes
from numllama.interop.gguf_architectures import ARCHITECTURES, described, gguf_names, more_in_file
from numllama.interop.huggingface import rope_heads, stacked, to_halves, to_neighbours
from numllama.model import Transformer
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
    """Write a model; vectors and routers are always float32, as llama.cpp needs them.

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
    architecture, found, vectors = described(model.config)
    values = {
        "general.architecture": architecture, "general.type": "model", "general.name": path.stem,
        "general.file_type": np.uint32(kind.file), "general.quantization_version": np.uint32(2),
    } | {f"{architecture}.{key}": value for key, value in found.items()}  # fmt: skip
    values |= {"tokenizer.ggml.model": "none"} if tokenizer is None else _tokenizer(tokenizer, model.config.vocab_size)
    tensors = {
        stored: Stored(shape, type_, prod(shape[:-1]) * row_bytes(type_, shape[-1]))
        for stored, shape in stored_shapes(model.config, architecture).items()
        for type_ in [kind.type if is_rounded(stored, shape) else 0]
    }
    tensors |= {stored: Stored(vector.shape, 0, vector.nbytes) for stored, vector in vectors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"the folder {path.parent} cannot be written: {error.strerror}") from error
    write_file(path, lambda file: write_gguf(file, values, tensors, _arrays(model, architecture, kind, vectors)))


def is_rounded(stored: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is stored in the type of matrices."""
    return len(shape) > 1 and not stored.endswith("ffn_gate_inp.weight")


def _tokenizer(tokenizer: Any, vocab_size: int) -> dict[str, Any]:
    found = chat_templates(tokenizer)
    values = values_of(tokenizer, vocab_size, found.tokens)
    for name, template in found.templates.items():
        values["tokenizer.chat_template" if name == "default" else f"tokenizer.chat_template.{name}"] = template
    return values


def _arrays(model: Transformer, architecture: str, kind: Kind, vectors: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """The tensors in the layout of the file, one at a time."""
    reorder = to_neighbours if ARCHITECTURES[architecture].turns_neighbours else to_halves
    as_here = model.config.rope_layout == ("interleaved" if reorder is to_neighbours else "half")

    def array(name: str) -> np.ndarray:
        values, heads = to_numpy(model.params[name]), None if as_here else rope_heads(model.config, name)
        if values.ndim == 1:
            values = (values.astype("float64") + more_in_file(model.config, name)).astype("<f4")
        return values if heads is None else reorder(values, heads)

    for stored, parts in stacked(gguf_names(model.config, architecture)).items():
        values = array(parts[0]) if len(parts) == 1 else np.concatenate([array(name) for name in parts])
        yield _stored(values, kind) if is_rounded(stored, values.shape) else values.astype("<f4", copy=False)
    yield from vectors.values()


def _stored(matrix: np.ndarray, kind: Kind) -> np.ndarray:
    """A matrix as it is stored."""
    if kind.type != KINDS["q8_0"].type:
        return matrix.astype(kind.dtype, copy=False)
    gguf = quantisers()
    rows = matrix.reshape(-1, matrix.shape[-1])                        # of all experts
    blocks = [rows[i : i + ROWS].astype("<f4") for i in range(0, len(rows), ROWS)]
    return np.concatenate([gguf.quantize(block, gguf.GGMLQuantizationType.Q8_0) for block in blocks])
