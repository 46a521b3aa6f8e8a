"""Sampling without replacement: each window once per epoch, in an order that is computed and never stored.

N tokens are cut into adjacent windows: window w predicts the tokens w·T + 1 ... w·T + T, so there are W = ⌊(N − 1)/T⌋ windows;
the remainder is not used. A run visits the positions 0, 1, 2, ...; position i belongs to epoch i // W and reads window
π(i mod W). The permutation π of 0 ... W − 1 is keyed by (seed, epoch) and computed one position at a time:

    a Feistel network permutes the numbers of 2k bits, 4ᵏ ≥ W:   (left, right) → (right, left ⊕ hash(right)), a few rounds
    a result of W or more is permuted again until it is below W                           (cycle walking)

The walk ends, because the cycle through a number below W returns to that number; and no two numbers have the same image,
because every step can be undone. (Luby & Rackoff 1988; Black & Rogaway 2002.)

So a run's position in its data is a single number: the windows taken so far.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np

from numllama.hashing import fold_key, mix
from numllama.system.webassembly import thread_pool

ROUNDS = 6


def permuted(places: np.ndarray, n: int, key: Sequence[int]) -> np.ndarray:
    """The images of `places` under the permutation of 0..n-1 with this key.

    Parameters
    ----------
    places : integer array
        Positions in 0..n-1, where n is at most 2**62.
    n : int
    key : sequence of int
        Each key gives its own permutation.

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


def epoch_windows(n: int, seed: int, start: int, stop: int, rows: slice | np.ndarray | None = None) -> np.ndarray:
    """The windows, out of `n`, at the positions `start` to ``stop - 1`` of a run: a pure function of its arguments.

    `rows` selects some of these positions, so that ranks can share a batch.
    """
    epochs, places = np.divmod(np.arange(start, stop)[slice(None) if rows is None else rows], n)
    drawn = np.empty(len(places), dtype=np.int64)
    for epoch in np.unique(epochs):
        drawn[epochs == epoch] = permuted(places[epochs == epoch], n, (seed, int(epoch)))
    return drawn


class Prefetched:
    """A function of a position whose next value is computed on a thread while the current one is used.

    Parameters
    ----------
    make : callable
        Computes the value at a position.
    following : callable
        Returns the position after a given one.
    """

    def __init__(self, make: Callable[[Any], Any], following: Callable[[Any], Any]) -> None:
        self._make, self._following = make, following
        self._thread: Executor | None = None
        self._next: tuple[Any, Future] | None = None

    def __call__(self, position: Any) -> Any:
        """The value at any position; only the one after the last call's is prefetched."""
        ready = self._next[1] if self._next and self._next[0] == position else None
        value = ready.result() if ready else self._make(position)
        following = self._following(position)
        self._thread = self._thread or thread_pool(1, "prefetch")
        self._next = following, self._thread.submit(self._make, following)
        return value

    def close(self) -> None:
        """Stop the thread; another call starts a new one."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None
