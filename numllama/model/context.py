"""Context: what the layers of a pass share, and what some of them have instead: a sliding window, other positions, or none."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import numpy as np

from numllama import ops
from numllama.backend import Array
from numllama.model.config import ModelConfig
from numllama.model.experts import Balance
from numllama.ops.rope_scaling import depends_on_length

Table = tuple[Array, Array]


@dataclass(frozen=True)
class Context:
    """What all blocks of one pass share.

    Attributes
    ----------
    config : ModelConfig
    positions : integer array, shape (T,) or (B, T)
        None without learned positions: RoPE's table is enough.
    cos, sin : array, shape (T, D/2) or (B, 1, T, D/2)
        RoPE's table, if there is one.
    first, last : array, shape (T,) or (B, T)
        Query t sees the keys ``first <= s < last``; None is causal.
    key : tuple of int, or uint32 array, shape (sites, 2)
        Names this pass's dropout masks, or holds one key per site; None: no dropout.
    kv_cache : KVCache
        Keys and values of earlier tokens, if any.
    low_precision : dtype
        What keys, values and the inputs of SwiGLU are rounded to: the dtype of the products and of what backward needs of them.
        None: they stay as they are.
    n_last : int
        Compute outputs for the last n tokens only; earlier tokens contribute keys and values. None: all.
    balance : Balance
        How the tokens are spread over the experts of a mixture, for the load-balancing loss.
    by_layer : dict
        What a layer has instead of the others' `cos`, `sin`, `first` and `last`, if anything.
    """

    config: ModelConfig
    positions: Array | None
    cos: Array | None = None
    sin: Array | None = None
    first: Array | None = None
    last: Array | None = None
    key: tuple[int, ...] | None = None
    kv_cache: Any = None
    low_precision: Any = None
    n_last: int | None = None
    balance: Balance = field(default_factory=Balance)
    by_layer: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def for_layer(self, layer: int) -> "Context":
        """The context of a layer."""
        own = self.by_layer.get(layer)
        return self if own is None else replace(self, **own)

    def last_tokens(self) -> "Context":
        """The context of the last `n_last` tokens."""
        n = self.n_last or 0
        cos, sin = (None if table is None else table[..., -n:, :] for table in (self.cos, self.sin))
        first, last = (None if ends is None else ends[..., -n:] for ends in (self.first, self.last))
        positions = None if self.positions is None else self.positions[..., -n:]
        return replace(self, positions=positions, cos=cos, sin=sin, first=first, last=last)


class RopeTables:
    """The tables of RoPE: of all layers, and of those with a sliding window if they have a base of their own.

    Parameters
    ----------
    config : ModelConfig
    xp : module
        NumPy or CuPy.
    dtype : dtype
    """

    def __init__(self, config: ModelConfig, xp: ModuleType, dtype: np.dtype) -> None:
        self.config, self.xp, self.dtype = config, xp, dtype
        self._first: dict[bool, Table] = {}                            # of positions 0, 1, 2, ...

    def table(self, positions: Array, is_local: bool = False) -> Table:
        """Cosines and sines at these positions."""
        c = self.config
        theta, scaling = (c.local_rope_theta, None) if is_local else (c.rope_theta, c.rope_scaling)
        return ops.rope_table(positions, c.rotary_dim or c.head_dim, theta, scaling, self.dtype)

    def first(self, T: int, is_local: bool = False) -> Table:
        """The rows of positions 0..T-1, computed once."""
        table = self._first.get(is_local)  # another thread may replace it
        if table is None or len(table[0]) < T or (len(table[0]) > T and depends_on_length(self.config.rope_scaling)):
            self._first[is_local] = table = self.table(self.xp.arange(T), is_local)
        return table[0][:T], table[1][:T]

    def at(self, positions: Array | None, T: int, is_local: bool = False) -> Table:
        """The table of these positions; None: 0..T-1."""
        return self.first(T, is_local) if positions is None else self.table(positions, is_local)


def windowed(first: Array | None, T: int, size: int, xp: ModuleType) -> tuple[Array, Array]:
    """The interval of keys that each of T tokens sees in a sliding window, from `first` on."""
    t = xp.arange(T)
    begin = xp.maximum(0 if first is None else first, t - size + 1)    # (T,) or (B, T)
    return begin, t + 1


def layers_of_their_own(
    config: ModelConfig, window: tuple[Array, Array] | None, rope: RopeTables | None, positions: Array | None, T: int
) -> dict[int, dict[str, Any]]:
    """What :attr:`Context.by_layer` is: the interval of the layers with a sliding window, and the tables of RoPE.

    Parameters
    ----------
    config : ModelConfig
    window : tuple of arrays
        `first` and `last` of each token in the layers with a sliding window; None without such layers.
    rope, positions, T
        For the tables of those layers, if they have a base of their own: see :meth:`RopeTables.at`.
    """
    own: dict[int, dict[str, Any]] = {i: {} for i in range(config.n_layers)}
    if window is not None:
        table = {}
        if rope is not None and config.local_rope_theta is not None:
            table = dict(zip(("cos", "sin"), rope.at(positions, T, is_local=True), strict=True))
        for i in config.window_layers or own:
            own[i] |= {"first": window[0], "last": window[1], **table}
    for i in own.keys() - set(config.rope_layers or own):
        own[i] |= {"cos": None, "sin": None}
    return {i: changes for i, changes in own.items() if changes}
