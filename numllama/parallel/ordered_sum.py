"""Shards that add to one buffer: each tensor in the order of the shards, as soon as the shard before has added to it.

A sum of floats depends on its order. Here the order is that of the shards, however many run at once and however fast each
is; and a shard waits only where it has caught up with the one before. So one gradient buffer is enough for any number of
workers, nothing needs to be cleared, for the first shard writes where the others add, and no separate pass adds up anything.

Workers may be threads or processes. All that they tell each other is how many shards have added to each tensor: an array of
integers, in shared memory if need be, which a worker that must wait looks at again and again.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.model import Parameters

LOOKS, POLL_SECONDS = 300, 2e-5  # most waits are over after a few looks, but even the shortest sleep takes 0.1 ms


class Stopped(RuntimeError):
    """Another shard has failed."""


class Turns:
    """Who may add to which tensor of `total`.

    Parameters
    ----------
    total : Parameters
        The buffer; whatever is in it is forgotten when a step starts.
    state : integer array, shape (len(total) + 1,), optional
        How many shards have added to each tensor; at the end, whether a shard has failed.
    stop : callable, optional
        Called while a shard waits: a worker that is on its own by now may end here.
    """

    def __init__(self, total: Parameters, state: np.ndarray | None = None, stop: Callable[[], Any] | None = None) -> None:
        self.total = total
        self._state = np.zeros(len(total) + 1, dtype=np.int64) if state is None else state
        self._places = {name: i for i, name in enumerate(total)}
        self._stop = stop or (lambda: None)

    def start(self) -> None:
        """A new step: no shard has added anything. No shard may be running."""
        self._state[:] = 0

    def fail(self) -> None:
        """Let no one wait for a shard that will never come."""
        self._state[-1] = 1

    @contextmanager
    def shard(self, index: int) -> Iterator["ShardGradients"]:
        """The gradients as shard `index` sees them; an error inside ends the shards that wait for this one."""
        try:
            yield ShardGradients(self, index)
            for name, i in self._places.items():
                if self._state[i] <= index:  # a turn that the shard has not used
                    view = self.begin(name, index)
                    if index == 0:
                        view[...] = 0
                    self.end(name)
        except BaseException:
            self.fail()
            raise

    def begin(self, name: str, index: int) -> Array:
        """The tensor of that name, when it is shard `index`'s turn."""
        i = self._places[name]
        if self._state[i] > index:
            raise ValueError(f"shard {index} adds to {name} for a second time")
        looks = 0
        while self._state[i] < index and not self._state[-1]:
            give_way(looks)
            looks += 1
            self._stop()
        if self._state[-1]:
            raise Stopped("another shard has failed")
        return self.total[name]

    def end(self, name: str) -> None:
        """The tensor is the next shard's."""
        self._state[self._places[name]] += 1


def give_way(looks: int) -> None:
    """Let others run, for longer if it has taken many looks."""
    if looks < LOOKS and hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(POLL_SECONDS)


class ShardGradients:
    """What a shard is given in place of the total: names, shapes and blocks of :class:`Parameters`, to be added to once."""

    def __init__(self, turns: Turns, index: int, prefix: str = "") -> None:
        self.shapes = turns.total.shapes
        self._turns, self._index, self._prefix = turns, index, prefix

    @property
    def blocks(self) -> list["ShardGradients"]:
        """The parts named without ``blocks.{i}.``."""
        return [ShardGradients(self._turns, self._index, f"blocks.{i}.") for i in range(len(self._turns.total.blocks))]

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._turns.total

    def __getitem__(self, name: str) -> "_Turn":
        return _Turn(self._turns, self._index, self._prefix + name)

    def __setitem__(self, name: str, value: "_Turn") -> None:
        if not isinstance(value, _Turn):  # the end of g[name] += x, which is done by now
            raise TypeError(f"the gradient of {name} can only be added to")


class _Turn:
    """One tensor, which understands ``+=`` and ``[rows] +=``; waiting happens here, when there is something to add."""

    def __init__(self, turns: Turns, index: int, name: str) -> None:
        self._turns, self._index, self._name = turns, index, name

    def __iadd__(self, x: Array) -> "_Turn":
        view = self._turns.begin(self._name, self._index)
        if self._index == 0:
            view[...] = x
        else:
            view += x
        self._turns.end(self._name)
        return self

    def __getitem__(self, rows: Any) -> Array:
        view = self._turns.begin(self._name, self._index)
        if self._index == 0:
            view[...] = 0
        return view[rows]

    def __setitem__(self, rows: Any, sums: Array) -> None:
        self._turns.total[self._name][rows] = sums
        self._turns.end(self._name)
