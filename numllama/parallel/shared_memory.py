"""Worker processes: each has the whole model, but weights and gradients lie in memory that all of them share.

Threads exchange the interpreter's lock about a thousand times per step; each process has its own. Pipes carry only the tokens and
the loss of a shard; shared objects are sent by name.
"""

import io
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from numllama.backend import BFLOAT16, real_dtype
from numllama.model import LoraConfig, ModelConfig, Transformer
from numllama.model.lora import adapter_shapes
from numllama.model.parameters import FlatTensors, Parameters, parameter_shapes
from numllama.parallel.ordered_sum import OrderedSum
from numllama.system.machine import training_settings
from numllama.system.processes import Processes


class SharedMemoryWorkers:
    """Processes that work beside this one.

    Parameters
    ----------
    model : Transformer
        Its parameters move to shared memory.
    others : int
        Number of processes.
    moments : sequence of FlatTensors
        An optimizer's, which move there too; of the layout of the trainable parameters.

    Attributes
    ----------
    sum : OrderedSum
        The shared gradients.
    pids : list of int
        The processes.
    """

    def __init__(self, model: Transformer, others: int, moments: Sequence[FlatTensors] = ()) -> None:
        lora = model.adapter.config if model.adapter else None
        shared = Shared(model.config, lora, model.compute_dtype.name, os.memfd_create("numllama"), os.getpid(), len(moments))
        try:
            theirs, rounded, self.sum = shared.open(create=True)
            own = [model.params, *([model.adapter.params] if model.adapter else []), *moments]
            for ours, other in zip(own, theirs, strict=True):
                ours.move(other.flat)
            if rounded is not None:
                model.weights = model.params.in_low_precision(rounded.dtype, rounded)
            self._shared = shared_objects(model, self.sum, moments)
            self._processes = Processes(Worker(shared), others, fds=[shared.fd])
            self.pids = self._processes.pids
        finally:
            os.close(shared.fd)  # the mapping stays

    @staticmethod
    def possible(model: Transformer) -> bool:
        """Whether this system shares memory by file descriptor, and the model is a plain Transformer on the CPU."""
        plain = type(model) is Transformer and (model.dtype == model.compute_dtype or is_mixed(model))
        return hasattr(os, "memfd_create") and plain and model.device == "cpu"

    def shares(self, moments: Sequence[FlatTensors]) -> bool:
        """Whether these moments lie in shared memory."""
        return all(any(moment is other for other in self._shared) for moment in moments)

    def submit(self, function: Callable, *args: Any) -> Future:
        """``function(*args)`` in one of the processes; the function belongs to a module of this package."""
        job = io.BytesIO()
        SharedPickler(job, self._shared).dump((function, args))
        return self._processes.submit(job.getvalue(), failed=self.sum.fail)  # a dead process cannot report it

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


@dataclass(frozen=True)
class Shared:
    """One piece of memory: weights, an adapter if there is one, moments, gradients, and the state of their sum.

    In mixed precision the weights' copy in two bytes follows.

    Attributes
    ----------
    config : ModelConfig
    lora : LoraConfig, optional
    dtype : str
        The model's `compute_dtype`.
    fd : int
        The memory, as a file descriptor.
    owner : int
        The process that made it.
    moments : int
        Number of further buffers, each of the layout of the trainable parameters.
    """

    config: ModelConfig
    lora: LoraConfig | None
    dtype: str
    fd: int
    owner: int
    moments: int

    def open(self, create: bool = False) -> tuple[list[FlatTensors], np.ndarray | None, OrderedSum]:
        """Weights, the adapter if there is one, and moments; the copy in two bytes; the sum of gradients; in this process."""
        weights, adapter = parameter_shapes(self.config), adapter_shapes(self.config, self.lora) if self.lora else None
        trainable, compute = adapter or weights, np.dtype(self.dtype)
        layouts = [weights, *([adapter] if adapter else []), *[trainable] * self.moments, trainable]
        counts = [sum(map(prod, shapes.values())) for shapes in layouts]
        copied = 0 if compute == real_dtype(compute) else sum(prod(shape) for shape in weights.values() if len(shape) > 1)
        sizes = [count * real_dtype(compute).itemsize for count in counts] + [copied * compute.itemsize]
        starts = [0, *accumulate(-(-size // 8) * 8 for size in sizes)]
        length = starts[-1] + 8 * (len(trainable) + 1)
        if create:
            os.ftruncate(self.fd, length)
        import mmap  # which WebAssembly lacks

        memory = memoryview(mmap.mmap(self.fd, length))
        *parts, copy = [memory[at : at + n] for at, n in zip(starts, sizes, strict=False)]
        *buffers, gradients = map(FlatTensors, layouts, (np.frombuffer(part, real_dtype(compute)) for part in parts))
        ordered = OrderedSum(gradients, np.frombuffer(memory[starts[-1] :], np.int64), stop=self._exit_if_orphaned)
        return buffers, np.frombuffer(copy, compute) if copied else None, ordered

    def _exit_if_orphaned(self) -> None:
        if os.getpid() != self.owner and os.getppid() != self.owner:
            os._exit(1)


@dataclass
class Worker:
    """The code of a process: builds its model at the first job, then runs one job after another."""

    shared: Shared
    objects: list | None = None
    settings: Any = None

    def __call__(self, job: bytes) -> Any:
        if self.objects is None:
            settings = training_settings("cpu")
            settings.__enter__()  # until the process ends
            (weights, *moments), rounded, ordered = self.shared.open()
            params = Parameters(weights.shapes, weights.flat)
            if rounded is not None:
                params.in_low_precision(rounded.dtype, rounded)
            model = Transformer(self.shared.config, compute_dtype=self.shared.dtype, params=params)
            if self.shared.lora:
                adapter, *moments = moments
                model.add_adapter(self.shared.lora, params=Parameters(adapter.shapes, adapter.flat))
            self.objects, self.settings = shared_objects(model, ordered, moments), settings
        function, args = SharedUnpickler(io.BytesIO(job), self.objects).load()
        return function(*args)


def is_mixed(model: Transformer) -> bool:
    """Whether the model computes with a copy of its float32 weights in bfloat16."""
    return model.compute_dtype == BFLOAT16 and model.dtype == np.float32 and model.adapter is None


def shared_objects(model: Transformer, ordered: OrderedSum, moments: Sequence[FlatTensors]) -> list:
    """Everything that processes share, in the same order on both sides."""
    buffers = [model.params, model.trainable, ordered.total, *moments]
    return [model, ordered, *buffers, *(buffer.flat for buffer in buffers)]


class SharedPickler(pickle.Pickler):
    """Pickles shared objects as their places in a list."""

    def __init__(self, file: io.BytesIO, objects: Sequence) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._places = {id(thing): place for place, thing in enumerate(objects)}

    def persistent_id(self, obj: Any) -> int | None:
        place = self._places.get(id(obj))
        if place is None and type(obj) in (FlatTensors, Parameters):  # isinstance is slow for a Mapping
            raise TypeError("parameters that are not shared cannot be sent")
        return place


class SharedUnpickler(pickle.Unpickler):
    """Reads the output of :class:`SharedPickler`."""

    def __init__(self, file: io.BytesIO, objects: Sequence) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: int) -> Any:
        return self._objects[pid]
