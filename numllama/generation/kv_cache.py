"""KVCache: keys and values of the tokens that a model has seen, so that each token is computed once.

Keys are stored in *slots*, one for each token, the same for all sequences of a batch. Shorter sequences begin later (left
padding), at the slots `starts`. Attention compares slots, RoPE rotates by position, and position = slot − start. A query sees an
interval of slots, first <= s < last:

    first = max(start, slot − window + 1)        last = slot + 1

Where longrope turns a longer text by other angles, all keys are computed again: see :attr:`KVCache.is_stale`.
With a window in all layers, slots that no query will see again are dropped from time to time, many together.
"""

from collections.abc import Sequence
from numbers import Integral
from types import ModuleType

import numpy as np

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.errors import shown
from numllama.generation.config import is_number
from numllama.model import ModelConfig, Transformer
from numllama.ops.rope_scaling import switches_at

LEAST_CAPACITY = 64


class KVCache:
    """Keys and values of a batch of sequences: K heads, not H.

    Parameters
    ----------
    model : Transformer
        Its weights must not change: the cached keys would be wrong.
    batch_size : int
        Number of sequences.
    capacity : int
        Slots allocated at first. Doubles when full, so appending costs amortised constant time.
    window : int, optional
        Each token sees this many tokens, itself included, and the text may be of any length. Without a window a token sees all
        earlier ones, and the model's max_seq_len is the limit.
    starts : sequence of int, optional
        The slot at which each sequence begins, after its padding; default 0.

    Attributes
    ----------
    length : int
        Number of slots filled so far, dropped ones included: the slot of the next token.
    keys, values : array, shape (L, B, K, capacity, D)
    tokens : integer array, shape (B, length or more)
        The ids in the slots, dropped ones included: a later text's common prefix with them is not computed again.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        batch_size: int = 1,
        capacity: int = LEAST_CAPACITY,
        window: int | None = None,
        starts: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        c = self.config = model.config
        for name, value in (("batch_size", batch_size), ("capacity", capacity)):
            if not is_number(value, Integral) or value < 1:
                raise ValueError(f"{name} is {shown(value)}, but must be a whole number of at least 1")
        check_window(window, c.max_seq_len)
        self.xp, self.batch_size, self.window, self._seen = model.xp, int(batch_size), window, most_seen(c, window)
        self.starts = np.zeros(batch_size, dtype=int) if starts is None else np.array(starts)
        check_shape("starts", self.starts, (batch_size,))
        self.length = self.dropped = 0
        self._switches_at, self._is_long = switches_at(c.rope_scaling), False
        self.keys, self.values = (
            self.xp.empty((c.n_layers, batch_size, c.n_kv_heads, capacity, c.head_dim), model.compute_dtype) for _ in range(2)
        )
        self.tokens = np.empty((batch_size, capacity), dtype=np.int64)  # 8 bytes each; keys and values are hundreds

    @property
    def capacity(self) -> int:
        """Number of slots allocated."""
        return self.keys.shape[3]

    @property
    def used(self) -> int:
        """Number of filled slots in memory."""
        return self.length - self.dropped

    # -------------------------------------------------------------------------------------------- for the model

    def reserve(self, B: int, T: int) -> None:
        """Make room for T more tokens in each of B sequences, or raise ValueError if the model has no more positions."""
        if self.batch_size != B:
            raise ValueError(f"kv_cache holds {self.batch_size} sequence(s), but tokens has {B}")
        longest = self.length + T - int(self.starts.min())
        limit = self.config.max_seq_len
        if longest > limit and (self.window is None or self.config.positions == "learned"):
            remedy = f"; a sliding window has no end (window {limit})" if self.config.positions != "learned" else ""
            raise ValueError(f"the sequence would be {longest} tokens long, but max_seq_len is {limit}{remedy}")
        if self.used + T > self.capacity and self._seen is not None:
            self._drop()
        if self.used + T > self.capacity:
            capacity = max(self.used + T, 2 * self.capacity)
            self.keys, self.values = (_longer(self.xp, old, 3, self.used, capacity) for old in (self.keys, self.values))

    def positions(self, T: int, ahead: int = 0) -> Array:
        """Positions of T tokens that follow `ahead` others: (T,), or (B, T) if the sequences begin at different slots."""
        positions = self.length + ahead + np.arange(T)
        if self.starts.any():
            positions = (positions - self.starts[:, None]).clip(0)         # padding may have any position
        return self.xp.asarray(positions)

    def intervals(self, T: int, window: int | None = None, ahead: int = 0) -> tuple[Array | None, Array | None]:
        """The slots in memory that those tokens see, ``first <= s < last``, in a layer's `window`; (None, None): causal."""
        window = smallest(window, self.window)
        if window is None and not self.starts.any():
            return None, None
        slots = self.used + ahead + np.arange(T)                           # (T,)
        first = np.broadcast_to((self.starts - self.dropped)[:, None], (self.batch_size, T)).clip(0)
        if window is not None:
            first = np.maximum(first, slots - window + 1)                  # (B, T)
        return self.xp.asarray(first), self.xp.asarray(slots + 1)

    def append(self, layer: int, k: Array, v: Array, ahead: int = 0) -> tuple[Array, Array]:
        """Store their keys and values (B, K, T, D) in one layer; returns all keys and values so far, (B, K, S, D)."""
        begin = self.used + ahead
        stop = begin + k.shape[2]
        for stored, new in ((self.keys, k), (self.values, v)):
            stored[layer, :, :, begin:stop] = new
        return self.keys[layer, :, :, :stop], self.values[layer, :, :, :stop]

    def advance(self, tokens: np.ndarray) -> None:
        """Count tokens (B, T) as seen, once all layers have stored their keys and values."""
        length = self.length + tokens.shape[1]
        if length > self.tokens.shape[1]:
            self.tokens = _longer(np, self.tokens, 1, self.length, max(length, 2 * self.tokens.shape[1]))
        self.tokens[:, self.length : length] = tokens
        self.length = length
        self._is_long = self._would_be_long(length, self.starts)

    def _drop(self) -> None:
        """Drop the slots that no later token sees: the window's slots move to the front."""
        assert self._seen is not None  # else nothing is dropped
        kept = min(self.used, self._seen - 1)
        old = slice(self.used - kept, self.used)
        for array in (self.keys, self.values):
            array[:, :, :, :kept] = array[:, :, :, old]
        self.dropped = self.length - kept

    # -------------------------------------------------------------------------------------------- for its user

    def rewind(self, length: int) -> None:
        """Forget the tokens from slot `length` on; the next token is written there.

        Raises
        ------
        ValueError
            If the cache holds fewer tokens, or if the window has dropped slots that would be visible.
        """
        if not is_number(length, Integral) or not self._least <= length <= self.length:
            raise ValueError(f"length is {shown(length)}, but this cache can be rewound to {self._least}..{self.length}")
        self.length = int(length)

    def reuse(self, tokens: np.ndarray, starts: np.ndarray) -> int:
        """Rewind to the common prefix with `tokens` (B, T), whose sequences begin at `starts`; returns its length.

        The last token is never reused: its logits are needed.
        """
        check_shape("tokens", tokens, (self.batch_size, None))
        is_same = (self.starts == starts).all() and self._is_long == self._would_be_long(tokens.shape[1], np.asarray(starts))
        n = min(self.length, tokens.shape[1] - 1) if is_same else 0
        same = (self.tokens[:, :n] == tokens[:, :n]) | (np.arange(n) < self.starts[:, None])
        common = int(np.append(same.all(0), False).argmin())
        if common < self._least:  # slots that these tokens see were dropped
            common = self.dropped = 0
        self.length, self.starts = common, np.array(starts)
        return common

    @property
    def is_stale(self) -> bool:
        """Whether with one more token RoPE has other angles for all tokens before it, so that :meth:`reuse` forgets them."""
        return self._is_long != self._would_be_long(self.length + 1, self.starts)

    def _would_be_long(self, length: int, starts: np.ndarray) -> bool:
        """Whether longrope has its list for long texts if the last token stands before slot `length`."""
        return self._switches_at is not None and length - int(starts.min()) > self._switches_at

    @property
    def _least(self) -> int:
        """The shortest length to rewind to: all slots that a token sees there must be in memory."""
        return 0 if self._seen is None or self.dropped == 0 else self.dropped + self._seen - 1

    def take(self, rows: Sequence[int] | np.ndarray) -> None:
        """Keep these sequences, in this order; a row may be repeated."""
        rows = np.asarray(rows)
        on_device = self.xp.asarray(rows)
        self.keys, self.values = self.keys[:, on_device], self.values[:, on_device]
        self.tokens, self.starts, self.batch_size = self.tokens[rows], self.starts[rows], len(rows)


def _longer(xp: ModuleType, old: Array, axis: int, used: int, length: int) -> Array:
    """A copy of the first `used` entries along an axis, with room for `length`."""
    new = xp.empty((*old.shape[:axis], length, *old.shape[axis + 1 :]), old.dtype)
    where = (slice(None),) * axis + (slice(used),)
    new[where] = old[where]
    return new


def most_seen(config: ModelConfig, window: int | None) -> int | None:
    """The most slots that a token sees in any layer, with this `window` in addition to the model's; None: all before it."""
    return smallest(window, config.sliding_window if config.window_layers is None else None)


def smallest(*windows: int | None) -> int | None:
    """The smallest window; None is none."""
    return min((window for window in windows if window is not None), default=None)


def check_window(window: int | None, max_seq_len: int) -> None:
    """Raise ValueError unless `window` is valid for a model with this max_seq_len."""
    if window is not None and (not is_number(window, Integral) or not 1 <= window <= max_seq_len):
        raise ValueError(f"window is {shown(window)}, but must be a whole number in 1..{max_seq_len}, the model's max_seq_len")
