"""LoRA adapters: which matrices get a low-rank update, its parameters, and their initial values.      Hu et al. 2021

A model with an adapter is frozen: only the adapter has gradients and moments, in its own flat buffer. Each target matrix W of
a block acts as  W + scale · b · a,  scale = alpha / rank  (:mod:`numllama.ops.lora`).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod, sqrt
from types import ModuleType
from typing import Any

import numpy as np

from numllama.errors import shown
from numllama.model.config import ModelConfig
from numllama.model.parameters import Parameters, parameter_shapes
from numllama.storage.fields import POSITIVE, check, whole

TARGETS = ("wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")


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
        The matrices to update in every block. Default all seven.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        check(vars(self), {"rank": whole(1), "alpha": POSITIVE})
        several = isinstance(self.targets, Iterable) and not isinstance(self.targets, str)
        names = tuple(self.targets) if several else (self.targets,)
        if not names or not all(isinstance(name, str) and name in TARGETS for name in names):
            raise ValueError(f"targets is {shown(names)}, but must be some of {', '.join(TARGETS)}")
        object.__setattr__(self, "targets", tuple(name for name in TARGETS if name in names))
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "rank", int(self.rank))               # NumPy's numbers would widen float32 arrays

    @property
    def scale(self) -> float:
        """The factor of each update."""
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {**asdict(self), "targets": list(self.targets)}


class Adapter:
    """An adapter: its configuration and parameters.

    Attributes
    ----------
    config : LoraConfig
    params : Parameters
        ``blocks.{i}.{target}_lora_a`` and ``_lora_b``.
    weights : Parameters
        Used in computation: `params`, or in mixed precision their copy in two bytes.
    """

    def __init__(self, config: LoraConfig, params: Parameters, dtype: np.dtype) -> None:
        self.config, self.params = config, params
        self.weights = params if params.flat.dtype == dtype else params.in_low_precision(dtype)


def adapter_shapes(model: ModelConfig, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every parameter of an adapter, in the order of its flat buffer."""
    shapes = {}
    for name, shape in parameter_shapes(model).items():
        if name.rpartition(".")[-1] in config.targets:
            shapes |= {f"{name}_lora_a": (config.rank, shape[1]), f"{name}_lora_b": (shape[0], config.rank)}
    missing = [name for name in config.targets if f"blocks.0.{name}_lora_a" not in shapes]
    if missing and config.targets != TARGETS:
        raise ValueError(f"targets holds {shown(missing[0])}, but a model with ffn={shown(model.ffn)} has no such matrix")
    return shapes


def initial_adapter(
    model: ModelConfig, config: LoraConfig, seed: int, dtype: np.dtype, xp: ModuleType = np
) -> Parameters:
    """An adapter that changes nothing yet: a is uniform in ±1/√I, as in peft, and b is zero."""
    shapes = adapter_shapes(model, config)
    params = Parameters(shapes, np.zeros(sum(map(prod, shapes.values())), dtype))
    for i, (name, view) in enumerate(params.items()):
        if name.endswith("_lora_a"):
            bound = 1 / sqrt(view.shape[1])
            view[...] = np.random.default_rng([seed, i]).uniform(-bound, bound, view.shape)
    return params if xp is np else Parameters(shapes, xp.asarray(params.flat))
