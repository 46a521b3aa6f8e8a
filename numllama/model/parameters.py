"""Parameters: names, shapes, initial values; one flat buffer and named views of it.

Weights, gradients and both Adam moments are buffers with the same layout. So zeroing is one fill, and the gradient norm and the
optimizer step are one pass each. Matrices come before gains and biases, so "decay only matrices" is one slice.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import prod, sqrt
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from numllama.backend import INT8, Array, known_dtype, xp_of
from numllama.blocks import slices
from numllama.cpu.int8 import Int8Matrix
from numllama.model.config import ModelConfig

COPIED = 2**20  # numbers at a time
MOST_LAYERS, MOST_PARAMETERS = 2**16, 2**44  # larger means a typo or a damaged file

BLOCK_NORMS = {
    "before": ("attn_norm", "ffn_norm"),
    "after": ("attn_post_norm", "ffn_post_norm"),
    "both": ("attn_norm", "attn_post_norm", "ffn_norm", "ffn_post_norm"),
}
QKV, ATTENTION, FFN = ("wq", "wk", "wv"), ("wq", "wk", "wv", "wo"), ("w_gate", "w_up", "w_down")
BIASED = {False: (), "qkv": QKV, "attention": ATTENTION, "ffn": FFN, True: ATTENTION + FFN}  # maps with a bias


def block_shapes(config: ModelConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Name and shape of a block's matrices, and of its gains and biases.

    Matrices with the same input (wq, wk, wv; w_gate, w_up) are adjacent.
    """
    c = config
    C, F, Q, KV = c.dim, c.ffn_dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    matrices = {"wq": (Q, C), "wk": (KV, C), "wv": (KV, C), "wo": (C, Q), "w_gate": (F, C), "w_up": (F, C), "w_down": (C, F)}
    if c.ffn == "gelu":
        del matrices["w_gate"]
    if c.ffn == "moe":                                                 # E stacked matrices of each kind
        E, names = c.n_experts, (("gate", "w_gate"), ("up", "w_up"), ("down", "w_down"))
        matrices |= {"router": (E, C)} | {f"experts_{name}": (E, *matrices.pop(of_one)) for name, of_one in names}
    vectors = {f"{name}{suffix}": (C,) for name in BLOCK_NORMS[c.norm_placement] for suffix in _norms(c)}
    if c.qk_norm in ("rms", "rms_width"):
        widths = (c.head_dim, c.head_dim) if c.qk_norm == "rms" else (Q, KV)
        vectors |= {"q_norm": widths[:1], "k_norm": widths[1:]}
    vectors |= {f"{name}_bias": (shape[0],) for name, shape in matrices.items() if name in BIASED[c.bias]}
    return matrices, vectors


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, in the order of the flat buffer."""
    c = config
    if c.n_layers > MOST_LAYERS:
        raise ValueError(f"n_layers is {c.n_layers:,}, but a model of more than {MOST_LAYERS:,} layers cannot be built")
    if (n := count_parameters(c)) > MOST_PARAMETERS:
        raise ValueError(f"a model of this configuration has {n:.2e} parameters, more than the memory of any machine holds")
    matrices, vectors = block_shapes(c)
    shapes = {"embed": (c.vocab_size, c.dim)}
    if c.positions == "learned":
        shapes["pos_embed"] = (c.max_seq_len, c.dim)
    shapes |= {f"blocks.{i}.{name}": shape for i in range(c.n_layers) for name, shape in matrices.items()}
    if not c.tie_embeddings:
        shapes["head"] = (c.vocab_size, c.dim)
    shapes |= {f"blocks.{i}.{name}": shape for i in range(c.n_layers) for name, shape in vectors.items()}
    return shapes | {f"norm{suffix}": (c.dim,) for suffix in _norms(c)}


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters of a model of this configuration."""
    c = config
    matrices, vectors = block_shapes(c)
    rows = c.vocab_size * (1 if c.tie_embeddings else 2) + (c.max_seq_len if c.positions == "learned" else 0) + len(_norms(c))
    return rows * c.dim + c.n_layers * sum(map(prod, (*matrices.values(), *vectors.values())))


def _norms(config: ModelConfig) -> tuple[str, ...]:
    """Suffixes of a norm's parameter names."""
    return ("", "_bias") if config.norm == "layernorm" else ("",)


class FlatTensors(Mapping[str, Array]):
    """Named views of one flat buffer: parameters, their gradients (see :class:`Gradients`), or a moment of an optimizer.

    Parameters
    ----------
    shapes : dict
        From :func:`parameter_shapes`.
    flat : array, shape (number of parameters,)
    vectors : mapping of arrays, optional
        Gains and biases to share; `flat` then holds only matrices.

    Attributes
    ----------
    flat : array
    matrices : array
        The leading part of `flat`: everything with two axes, or three for stacked matrices.
    blocks : list of dict
        The views of each block, named without ``blocks.{i}.``.
    ends : dict
        All others: of the embeddings, the last norm and the head.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], flat: Array, vectors: Mapping[str, Array] | None = None) -> None:
        self.shapes, self.flat = shapes, flat
        self._views: dict[str, Array] = {}
        self._starts: dict[str, int] = {}
        start = 0
        for name, shape in shapes.items():
            if vectors is not None and len(shape) == 1:
                self._views[name] = vectors[name]
            else:
                self._views[name] = flat[start : start + prod(shape)].reshape(shape)
            self._starts[name] = start
            start += prod(shape)
        self.matrices = flat[: sum(prod(shape) for shape in shapes.values() if len(shape) > 1)]
        self._sort_into_blocks()

    def _sort_into_blocks(self) -> None:
        self.blocks: list[dict[str, Array]] = []
        self.ends: dict[str, Array] = {}
        for name, view in self._views.items():
            if name.startswith("blocks."):
                _, i, short = name.split(".")
                self.blocks += [{} for _ in range(int(i) + 1 - len(self.blocks))]
                self.blocks[int(i)][short] = view
            else:
                self.ends[name] = view

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self._views[name][...] = value

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def joined(self, first: str, last: str) -> Array:
        """The matrices from `first` to `last`, which have equally many columns, stacked into one: a view."""
        columns, stop = self.shapes[first][1], self._starts[last] + prod(self.shapes[last])
        return self.flat[self._starts[first] : stop].reshape(-1, columns)

    def check_layout(self, name: str, other: "Gradients") -> None:
        """Raise ValueError unless `other` has the same names and shapes."""
        if other.shapes != self.shapes:
            raise ValueError(f"{name} has another layout than the model's parameters")

    def move(self, flat: Array) -> None:
        """Copy the values to `flat` and use it from now on; earlier views become stale."""
        flat[...] = self.flat
        FlatTensors.__init__(self, self.shapes, flat)

    def zeros_like(self) -> "FlatTensors":
        """Zeros of the same layout: gradients, or a moment of an optimizer."""
        return FlatTensors(self.shapes, xp_of(self.flat).zeros_like(self.flat))

    # -------------------------------------------------------------------------------------------- as Gradients

    def add(self, name: str, gradient: Array) -> None:
        """See :meth:`Gradients.add`."""
        view = self._views[name]
        view += gradient

    def buffer(self, name: str) -> Array | None:
        """See :meth:`Gradients.buffer`."""
        return self._views.get(name)

    @contextmanager
    def adding_to(self, name: str) -> Iterator[Array]:
        """See :meth:`Gradients.adding_to`."""
        yield self._views[name]

    def layer_done(self, i: int) -> None:
        """See :meth:`Gradients.layer_done`."""


class Gradients(Protocol):
    """Where backward puts the gradient of each parameter, once.

    The simplest is a buffer (:class:`FlatTensors`). Parallel shards add in order
    (:class:`~numllama.parallel.ordered_sum.ShardGradients`), and ranks send the gradients of a layer while the layers below are
    still being computed (:class:`~numllama.parallel.ranks.RankGradients`). Frozen parameters are not ``in`` them.

    Attributes
    ----------
    shapes : dict
        The shape of each gradient.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def __contains__(self, name: object, /) -> bool: ...

    def add(self, name: str, gradient: Array) -> None:
        """Add a parameter's gradient."""
        ...

    def buffer(self, name: str) -> Array | None:
        """An array to which an op may add the gradient directly, instead of calling `add`; None if there is none."""
        ...

    def adding_to(self, name: str) -> AbstractContextManager[Array]:
        """The sum so far, for an op that adds to only a few of its rows; shards wait here for earlier ones."""
        ...

    def layer_done(self, i: int) -> None:
        """Layer `i` adds no more gradients. Backward runs from the last layer to the first."""
        ...


class LayerGradients(NamedTuple):
    """The gradients of layer `i`, named without ``blocks.{i}.``."""

    all: Gradients
    i: int

    def __contains__(self, name: object) -> bool:
        return f"blocks.{self.i}.{name}" in self.all

    def add(self, name: str, gradient: Array) -> None:
        """See :meth:`Gradients.add`."""
        self.all.add(f"blocks.{self.i}.{name}", gradient)

    def buffer(self, name: str) -> Array | None:
        """See :meth:`Gradients.buffer`."""
        return self.all.buffer(f"blocks.{self.i}.{name}")


class Parameters(FlatTensors):
    """Weights, as named views of one flat buffer.

    Attributes
    ----------
    low_precision : FlatTensors, optional
        A copy in two bytes, for mixed precision: see :meth:`in_low_precision`.
    """

    low_precision: FlatTensors | None = None

    def in_low_precision(self, dtype: np.dtype, flat: Array | None = None) -> FlatTensors:
        """Weights for mixed precision: matrices in `dtype`, gains and biases as they are.

        The copy is written to `flat`, if that is given. Code that changes these parameters
        must also update the copy, as optimizers do, or call :meth:`sync_low_precision`.
        Parameters stored in `dtype`, for inference, need no copy: their matrices are used
        directly, and gains and biases in float32.
        """
        if self.flat.dtype == dtype:
            vectors = ((name, view) for name, view in self.items() if view.ndim == 1)
            wide = {name: view.astype(np.float32) for name, view in vectors}
            return FlatTensors(self.shapes, self.matrices, vectors=wide)
        flat = xp_of(self.flat).empty(self.matrices.size, dtype) if flat is None else flat
        self.low_precision = FlatTensors(self.shapes, flat, vectors=self)
        self.sync_low_precision()
        return self.low_precision

    def sync_low_precision(self) -> None:
        """Update the copy in two bytes, if there is one."""
        if self.low_precision is not None:
            self.low_precision.flat[...] = self.matrices

    def low_precision_part(self, part: slice) -> Array | None:
        """The copy of ``flat[part]`` in two bytes; None if there is none, as for gains and biases."""
        copy = self.low_precision
        return None if copy is None or part.start >= self.matrices.size else copy.flat[part]


class Int8Parameters(Parameters):
    """Weights for inference: each matrix is an :class:`~numllama.cpu.int8.Int8Matrix`, gains and biases are float32.

    Parameters
    ----------
    shapes : dict
    tensors : mapping of arrays
        The weights to round, of any float dtype. `flat` holds the values of the matrices in int8.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray]) -> None:
        if any(len(shape) > 2 for shape in shapes.values()):
            raise ValueError("a mixture of experts cannot be stored as int8: load the model without store_as")
        vectors = {name: np.array(tensors[name], np.float32) for name, shape in shapes.items() if len(shape) == 1}
        size = sum(prod(shape) for name, shape in shapes.items() if name not in vectors)
        super().__init__(shapes, np.empty(size, INT8), vectors)
        matrices = {name: view for name, view in self.items() if name not in vectors}
        self._views |= {name: Int8Matrix.quantized(tensors[name], view) for name, view in matrices.items()}
        self._sort_into_blocks()

    def joined(self, first: str, last: str) -> Int8Matrix:
        """See :meth:`FlatTensors.joined`; only the values are a view."""
        names = list(self)
        parts = [self[name].scales for name in names[names.index(first) : names.index(last) + 1]]
        return Int8Matrix(super().joined(first, last), np.concatenate(parts))

    def zeros_like(self) -> FlatTensors:
        """Refuse to make gradients or moments."""
        raise ValueError("weights stored as int8 cannot be trained: load the model without store_as")


def copied_parameters(
    config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: np.dtype, xp: ModuleType = np
) -> Parameters:
    """Parameters with the values of `tensors`, which have the same names and shapes and any float dtype.

    Tensors are copied a block of rows at a time, so those in a file are in memory only once.
    """
    if dtype == INT8:
        return Int8Parameters(parameter_shapes(config), tensors)
    params = Parameters(parameter_shapes(config), xp.empty(count_parameters(config), dtype))
    for name, view in params.items():
        tensor = tensors[name]
        for rows in slices(0, len(view), max(1, COPIED // prod(view.shape[1:]))):
            view[rows] = tensor[rows] if xp is np else xp.asarray(tensor[rows].astype(dtype))
    return params


def initial_parameters(config: ModelConfig, seed: int, dtype: np.dtype, xp: ModuleType = np) -> Parameters:
    """The initial parameters of a model.

    Matrices are normal with standard deviation `init_std` (``truncated_normal``: redrawn beyond three of them). The two that
    write to the residual stream, wo and w_down or experts_down, are scaled by 1/sqrt(2L), so that the sum of 2L outputs keeps its
    scale (GPT-2, section 2.3). Gains are 1 (``rmsnorm1p``: their weights are 0) and biases 0. Each matrix has its own random
    stream, drawn on the CPU in float32, so a seed gives the same model on every device and in every dtype.
    """
    flat = np.empty(count_parameters(config), known_dtype(dtype))
    params = Parameters(parameter_shapes(config), flat)
    for i, (name, view) in enumerate(params.items()):
        if view.ndim == 1:
            view[:] = 0 if name.endswith("_bias") or config.norm == "rmsnorm1p" else 1
            continue
        last = name.endswith((".wo", "_down"))                         # of its branch
        std = config.init_std / sqrt(2 * config.n_layers) if last else config.init_std
        rng = np.random.default_rng([seed, i])
        values = rng.standard_normal(view.shape, dtype="float32")
        while config.init == "truncated_normal" and (outside := np.abs(values) > 3).any():
            values[outside] = rng.standard_normal(int(outside.sum()), dtype="float32")
        view[...] = std * values
    return params if xp is np else Parameters(params.shapes, xp.asarray(params.flat))
