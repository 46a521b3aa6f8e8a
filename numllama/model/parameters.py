"""Parameters: names, shapes, initial values; one flat buffer and named views of it.

Weights, gradients and both Adam moments are buffers of one layout. So zeroing is one fill, the norm of all gradients one
pass, and an optimizer step too. Matrices come before gains and biases: "decay only matrices" is one slice.
"""

from collections.abc import Iterator, Mapping
from math import prod, sqrt
from types import ModuleType

import numpy as np

from numllama.backend import Array, xp_of
from numllama.model.config import ModelConfig

MOST_LAYERS, MOST_PARAMETERS = 2**16, 2**44  # beyond any machine; who asks for more has mistyped it, or believed a damaged file


def block_shapes(config: ModelConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Name and shape of a block's matrices, and of its gains and biases.

    The matrices that read the same input, wq, wk, wv and w_gate, w_up, lie next to each other.
    """
    c = config
    C, F, Q, KV = c.dim, c.ffn_dim, c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    matrices = {"wq": (Q, C), "wk": (KV, C), "wv": (KV, C), "wo": (C, Q), "w_gate": (F, C), "w_up": (F, C), "w_down": (C, F)}
    if c.ffn == "gelu":
        del matrices["w_gate"]
    vectors = {f"{name}{suffix}": (C,) for name in ("attn_norm", "ffn_norm") for suffix in _norms(c)}
    if c.qk_norm == "rms":
        vectors |= {"q_norm": (c.head_dim,), "k_norm": (c.head_dim,)}
    if c.bias:
        vectors |= {f"{name}_bias": (shape[0],) for name, shape in matrices.items()}
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
    """How many numbers a model of this configuration has to learn."""
    c = config
    matrices, vectors = block_shapes(c)
    rows = c.vocab_size * (1 if c.tie_embeddings else 2) + (c.max_seq_len if c.positions == "learned" else 0) + len(_norms(c))
    return rows * c.dim + c.n_layers * sum(map(prod, (*matrices.values(), *vectors.values())))


def _norms(config: ModelConfig) -> tuple[str, ...]:
    """What follows a norm's name in those of its parameters."""
    return ("", "_bias") if config.norm == "layernorm" else ("",)


class Parameters(Mapping):
    """Named views of one flat buffer.

    Parameters
    ----------
    shapes : dict
        From :func:`parameter_shapes`.
    flat : array, shape (number of parameters,)
    vectors : Parameters, or dict of arrays, optional
        Whose gains and biases these share; `flat` then holds matrices only.

    Attributes
    ----------
    flat : array
    matrices : array
        The leading part of `flat`: everything with two axes.
    blocks : list of dict
        For each block its views, named without ``blocks.{i}.``.
    rounded : Parameters, optional
        These in two bytes, for mixed precision: see :meth:`rounded_to`.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], flat: Array, vectors: Mapping[str, Array] | None = None) -> None:
        self.shapes, self.flat = shapes, flat
        self.rounded: Parameters | None = None
        self._views, self._starts, start = {}, {}, 0
        for name, shape in shapes.items():
            is_shared = vectors is not None and len(shape) == 1
            self._views[name] = vectors[name] if is_shared else flat[start : start + prod(shape)].reshape(shape)
            self._starts[name] = start
            start += prod(shape)
        self.matrices = flat[: sum(prod(shape) for shape in shapes.values() if len(shape) == 2)]
        self.blocks: list[dict[str, Array]] = []
        for name, view in self._views.items():
            if name.startswith("blocks."):
                _, i, short = name.split(".")
                self.blocks += [{} for _ in range(int(i) + 1 - len(self.blocks))]
                self.blocks[int(i)][short] = view

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Array) -> None:
        self._views[name][...] = value

    def joined(self, first: str, last: str) -> Array:
        """The matrices from `first` to `last`, which have the same number of columns, as one: a view."""
        columns, stop = self.shapes[first][1], self._starts[last] + prod(self.shapes[last])
        return self.flat[self._starts[first] : stop].reshape(-1, columns)

    def check_layout(self, name: str, other: "Parameters") -> None:
        """Raise ValueError unless `other` has the same names and shapes."""
        if other.shapes != self.shapes:
            raise ValueError(f"{name} has another layout than the model's parameters")

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def get(self, name: str, default: Array | None = None) -> Array | None:
        """The view of that name, or `default`: a bias that a model may not have."""
        return self._views.get(name, default)

    def move(self, flat: Array) -> None:
        """Let `flat` hold the values from now on; views that were taken before stay behind."""
        flat[...] = self.flat
        self.__init__(self.shapes, flat)

    def rounded_to(self, dtype: np.dtype) -> "Parameters":
        """What mixed precision computes with: the matrices in `dtype`, and the gains and biases themselves.

        Whoever changes these parameters brings the copy up to date, as optimizers do, or calls :meth:`round`. Parameters that
        are kept in `dtype`, as only somebody who does not train keeps them, have no copy: their matrices are used as they are,
        and gains and biases in float32.
        """
        if self.flat.dtype == dtype:
            wide = {name: view.astype(np.float32) for name, view in self.items() if view.ndim == 1}
            return Parameters(self.shapes, self.matrices, vectors=wide)
        flat = xp_of(self.flat).empty(self.matrices.size, dtype)
        self.rounded = Parameters(self.shapes, flat, vectors=self)
        self.round()
        return self.rounded

    def round(self) -> None:
        """Bring the copy in two bytes up to date, if there is one."""
        if self.rounded is not None:
            self.rounded.flat[...] = self.matrices

    def rounded_part(self, part: slice) -> Array | None:
        """The copy of ``flat[part]`` in two bytes; None if there is none, as of gains and biases."""
        return None if self.rounded is None or part.start >= self.matrices.size else self.rounded.flat[part]

    def zeros_like(self) -> "Parameters":
        """Zeros of the same layout: gradients, or a moment of an optimizer."""
        return Parameters(self.shapes, xp_of(self.flat).zeros_like(self.flat))


def copied_parameters(
    config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: np.dtype, xp: ModuleType = np
) -> Parameters:
    """Parameters with the values of `tensors`, which have the same names and shapes and may be of any float dtype.

    One tensor is copied after another, so that of tensors that are mapped from a file no second copy is ever in memory.
    """
    params = Parameters(parameter_shapes(config), xp.empty(count_parameters(config), dtype))
    for name, view in params.items():
        view[...] = tensors[name] if xp is np else xp.asarray(tensors[name].astype(dtype))
    return params


def initial_parameters(config: ModelConfig, seed: int, dtype: np.dtype, xp: ModuleType = np) -> Parameters:
    """All initial values of a model.

    Matrices are normal with standard deviation `init_std` (``truncated_normal``: drawn again beyond three of them). The two
    that write into the residual stream, wo and w_down, are smaller by 1/sqrt(2L), so that the sum of 2L of them keeps its
    size (GPT-2, section 2.3). Gains are 1 and biases 0. Each matrix has a random stream of its own, drawn on the CPU in
    float32, so that a seed means the same model on every device and in every dtype.
    """
    params = Parameters(parameter_shapes(config), np.empty(count_parameters(config), dtype))
    for i, (name, view) in enumerate(params.items()):
        if view.ndim == 1:
            view[:] = 0 if name.endswith("_bias") else 1
            continue
        std = config.init_std / sqrt(2 * config.n_layers) if name.endswith((".wo", ".w_down")) else config.init_std
        rng = np.random.default_rng([seed, i])
        values = rng.standard_normal(view.shape, dtype="float32")
        while config.init == "truncated_normal" and (outside := np.abs(values) > 3).any():
            values[outside] = rng.standard_normal(int(outside.sum()), dtype="float32")
        view[...] = std * values
    return params if xp is np else Parameters(params.shapes, xp.asarray(params.flat))
