"""A stream that can be recorded as a CUDA graph, and staging buffers that upload new values from the host."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from math import prod

import numpy as np

from numllama.backend import Array
from numllama.cuda import cublas, launch

ALIGNED = 256  # bytes, as CuPy aligns arrays


class StagingBuffers:
    """Arrays that the host writes and the device reads, uploaded in one copy.

    Attributes
    ----------
    host, device : dict of str to array
    """

    def __init__(self, like: Array, **arrays: tuple[tuple[int, ...], np.dtype]) -> None:
        sizes = [prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values()]
        starts = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes)]).tolist()
        self._host, self._device = np.zeros(starts[-1], np.uint8), launch.empty(like, (starts[-1],), np.uint8)
        self.host, self.device = (
            {
                name: memory[start : start + size].view(dtype).reshape(shape)
                for (name, (shape, dtype)), start, size in zip(arrays.items(), starts, sizes, strict=False)
            }
            for memory in (self._host, self._device)
        )

    def upload(self) -> None:
        """Copy the host's arrays to the device."""
        self._device.set(self._host)


class Stream:
    """A stream that can be recorded, with its own memory pool. It and CuPy's default stream wait for each other."""

    def __init__(self) -> None:
        cuda = sys.modules["cupy"].cuda
        self.stream, self.pool = cuda.Stream(), cuda.MemoryPool()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Context in which CuPy launches on this stream and allocates from this pool."""
        with self.stream, sys.modules["cupy"].cuda.using_allocator(self.pool.malloc):
            yield

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record the launches of `run` as a graph; returns a function that launches it."""
        self.products = cublas.handle()  # kept: the graph uses its workspace
        self.stream.begin_capture()
        try:
            run()
        except BaseException:
            with suppress(Exception):  # the capture has failed already
                self.stream.end_capture()
            raise
        return self.stream.end_capture().launch


_streams = threading.local()


def stream() -> Stream:
    """This thread's stream for generation on the current GPU.

    All sequences share it: a recorded step uses memory from the pool only while it runs, and steps on one stream do not overlap.
    """
    device, known = sys.modules["cupy"].cuda.runtime.getDevice(), _streams.__dict__
    if device not in known:
        known[device] = Stream()
    return known[device]
