"""KVCache: the keys and values of the tokens that a model has already seen, so that each token is computed once.

Keys lie in *slots*, one for each token, the same for all sequences of a batch. Shorter sequences begin later (left padding):
`starts` says at which slot. Query and key meet by slot, RoPE turns by position, and position = slot − start. What a query
sees is an interval of slots, first <= s < last, as attention takes it:

    first = max(start, slot − window + 1)        last = slot + 1

With a window, slots that nobody will see again are dropped from time to time, many at once.
"""

from collections.abc import Sequence
from numbers import Integral
from types import ModuleType

import numpy as np

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.errors import shown
from numllama.generation.config import is_number
from numllama.model import Transformer

LEAST_CAPACITY = 64


class KVCache:
    """Keys and values of some sequences: K heads, not H.

    Parameters
    ----------
    model : Transformer
        It has to stay as it is: keys of other weights would be wrong.
    batch_size : int
        Sequences.
    capacity : int
        Slots to begin with. Where more are needed their number doubles, so that a token costs the same however many there are.
    window : int, optional
        A token sees this many, itself among them, and there is no end. Without it a token sees all that came before, and
        the model's max_seq_len is the end.
    starts : sequence of int, optional
        The slot at which each sequence begins; default 0. What stands before is padding.

    Attributes
    ----------
    length : int
        Slots that were filled, dropped ones included: the next token's slot.
    keys, values : array, shape (L, B, K, capacity, D)
    tokens : integer array, shape (B, length or more)
        The ids in the slots, dropped ones included: what a later text has in common with them is not computed again.
    """

    def __init__(
        self,
        model: Transformer,
        batch_size: int = 1,
        capacity: int = LEAST_CAPACITY,
        window: int | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        c = self.config = model.config
        for name, value in (("batch_size", batch_size), ("capacity", capacity)):
            if not is_number(value, Integral) or value < 1:
                raise ValueError(f"{name} is {shown(value)}, but must be a whole number of at least 1")
        check_window(window, c.max_seq_len)
        self.xp, self.batch_size, self.window = model.xp, int(batch_size), window
        self.starts = np.zeros(batch_size, dtype=int) if starts is None else np.array(starts)
        check_shape("starts", self.starts, (batch_size,))
        self.length = self.dropped = 0
        self.keys, self.values = (
            self.xp.empty((c.n_layers, batch_size, c.n_kv_heads, capacity, c.head_dim), model.dtype) for _ in range(2)
        )
        self.tokens = np.empty((batch_size, capacity), dtype=np.int64)  # 8 bytes each: keys and values are hundreds

    @property
    def capacity(self) -> int:
        """How many slots there is memory for."""
        return self.keys.shape[3]

    @property
    def used(self) -> int:
        """How many slots are in memory."""
        return self.length - self.dropped

    # -------------------------------------------------------------------------------------------- for the model

    def reserve(self, B: int, T: int) -> None:
        """Make room for T more tokens in each of B sequences, or raise ValueError where the model has no more positions."""
        if self.batch_size != B:
            raise ValueError(f"kv_cache holds {self.batch_size} sequence(s), but tokens has {B}")
        longest = self.length + T - int(self.starts.min())
        limit = self.config.max_seq_len
        if longest > limit and (self.window is None or self.config.positions == "learned"):
            remedy = f"; a sliding window has no end (window {limit})" if self.config.positions != "learned" else ""
            raise ValueError(f"the sequence would be {longest} tokens long, but max_seq_len is {limit}{remedy}")
        if self.used + T > self.capacity and self.window is not None:
            self._drop()
        if self.used + T > self.capacity:
            capacity = max(self.used + T, 2 * self.capacity)
            self.keys, self.values = (_longer(self.xp, old, 3, self.used, capacity) for old in (self.keys, self.values))

    def positions(self, T: int, ahead: int = 0) -> Array:
        """Where the next T tokens, `ahead` from here, stand in their sequences: (T,), or (B, T) where those begin apart."""
        positions = self.length + ahead + np.arange(T)
        if self.starts.any():
            positions = (positions - self.starts[:, None]).clip(0)         # padding stands nowhere: any position will do
        return self.xp.asarray(positions)

    def intervals(self, T: int, ahead: int = 0) -> tuple[Array | None, Array | None]:
        """The slots in memory that those tokens see, ``first <= s < last``; None, None where that is plainly causal."""
        if self.window is None and not self.starts.any():
            return None, None
        slots = self.used + ahead + np.arange(T)                           # (T,)
        first = np.broadcast_to((self.starts - self.dropped)[:, None], (self.batch_size, T)).clip(0)
        if self.window is not None:
            first = np.maximum(first, slots - self.window + 1)             # (B, T)
        return self.xp.asarray(first), self.xp.asarray(slots + 1)

    def append(self, layer: int, k: Array, v: Array, ahead: int = 0) -> tuple[Array, Array]:
        """Store their keys and values (B, K, T, D) in one layer, and return them with all that came before, (B, K, S, D)."""
        begin = self.used + ahead
        stop = begin + k.shape[2]
        for stored, new in ((self.keys, k), (self.values, v)):
            stored[layer, :, :, begin:stop] = new
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, tokens: np.ndarray) -> None:
        """Count tokens (B, T) as seen, once all layers have stored theirs."""
        length = self.length + tokens.shape[1]
        if length > self.tokens.shape[1]:
            self.tokens = _longer(np, self.tokens, 1, self.length, max(length, 2 * self.tokens.shape[1]))
        self.tokens[:, self.length : length] = tokens
        self.length = length

    def _drop(self) -> None:
        """Forget what no later token sees: the window's slots move to the front."""
        kept = min(self.used, self.window - 1)
        old = slice(self.used - kept, self.used)
        for array in (self.keys, self.values):
            array[:, :, :, :kept] = array[:, :, :, old]
        self.dropped = self.length - kept

    # -------------------------------------------------------------------------------------------- for its owner

    def rewind(self, length: int) -> None:
        """Forget the tokens from slot `length` on: the next one is written there.

        Raises
        ------
        ValueError
            If there are not so many, or if the window has moved on too far to go back.
        """
        if not is_number(length, Integral) or not self._least <= length <= self.length:
            raise ValueError(f"length is {shown(length)}, but this cache can be rewound to {self._least}..{self.length}")
        self.length = int(length)

    def reuse(self, tokens: np.ndarray, starts: np.ndarray) -> int:
        """Rewind to what is already here of `tokens` (B, T), which begin at `starts`; returns its length.

        The last token is not reused, for the model has to say what follows it.
        """
        check_shape("tokens", tokens, (self.batch_size, None))
        n = min(self.length, tokens.shape[1] - 1) if (self.starts == starts).all() else 0
        same = (self.tokens[:, :n] == tokens[:, :n]) | (np.arange(n) < self.starts[:, None])
        common = int(np.append(same.all(0), False).argmin())
        if common < self._least:  # what these tokens see is gone
            common = self.dropped = 0
        self.length, self.starts = common, np.array(starts)
        return common

    @property
    def _least(self) -> int:
        """The shortest length to go back to: what a token there sees must be in memory."""
        return 0 if self.dropped == 0 else self.dropped + self.window - 1

    def take(self, rows: Sequence[int]) -> None:
        """Keep these sequences, in this order; a row that is named several times is copied."""
        rows = np.asarray(rows)
        on_device = self.xp.asarray(rows)
        self.keys, self.values = self.keys[:, on_device], self.values[:, on_device]
        self.tokens, self.starts, self.batch_size = self.tokens[rows], self.starts[rows], len(rows)


def _longer(xp: ModuleType, old: Array, axis: int, used: int, length: int) -> Array:
    """An array with room for `length` along an axis, and the first `used` of the old one."""
    new = xp.empty((*old.shape[:axis], length, *old.shape[axis + 1 :]), old.dtype)
    where = (slice(None),) * axis + (slice(used),)
    new[where] = old[where]
    return new


def check_window(window: int | None, max_seq_len: int) -> None:
    """Raise ValueError unless a model of this length can look through such a window."""
    if window is not None and (not is_number(window, Integral) or not 1 <= window <= max_seq_len):
        raise ValueError(f"window is {shown(window)}, but must be a whole number in 1..{max_seq_len}, the model's max_seq_len")
