"""Windows without replacement: each one once in an epoch, in an order that nobody has to hold.

The windows of N tokens are neighbours: window w asks for the tokens w·T + 1 ... w·T + T, so that there are W = ⌊(N − 1)/T⌋ of
them; what is left at the end is too short for one more. A run takes the places 0, 1, 2, ...; place i belongs to epoch i // W,
and its window is π(i mod W). The permutation π of 0 ... W − 1 is named by (seed, epoch) and computed place by place:

    a Feistel network permutes the numbers of 2k bits, 4ᵏ ≥ W:   (left, right) → (right, left ⊕ hash(right)), some rounds
    where it leads to W or beyond, it is applied again until it leads back                (cycle walking)

It does lead back, for the cycle on which a number below W lies returns to it; and no two numbers meet, for each is the only one
that leads where it does. (Luby & Rackoff 1988; Black & Rogaway 2002.)

So where a run stands in its data is one number: how many windows it has taken.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from numllama.data.dataset import windows
from numllama.ops.dropout import fold_key, mix

ROUNDS = 6


def permuted(places: np.ndarray, n: int, key: Sequence[int]) -> np.ndarray:
    """Where a permutation of 0..n-1, named by `key`, leads from some places.

    Parameters
    ----------
    places : integer array
        In 0..n-1, which may be up to 2**62.
    n : int
    key : sequence of int
        Another key, another permutation.

    Returns
    -------
    int64 array of the same shape
    """
    half = max(1, (n - 1).bit_length() + 1 >> 1)
    keys = [fold_key((*key, i)) for i in range(ROUNDS)]
    result = np.array(places, dtype=np.int64)
    wanted = np.ones(result.shape, dtype=bool)
    while wanted.any():
        x = result[wanted]
        left, right = x >> half, x & (1 << half) - 1
        for low, high in keys:
            hashed = mix(mix(right.astype(np.uint32) ^ low) ^ high).astype(np.int64)
            left, right = right, left ^ hashed & (1 << half) - 1
        result[wanted] = left << half | right
        wanted = result >= n
    return result


def epoch_batch(
    tokens: Any, batch_size: int, seq_len: int, seed: int, start: int, rows: slice | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The windows at the places `start` to ``start + batch_size - 1``: a function of its arguments alone.

    Parameters
    ----------
    tokens : array or TokenShards
    batch_size, seq_len, seed : int
    start : int
        How many windows were taken before.
    rows : slice or integer array, optional
        The part of the batch that is wanted; only its tokens are read. So ranks share a batch and read nothing twice.

    Returns
    -------
    inputs, targets : int64 arrays, shape (batch_size, seq_len), or fewer rows
        See :func:`numllama.data.dataset.windows`.
    """
    n = (len(tokens) - 1) // seq_len
    epochs, places = np.divmod(np.arange(start, start + batch_size)[slice(None) if rows is None else rows], n)
    drawn = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        drawn[epochs == epoch] = permuted(places[epochs == epoch], n, (seed, int(epoch)))
    return windows(tokens, drawn * seq_len, seq_len)


class Prefetched:
    """A function of a position, whose next value is made on a thread while the present one is used.

    Parameters
    ----------
    make : callable
        Of one integer.
    step : int
        From one position to the next.
    """

    def __init__(self, make: Callable[[int], Any], step: int) -> None:
        self._make, self._step = make, step
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future] | None = None

    def __call__(self, position: int) -> Any:
        """The value at a position, whichever came before."""
        ready = self._next and self._next[0] == position
        value = self._next[1].result() if ready else self._make(position)
        following = position + self._step
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next = following, self._thread.submit(self._make, following)
        return value

    def close(self) -> None:
        """End the thread, until the next call."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None
