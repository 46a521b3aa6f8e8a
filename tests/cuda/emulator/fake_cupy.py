"""A CuPy without a GPU: NumPy arrays that mind what CuPy's mind, and kernels on the emulator.

    with fake_gpu() as cupy:
        Transformer(config, device="cuda")                # all of it runs: CuPy's calls, launchers, kernels, CUDA graphs

An array on the "GPU" does not mix with NumPy's arrays. Between ``begin_capture`` and ``end_capture`` nothing is computed: each
operation is written down, with what it reads and writes; whoever wants to see a number then gets an error, as on a GPU. The
graph computes when it is launched. So a step that is replayed is right only if all of it has been recorded.
"""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from emulator import Emulator

from numllama.cuda import launch

recording = None  # a list of functions, while a stream is captured


class CaptureError(RuntimeError):
    """Something that cannot be in a CUDA graph."""


def host(what):
    """Whatever follows waits for the GPU, or needs a number from it."""
    if recording is not None:
        raise CaptureError(f"{what} while a stream is captured")


def plain(value):
    """The same memory as NumPy sees it."""
    if isinstance(value, ndarray):
        return value.memory
    if isinstance(value, tuple | list):
        return type(value)(map(plain, value))
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return value


def compute(function, *args, **kwargs):
    """A new array, or several: function(*args); while recording, of no content until then."""
    args, kwargs = plain(args), {name: plain(value) for name, value in kwargs.items()}
    with np.errstate(all="ignore"):
        results = function(*args, **kwargs)
    several = isinstance(results, tuple)
    arrays = [np.array(result) for result in (results if several else (results,))]
    if recording is not None:
        for array in arrays:
            poison(array)

        def again():
            values = function(*args, **kwargs)
            for array, value in zip(arrays, values if several else (values,), strict=True):
                array[...] = value

        recording.append(again)
    return tuple(map(ndarray, arrays)) if several else ndarray(arrays[0])


def change(function):
    """Run what changes an array in place; later, while recording."""
    if recording is None:
        with np.errstate(all="ignore"):
            function()
    else:
        recording.append(function)


def poison(array):
    """NaN, or the largest integer."""
    if array.dtype.kind in "iu":
        array[...] = np.iinfo(array.dtype).max
    elif array.dtype != bool:
        array[...] = np.nan


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array on the GPU: no NumPy array, and none that becomes one unless it is asked to."""

    def __init__(self, memory):
        self.memory = memory

    def __getattr__(self, name):
        if name in ("shape", "dtype", "strides", "ndim", "size", "itemsize", "nbytes", "flags"):
            return getattr(self.memory, name)
        if name in ("T", "real"):
            return ndarray(getattr(self.memory, name))
        if name in ("reshape", "ravel", "swapaxes", "transpose", "squeeze", "view"):
            return lambda *args, **kwargs: self._moved(name, args, kwargs)
        if name in ("sum", "max", "min", "mean", "any", "all", "argmax", "cumsum", "clip", "copy", "nonzero", "prod"):
            return lambda *args, **kwargs: compute(lambda x: getattr(x, name)(*args, **kwargs), self)
        raise AttributeError(name)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if out is None:
            return compute(getattr(ufunc, method), *inputs, **kwargs)
        ins, outs = plain(inputs), plain(out)
        change(lambda: getattr(ufunc, method)(*ins, out=outs, **kwargs))
        return out[0]

    def __array_function__(self, function, types, args, kwargs):
        raise TypeError(f"numpy.{function.__name__} of an array on the GPU: call it by its module, xp_of(x)")

    def __len__(self):
        return len(self.memory)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key):
        index = key if isinstance(key, tuple) else (key,)
        if any(isinstance(part, ndarray | np.ndarray | list) for part in index):
            return compute(lambda x, key: x[key], self, key)
        return ndarray(self.memory[key if Ellipsis in index else (*index, ...)])

    def __setitem__(self, key, value):
        if not isinstance(value, ndarray | int | float | np.generic):
            raise TypeError(f"Unsupported type {type(value)}")
        x, key, value = plain(self), plain(key), plain(value)
        change(lambda: x.__setitem__(key, value))

    def _moved(self, name, args, kwargs):
        """A view where one is possible, as in CuPy; else a copy, which takes time of its own."""
        there = getattr(self.memory, name)(*args, **kwargs)
        if there.size == 0 or np.shares_memory(there, self.memory):
            return ndarray(there)
        return compute(lambda x: getattr(x, name)(*args, **kwargs), self)

    def astype(self, dtype, copy=True):
        return self if not copy and self.dtype == dtype else compute(lambda x: x.astype(dtype), self)

    def argsort(self, axis=-1, kind=None):
        return compute(lambda x: x.argsort(axis, kind="stable"), self)

    def fill(self, value):
        self[...] = value

    def get(self):
        host("get")
        return self.memory.copy()

    def set(self, values):
        host("set")
        if not isinstance(values, np.ndarray) or values.dtype != self.dtype or values.shape != self.shape:
            raise TypeError("set takes a NumPy array of the same dtype and shape")
        self.memory[...] = values

    @property
    def data(self):
        return SimpleNamespace(ptr=self.memory.ctypes.data, device_id=0)


def _reader(name):
    def read(self, *args):
        host(name)
        return getattr(self.memory, name)(*args)

    return read


for _name in ("__float__", "__int__", "__bool__", "__index__", "item", "tolist"):
    setattr(ndarray, _name, _reader(_name))


# ------------------------------------------------------------------------------------------------ the module

COMPUTED = """
    add all any arange argmax argpartition argsort concatenate cos cumsum divide exp flatnonzero full indices isfinite isin isinf
    isnan log maximum minimum multiply nonzero ones ones_like partition repeat searchsorted sin sort sqrt square stack subtract
    sum take_along_axis tanh tile where zeros zeros_like
"""  # functions of CuPy 14.2 that make new arrays of their arguments as NumPy does


class Module:
    """What ``import cupy`` finds."""

    __name__, __version__, ndarray = "cupy", "14.2.0", ndarray
    float32, float64, int32, int64, newaxis = np.float32, np.float64, np.int32, np.int64, None

    def __init__(self):
        self.cuda = Cuda()

    def __getattr__(self, name):
        if name not in COMPUTED.split():
            raise AttributeError(f"the stand-in for CuPy has no {name}: add it, if CuPy has it")
        function = getattr(np, name)
        if isinstance(function, np.ufunc):
            return function  # which asks its arguments
        return lambda *args, **kwargs: compute(function, *args, **kwargs)

    def asarray(self, values, dtype=None):
        if isinstance(values, ndarray):
            return values if dtype is None or values.dtype == dtype else values.astype(dtype)
        host("a copy from the host")
        return ndarray(np.array(values, dtype))

    array = asarray

    def ascontiguousarray(self, x, dtype=None):
        x = x if dtype is None or x.dtype == dtype else x.astype(dtype)
        return x if x.flags.c_contiguous else x.copy()

    def empty(self, shape, dtype=float):
        array = np.empty(shape, dtype)
        poison(array)
        return ndarray(array)

    def empty_like(self, x):
        array = np.empty_like(plain(x))
        poison(array)
        return ndarray(array)

    def broadcast_to(self, x, shape):
        return ndarray(np.broadcast_to(plain(x), shape))

    def copyto(self, to, from_):
        to[...] = from_

    def put_along_axis(self, x, indices, values, axis):
        x, indices, values = plain((x, indices, values))
        change(lambda: np.put_along_axis(x, indices, values, axis))

    def get_default_memory_pool(self):
        return MemoryPool()


class MemoryPool:
    def malloc(self, size):
        return SimpleNamespace(ptr=0)

    def total_bytes(self):
        return 10**6


class Stream:
    """A stream that can be captured; `graphs` counts how often one was, `broken` makes it fail."""

    graphs, launched, broken = 0, 0, False
    ptr = 7

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def begin_capture(self):
        global recording
        recording = []

    def end_capture(self):
        global recording
        recorded, recording = recording, None
        if Stream.broken:
            raise CaptureError("cudaErrorStreamCaptureInvalidated")
        Stream.graphs += 1

        def launched(stream=None):
            Stream.launched += 1
            for function in recorded:
                function()

        return SimpleNamespace(launch=launched, operations=len(recorded))


class Device:
    compute_capability = "90"

    def __init__(self, index=0):
        self.index = index

    def use(self):
        pass

    def synchronize(self):
        host("synchronize")


class Event:
    def record(self):
        pass

    def synchronize(self):
        host("synchronize")


class Cuda:
    Stream, Device, MemoryPool, Event = Stream, Device, MemoryPool, Event
    runtime = SimpleNamespace(
        getDevice=lambda: 0, getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError, memGetInfo=lambda: (10**9, 10**10),
        getDeviceProperties=lambda i: {"name": b"NVIDIA H200"}, driverGetVersion=lambda: 13000,
    )  # fmt: skip

    def get_elapsed_time(self, start, stop):
        return 1e3

    @contextmanager
    def using_allocator(self, malloc):
        yield


class Gpu(Emulator):
    """The emulator over arrays of the stand-in."""

    def owns(self, array):
        return isinstance(array, ndarray)

    def address(self, array):
        return array.data.ptr

    def empty(self, like, shape, dtype):
        return ndarray(super().empty(like, shape, dtype))

    def zeros(self, like, shape, dtype):
        array = self.empty(like, shape, dtype)
        array[...] = 0
        return array

    def view(self, array, shape, strides):
        return ndarray(super().view(array.memory, shape, strides))

    def counters(self):
        return ndarray(super().counters())

    def run(self, program, name, grid, block, args, shared_bytes):
        args = plain(args)
        change(lambda: Emulator.run(self, program, name, grid, block, args, shared_bytes))

    def gemm(self, left, right, result, *sizes):
        left, right, result = (operand._replace(array=plain(operand.array)) for operand in (left, right, result))
        change(lambda: Emulator.gemm(self, left, right, result, *sizes))


@contextmanager
def fake_gpu():
    """Within it, ``import cupy`` finds the stand-in, and there is one GPU. Yields the backend that runs kernels."""
    module, libraries = Module(), SimpleNamespace(cublas=None, nvrtc=None)
    fakes = {"cupy": module, "cupy_backends": SimpleNamespace(), "cupy_backends.cuda": SimpleNamespace()}
    fakes["cupy_backends.cuda.libs"] = libraries
    before = {name: sys.modules.get(name) for name in fakes}
    backend, launch.backend = launch.backend, Gpu()
    sys.modules.update(fakes)
    Stream.graphs, Stream.launched, Stream.broken = 0, 0, False
    try:
        yield launch.backend
    finally:
        launch.backend = backend
        for name, old in before.items():
            sys.modules.pop(name)
            if old is not None:
                sys.modules[name] = old
