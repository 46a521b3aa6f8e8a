"""A sum of gradients in the order of the shards: each tensor is added as soon as the shard before has added to it.

A sum of floats depends on its order. Here the order is that of the shards, however many run at once and however fast each is; and
a shard waits only if it has caught up with the one before. So one gradient buffer is enough for any number of workers, nothing
needs to be cleared, because the first shard writes where the others add, and there is no separate pass that adds up buffers.

Workers may be threads or processes. All that they share besides the sum is an array of integers, which counts for each tensor the
shards that have added to it. It may lie in shared memory; a worker that waits polls it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.model.parameters import FlatTensors

POLLS, POLL_SECONDS = 300, 2e-5  # most waits end after a few polls, but even the shortest sleep takes 0.1 ms


class ShardFailed(RuntimeError):
    """Another shard has failed."""


class OrderedSum:
    """The sum, and the order in which shards add to it.

    Parameters
    ----------
    total : FlatTensors
        The buffer; its contents are overwritten in each step.
    state : integer array, shape (len(total) + 1,), optional
        For each tensor the number of shards that have added to it; at the end, whether a shard has failed.
    stop : callable, optional
        Called while a shard waits: an orphaned worker may exit here.
    """

    def __init__(self, total: FlatTensors, state: np.ndarray | None = None, stop: Callable[[], Any] | None = None) -> None:
        self.total = total
        self._state = np.zeros(len(total) + 1, dtype=np.int64) if state is None else state
        self._places = {name: i for i, name in enumerate(total)}
        self._stop = stop or (lambda: None)

    def start(self) -> None:
        """Begin a new sum, to which no shard has added. No shard may be running."""
        self._state[:] = 0

    def fail(self) -> None:
        """Wake the shards that wait for one that will never come."""
        self._state[-1] = 1

    @contextmanager
    def shard(self, index: int) -> Iterator["ShardGradients"]:
        """The gradients of shard `index`; an error inside ends the shards that wait for this one."""
        try:
            yield ShardGradients(self, index)
            for name, i in self._places.items():
                if self._state[i] <= index:  # the shard has not added to it
                    view = self.acquire(name, index)
                    if index == 0:
                        view[...] = 0
                    self.release(name)
        except BaseException:
            self.fail()
            raise

    def acquire(self, name: str, index: int) -> Array:
        """Wait until shard `index` may add to a tensor, and return the tensor."""
        i = self._places[name]
        if self._state[i] > index:
            raise ValueError(f"shard {index} adds to {name} for a second time")
        polls = 0
        while self._state[i] < index and not self._state[-1]:
            backoff(polls)
            polls += 1
            self._stop()
        if self._state[-1]:
            raise ShardFailed("another shard has failed")
        return self.total[name]

    def release(self, name: str) -> None:
        """Let the next shard add to a tensor."""
        self._state[self._places[name]] += 1


def backoff(polls: int) -> None:
    """Let other threads run, for longer after many polls."""
    if polls < POLLS and hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(POLL_SECONDS)


class ShardGradients:
    """The gradients of one shard (see :class:`~numllama.model.parameters.Gradients`), which are added to the sum in its turn.

    It has no buffers to give: an op that added to the sum itself would make the other shards wait for its product.
    """

    def __init__(self, ordered: OrderedSum, index: int) -> None:
        self.shapes = ordered.total.shapes
        self._sum, self._index = ordered, index

    def __contains__(self, name: object) -> bool:
        return name in self._sum.total

    def add(self, name: str, gradient: Array) -> None:
        """Add the shard's gradient of a parameter."""
        total = self._sum.acquire(name, self._index)
        if self._index == 0:
            total[...] = gradient
        else:
            total += gradient
        self._sum.release(name)

    def buffer(self, name: str) -> None:
        """None: the gradient is computed first, and added afterwards."""

    @contextmanager
    def adding_to(self, name: str) -> Iterator[Array]:
        """The sum of the shards before this one; the next shard waits until the block ends."""
        total = self._sum.acquire(name, self._index)
        if self._index == 0:
            total[...] = 0
        yield total
        self._sum.release(name)

    def layer_done(self, i: int) -> None:
        """Nothing to do: each tensor is passed on as soon as it is added."""
