"""Processes that run shards: each has the whole model, but weights and gradients lie in memory that all of them share.

Threads hand the interpreter's lock around some thousand times in a step; processes have one each. What goes through pipes is
a shard's tokens and its loss.
"""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from numllama.model import LoraConfig, ModelConfig, Parameters, Transformer
from numllama.model.lora import adapter_shapes
from numllama.model.parameters import parameter_shapes
from numllama.processes import Processes
from numllama.training.turns import Turns


class Team:
    """Processes beside this one.

    Parameters
    ----------
    model : Transformer
        Its parameters move to shared memory.
    others : int
        How many processes.

    Attributes
    ----------
    turns : Turns
        Over shared gradients.
    pids : list of int
        The processes.
    """

    def __init__(self, model: Transformer, others: int) -> None:
        lora = model.adapter.config if model.adapter else None
        shared = Shared(model.config, lora, model.dtype.name, os.memfd_create("numllama"), os.getpid())
        try:
            params, adapter, self.turns = shared.open(create=True)
            model.params.move(params.flat)
            if model.adapter:
                model.adapter.params.move(adapter.flat)
            self._processes = Processes(Member(shared), others, fds=[shared.fd])
            self.pids = self._processes.pids
        finally:
            os.close(shared.fd)  # the mapping stays

    @staticmethod
    def possible(model: Transformer) -> bool:
        """Whether this system can share memory by a file descriptor, and the model is a plain Transformer on the CPU."""
        plain = type(model) is Transformer and model.weights is model.params and model.params.flat.dtype == model.dtype
        return hasattr(os, "memfd_create") and plain and model.device == "cpu"

    def submit(self, function: Callable, *args: Any) -> Future:
        """``function(model, turns, *args)`` in one of the processes; the function belongs to a module of this package."""
        return self._processes.submit((function, args), failed=self.turns.fail)  # a process that is gone cannot say so

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


@dataclass(frozen=True)
class Shared:
    """One piece of memory: weights, an adapter if there is one, gradients of what is learnt, and whose turn it is.

    Attributes
    ----------
    config : ModelConfig
    lora : LoraConfig, optional
    dtype : str
    fd : int
        The memory, as a file descriptor.
    owner : int
        The process that made it.
    """

    config: ModelConfig
    lora: LoraConfig | None
    dtype: str
    fd: int
    owner: int

    def open(self, create: bool = False) -> tuple[Parameters, Parameters | None, Turns]:
        """Weights, adapter and turns in this process."""
        whole, update = parameter_shapes(self.config), adapter_shapes(self.config, self.lora) if self.lora else {}
        layouts = whole, update, update or whole
        sizes = [sum(map(prod, shapes.values())) * np.dtype(self.dtype).itemsize for shapes in layouts]
        starts = [0, *accumulate(-(-size // 8) * 8 for size in sizes)]
        length = starts[-1] + 8 * (len(layouts[-1]) + 1)
        if create:
            os.ftruncate(self.fd, length)
        memory = memoryview(mmap.mmap(self.fd, length))
        parts = [np.frombuffer(memory[at : at + n], self.dtype) for at, n in zip(starts, sizes, strict=False)]
        weights, adapter, gradients = map(Parameters, layouts, parts)
        turns = Turns(gradients, np.frombuffer(memory[starts[-1] :], np.int64), stop=self._end_with_owner)
        return weights, adapter if self.lora else None, turns

    def _end_with_owner(self) -> None:
        if os.getpid() != self.owner and os.getppid() != self.owner:
            os._exit(1)


@dataclass
class Member:
    """What a process of the team does: begins when it is first asked, then answers."""

    shared: Shared
    state: tuple | None = None

    def __call__(self, job: tuple[Callable, tuple]) -> Any:
        if self.state is None:
            from numllama.training.parallel import training_settings  # which knows the team

            settings = training_settings("cpu")
            settings.__enter__()  # until the process ends
            params, adapter, turns = self.shared.open()
            model = Transformer(self.shared.config, dtype=self.shared.dtype, params=params)
            if adapter:
                model.add_adapter(self.shared.lora, params=adapter)
            self.state = model, turns, settings
        function, args = job
        return function(*self.state[:2], *args)
