"""A sum of gradients in the order of the shards: each tensor is added as soon as the shard before has added to it.

A sum of floats depends on its order. Here it is always the order of the shards, regardless of how many run at once and how fast;
a shard waits only if it catches up with the one before. So one gradient buffer is enough for any number of workers, nothing
needs clearing, because the first shard overwrites where the others add, and no separate pass sums up buffers.

Workers may be threads or processes. Apart from the sum, they share one array of integers, which counts the shards that have
added to each tensor. It may be in shared memory; waiting workers poll it.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.model.parameters import FlatTensors

POLLS, POLL_SECONDS = 300, 2e-5  # most waits end within a few polls, while the shortest sleep takes 0.1 ms


class ShardFailed(RuntimeError):
    """Another shard has failed."""


class OrderedSum:
    """A sum of gradients, to which shards add in order.

    Parameters
    ----------
    total : FlatTensors
        The buffer; its contents are overwritten in each step.
    state : integer array, shape (len(total) + 1,), optional
        The number of shards that have added to each tensor; last, whether a shard has failed.
    stop : callable, optional
        Called while a shard waits: an orphaned worker may exit here.
    """

    def __init__(self, total: FlatTensors, state: np.ndarray | None = None, stop: Callable[[], Any] | None = None) -> None:
        self.total = total
        self._state = np.zeros(len(total) + 1, dtype=np.int64) if state is None else state
        self._places = {name: i for i, name in enumerate(total)}
        self._stop = stop or (lambda: None)

    def start(self) -> None:
        """Begin a new sum. No shard may be running."""
        self._state[:] = 0

    def fail(self) -> None:
        """Stop the waiting shards, after a shard has failed."""
        self._state[-1] = 1

    @contextmanager
    def shard(self, index: int) -> Iterator["ShardGradients"]:
        """The gradients of shard `index`; an error in the block stops the shards that wait for this one."""
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
    """Yield to other threads; sleep after many polls."""
    if polls < POLLS and hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(POLL_SECONDS)


class ShardGradients:
    """The gradients of one shard (see :class:`~numllama.model.parameters.Gradients`), added to the sum in shard order.

    It has no buffers: an op that added to the sum directly would make the other shards wait for its matrix product.
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
        """None: a gradient is computed first, then added."""

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
