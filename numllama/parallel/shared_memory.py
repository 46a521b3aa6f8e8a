"""Processes that run shards: each has the whole model, but weights and gradients lie in memory that all of them share.

Threads hand the interpreter's lock around some thousand times in a step; processes have one each. What goes through pipes is
a shard's tokens and its loss; what they share is sent by name.
"""

import io
import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from numllama.model import LoraConfig, ModelConfig, Parameters, Transformer
from numllama.model.lora import adapter_shapes
from numllama.model.parameters import parameter_shapes
from numllama.parallel.turns import Turns
from numllama.system.machine import training_settings
from numllama.system.processes import Processes


class Team:
    """Processes beside this one.

    Parameters
    ----------
    model : Transformer
        Its parameters move to shared memory.
    others : int
        How many processes.
    moments : sequence of Parameters
        What else moves there: an optimizer's, of the model's layout.

    Attributes
    ----------
    turns : Turns
        Over shared gradients.
    pids : list of int
        The processes.
    """

    def __init__(self, model: Transformer, others: int, moments: Sequence[Parameters] = ()) -> None:
        lora = model.adapter.config if model.adapter else None
        shared = Shared(model.config, lora, model.dtype.name, os.memfd_create("numllama"), os.getpid(), len(moments))
        try:
            buffers, self.turns = shared.open(create=True)
            own = [model.params, *([model.adapter.params] if model.adapter else []), *moments]
            for ours, theirs in zip(own, buffers, strict=True):
                ours.move(theirs.flat)
            self._known = everything(model, self.turns, moments)
            self._processes = Processes(Member(shared), others, fds=[shared.fd])
            self.pids = self._processes.pids
        finally:
            os.close(shared.fd)  # the mapping stays

    @staticmethod
    def possible(model: Transformer) -> bool:
        """Whether this system can share memory by a file descriptor, and the model is a plain Transformer on the CPU."""
        plain = type(model) is Transformer and model.weights is model.params and model.params.flat.dtype == model.dtype
        return hasattr(os, "memfd_create") and plain and model.device == "cpu"

    def shares(self, moments: Sequence[Parameters]) -> bool:
        """Whether they lie in shared memory."""
        return all(any(one is other for other in self._known) for one in moments)

    def submit(self, function: Callable, *args: Any) -> Future:
        """``function(*args)`` in one of the processes; the function belongs to a module of this package."""
        job = io.BytesIO()
        ByName(job, self._known).dump((function, args))
        return self._processes.submit(job.getvalue(), failed=self.turns.fail)  # a process that is gone cannot say so

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
    moments : int
        How many more buffers there are, each of the layout of what is learnt.
    """

    config: ModelConfig
    lora: LoraConfig | None
    dtype: str
    fd: int
    owner: int
    moments: int

    def open(self, create: bool = False) -> tuple[list[Parameters], Turns]:
        """Weights, the adapter if there is one, and moments; and turns, in this process."""
        whole, adapter = parameter_shapes(self.config), adapter_shapes(self.config, self.lora) if self.lora else None
        learnt = adapter or whole
        layouts = [whole, *([adapter] if adapter else []), *[learnt] * self.moments, learnt]
        sizes = [sum(map(prod, shapes.values())) * np.dtype(self.dtype).itemsize for shapes in layouts]
        starts = [0, *accumulate(-(-size // 8) * 8 for size in sizes)]
        length = starts[-1] + 8 * (len(learnt) + 1)
        if create:
            os.ftruncate(self.fd, length)
        memory = memoryview(mmap.mmap(self.fd, length))
        parts = [np.frombuffer(memory[at : at + n], self.dtype) for at, n in zip(starts, sizes, strict=False)]
        *buffers, gradients = map(Parameters, layouts, parts)
        return buffers, Turns(gradients, np.frombuffer(memory[starts[-1] :], np.int64), stop=self._end_with_owner)

    def _end_with_owner(self) -> None:
        if os.getpid() != self.owner and os.getppid() != self.owner:
            os._exit(1)


@dataclass
class Member:
    """What a process of the team does: begins when it is first asked, then answers."""

    shared: Shared
    known: list | None = None
    settings: Any = None

    def __call__(self, job: bytes) -> Any:
        if self.known is None:
            settings = training_settings("cpu")
            settings.__enter__()  # until the process ends
            (params, *moments), turns = self.shared.open()
            model = Transformer(self.shared.config, dtype=self.shared.dtype, params=params)
            if self.shared.lora:
                adapter, *moments = moments
                model.add_adapter(self.shared.lora, params=adapter)
            self.known, self.settings = everything(model, turns, moments), settings
        function, args = Named(io.BytesIO(job), self.known).load()
        return function(*args)


def everything(model: Transformer, turns: Turns, moments: Sequence[Parameters]) -> list:
    """All that is shared, in an order that both sides know."""
    buffers = [model.params, model.learnt, turns.total, *moments]
    return [model, turns, *buffers, *(buffer.flat for buffer in buffers)]


class ByName(pickle.Pickler):
    """Pickles things that the other side has too as their places in a list."""

    def __init__(self, file: io.BytesIO, known: Sequence) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = {id(thing): place for place, thing in enumerate(known)}

    def persistent_id(self, thing: Any) -> int | None:
        place = self._places.get(id(thing))
        if place is None and isinstance(thing, Parameters):
            raise TypeError("parameters that are not shared cannot be sent")
        return place


class Named(pickle.Unpickler):
    """Reads what ByName wrote."""

    def __init__(self, file: io.BytesIO, known: Sequence) -> None:
        super().__init__(file)
        self.persistent_load = known.__getitem__
