"""Windows without replacement: each one once per epoch, in an order that is computed and never stored.

The windows of N tokens lie side by side: window w predicts the tokens w·T + 1 ... w·T + T, so there are W = ⌊(N − 1)/T⌋ windows;
the rest at the end is too short for another. A run takes the places 0, 1, 2, ...; place i belongs to epoch i // W, and its window
is π(i mod W). The permutation π of 0 ... W − 1 is named by (seed, epoch) and computed place by place:

    a Feistel network permutes the numbers of 2k bits, 4ᵏ ≥ W:   (left, right) → (right, left ⊕ hash(right)), some rounds
    if it leads to W or beyond, it is applied again until it leads back                   (cycle walking)

It does lead back, because the cycle through a number below W returns to that number; and no two numbers lead to the same one,
because every step can be undone. (Luby & Rackoff 1988; Black & Rogaway 2002.)

So the number of windows taken so far says where a run stands in its data.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from numllama.ops.dropout import fold_key, mix

ROUNDS = 6


def permuted(places: np.ndarray, n: int, key: Sequence[int]) -> np.ndarray:
    """The images of some places under a permutation of 0..n-1 that is named by `key`.

    Parameters
    ----------
    places : integer array
        In 0..n-1, which may be up to 2**62.
    n : int
    key : sequence of int
        Each key names its own permutation.

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
    """The windows at the places `start` to ``stop - 1`` of a run, out of `n`: a function of its arguments alone.

    `rows` picks some of these places, so that ranks share a batch.
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
        The position after a position.
    """

    def __init__(self, make: Callable[[Any], Any], following: Callable[[Any], Any]) -> None:
        self._make, self._following = make, following
        self._thread: ThreadPoolExecutor | None = None
        self._next: tuple[Any, Future] | None = None

    def __call__(self, position: Any) -> Any:
        """The value at any position; only the one after the last call's is ready."""
        ready = self._next[1] if self._next and self._next[0] == position else None
        value = ready.result() if ready else self._make(position)
        following = self._following(position)
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next = following, self._thread.submit(self._make, following)
        return value

    def close(self) -> None:
        """End the thread, until the next call."""
        if self._thread:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._next = None
