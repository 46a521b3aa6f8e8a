"""LoRA adapters: which matrices get a low-rank update, its parameters, and their initial values.      Hu et al. 2021

A model with an adapter is frozen: only the adapter has gradients and moments, in its own flat buffer. Each target matrix W of
a block acts as  W + scale · b · a,  scale = alpha / rank  (:mod:`numllama.ops.lora`). The embedding and the head are not updated
but replaced: an adapter may hold a copy of either, and train it whole.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod, sqrt
from typing import Any

import numpy as np

from numllama.backend import xp_of
from numllama.errors import shown
from numllama.model.config import ModelConfig
from numllama.model.parameters import Parameters, parameter_shapes
from numllama.storage.fields import OBJECT, POSITIVE, check, whole

TARGETS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")
ONE_MATRIX = re.compile(rf"blocks\.\d+\.({'|'.join(TARGETS)})")
WHOLE = ("embed", "head")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The shape of an adapter. Validated on construction.

    Attributes
    ----------
    rank : int
        R, the rank of each update.
    alpha : float
        Updates are scaled by alpha / rank, so that one learning rate fits several ranks.
    targets : tuple of str
        The matrices to update: ``wq`` in every block, ``blocks.3.wq`` in one. Default all seven in every block.
    ranks, alphas : dict
        The rank and alpha of single matrices, such as ``blocks.3.wq``, if they are not those above.
    modules_to_save : tuple of str
        ``embed`` and ``head``: what the adapter has a copy of, which is trained, and used in place of the model's.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check(vars(self), {"rank": whole(1), "alpha": POSITIVE, "ranks": OBJECT, "alphas": OBJECT})
        check(self.ranks, dict.fromkeys(self.ranks, whole(1)), prefix="the rank of ")
        check(self.alphas, dict.fromkeys(self.alphas, POSITIVE), prefix="the alpha of ")
        names, saved = _names(self.targets), _names(self.modules_to_save)
        if not names or not all(isinstance(name, str) and (name in TARGETS or ONE_MATRIX.fullmatch(name)) for name in names):
            raise ValueError(f"targets is {shown(names)}, but must be some of {', '.join(TARGETS)}")
        if not all(name in WHOLE for name in saved):
            raise ValueError(f"modules_to_save is {shown(saved)}, but must be some of {', '.join(WHOLE)}")
        single = dict.fromkeys(name for name in names if name.rpartition(".")[2] not in names)     # in order, each once
        object.__setattr__(self, "targets", (*(name for name in TARGETS if name in names), *single))
        object.__setattr__(self, "modules_to_save", tuple(name for name in WHOLE if name in saved))
        object.__setattr__(self, "ranks", {name: int(value) for name, value in self.ranks.items()})
        object.__setattr__(self, "alphas", {name: float(value) for name, value in self.alphas.items()})
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "rank", int(self.rank))               # NumPy's numbers would widen float32 arrays

    def updates(self, name: str) -> bool:
        """Whether a parameter of the model gets an update."""
        return name in self.targets or (name.startswith("blocks.") and name.rpartition(".")[2] in self.targets)

    def rank_of(self, name: str) -> int:
        """The rank of a matrix's update."""
        return self.ranks.get(name, self.rank)

    def scale_of(self, name: str) -> float:
        """The factor of a matrix's update: alpha / rank."""
        return self.alphas.get(name, self.alpha) / self.rank_of(name)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, without those that most adapters lack."""
        values = {**asdict(self), "targets": list(self.targets), "modules_to_save": list(self.modules_to_save)}
        return {name: value for name, value in values.items() if value or name in ("rank", "alpha", "targets")}


def _names(value: Any) -> tuple:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


class Adapter:
    """An adapter: its configuration and parameters.

    Attributes
    ----------
    config : LoraConfig
    params : Parameters
        ``blocks.{i}.{target}_lora_a`` and ``_lora_b``, then the ``modules_to_save``.
    weights : Parameters
        Used in computation: `params`, or in mixed precision their copy in two bytes.
    scales : list of dict
        For each block, ``{target}_lora_scale``: the factor of each update.
    """

    def __init__(self, config: LoraConfig, params: Parameters, dtype: np.dtype) -> None:
        self.config, self.params = config, params
        self.weights = params if params.flat.dtype == dtype else params.in_low_precision(dtype)
        self.scales: list[dict[str, float]] = []
        for i, block in enumerate(params.blocks):
            targets = (name[: -len("_lora_a")] for name in block)
            self.scales.append({f"{name}_lora_scale": config.scale_of(f"blocks.{i}.{name}") for name in targets})

    def merge_into(self, base: Parameters) -> None:
        """Make the adapter part of the weights: W + scale · b · a, and its own embedding and head."""
        for name, weight in base.items():
            if f"{name}_lora_a" in self.params:
                update = self.params[f"{name}_lora_b"].astype("float64") @ self.params[f"{name}_lora_a"]
                weight[...] = weight + self.config.scale_of(name) * update               # rounded once
            elif name in self.params:
                weight[...] = self.params[name]


def adapter_shapes(model: ModelConfig, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of an adapter, in the order of its flat buffer."""
    if model.tie_embeddings and config.modules_to_save:
        raise ValueError(f"modules_to_save is {shown(config.modules_to_save)}, but the model's embedding and head are one matrix")
    shapes, base = {}, parameter_shapes(model)
    for name, shape in base.items():
        if config.updates(name):
            rank = config.rank_of(name)
            shapes |= {f"{name}_lora_a": (rank, shape[1]), f"{name}_lora_b": (shape[0], rank)}
    single = {name for name in config.targets if name not in TARGETS} | {*config.ranks, *config.alphas}
    missing = [name for name in config.targets if name in TARGETS and f"blocks.0.{name}_lora_a" not in shapes]
    missing = [] if config.targets == TARGETS else missing
    if missing := [*missing, *sorted(name for name in single if f"{name}_lora_a" not in shapes)]:
        raise ValueError(f"targets holds {shown(missing[0])}, but a model with ffn={shown(model.ffn)} has no such matrix")
    return shapes | {name: base[name] for name in config.modules_to_save}


def initial_adapter(
    model: ModelConfig, config: LoraConfig, seed: int, dtype: np.dtype, base: Parameters
) -> Parameters:
    """An adapter that changes nothing yet: a is uniform in ±1/√I, as in peft, b is zero, and whole matrices are the model's."""
    shapes, xp = adapter_shapes(model, config), xp_of(base.flat)
    params = Parameters(shapes, xp.zeros(sum(map(prod, shapes.values())), dtype))
    for name in config.modules_to_save:
        params[name] = base[name]
    for i, (name, view) in enumerate(params.items()):
        if name.endswith("_lora_a"):
            bound = 1 / sqrt(view.shape[1])
            view[...] = xp.asarray(np.random.default_rng([seed, i]).uniform(-bound, bound, view.shape))
    return params
