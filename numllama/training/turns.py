"""Shards that add to one buffer: each tensor in the order of the shards, as soon as the shard before has added to it.

A sum of floats depends on its order. Here the order is that of the shards, however many run at once and however fast each
is; and a shard waits only where it has caught up with the one before. So one gradient buffer is enough for any number of
threads, nothing needs to be cleared, for the first shard writes where the others add, and no separate pass adds up anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any

from numllama.backend import Array
from numllama.model import Parameters


class Turns:
    """Who may add to which tensor of `total`, in one step.

    Parameters
    ----------
    total : Parameters
        The buffer; whatever is in it is forgotten.

    Attributes
    ----------
    error : BaseException, optional
        What the first shard that failed has raised.
    """

    def __init__(self, total: Parameters) -> None:
        self.total, self.error = total, None
        self._added = dict.fromkeys(total, 0)  # how many shards have added to each tensor
        self._running = 0
        self._changed = Condition()

    @contextmanager
    def shard(self, index: int) -> Iterator["ShardGradients"]:
        """The gradients as shard `index` sees them; an error inside ends the shards that wait for this one."""
        with self._changed:
            self._running += 1
        try:
            yield ShardGradients(self, index)
            self._pass(index)
        except BaseException as error:
            self.fail(error)
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def begin(self, name: str, index: int) -> Array:
        """The tensor of that name, when it is shard `index`'s turn."""
        with self._changed:
            if self._added[name] > index:
                raise ValueError(f"shard {index} adds to {name} for a second time")
            self._changed.wait_for(lambda: self.error or self._added[name] == index)
            if self.error:
                raise RuntimeError("another shard failed")
        return self.total[name]

    def end(self, name: str) -> None:
        """The tensor is the next shard's."""
        with self._changed:
            self._added[name] += 1
            self._changed.notify_all()

    def _pass(self, index: int) -> None:
        """Give up the turns that a shard has not used."""
        for name, added in self._added.items():
            if added <= index:
                view = self.begin(name, index)
                if index == 0:
                    view[...] = 0
                self.end(name)

    def fail(self, error: BaseException) -> None:
        """Let no one wait for a shard that will never come."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()

    def wait_until_idle(self) -> None:
        """Wait for the shards that run; one that has not begun ends at its first turn if there is an error."""
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0)


class ShardGradients:
    """What a shard is given in place of the total: names, shapes and blocks of :class:`Parameters`, to be added to once."""

    def __init__(self, turns: Turns, index: int, prefix: str = "") -> None:
        self.shapes = turns.total.shapes
        self._turns, self._index, self._prefix = turns, index, prefix

    @property
    def blocks(self) -> list["ShardGradients"]:
        """The parts named without ``blocks.{i}.``."""
        return [ShardGradients(self._turns, self._index, f"blocks.{i}.") for i in range(len(self._turns.total.blocks))]

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
