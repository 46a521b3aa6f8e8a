"""Memory on a GPU and kernels: ``empty`` and ``launch``, through which every launcher goes.

A kernel is ``kernels/NAME.cu``, compiled for the types and widths that ``#define``s before its text name. Arguments are checked
against the kernel's own declaration, because a GPU checks nothing: it would read an int as a long long.

`backend` runs kernels: CuPy, or in tests an emulator that compiles the same sources for the CPU and takes NumPy arrays, so that
the same launchers run without a GPU.
"""

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import TWO_BYTES, Array, xp_of
from numllama.cuda import cublas
from numllama.cuda.sources import Parameter, Program, c_name, compiled_text
from numllama.errors import DeviceError

int32, int64 = np.int32, np.int64  # C's int and long long

FLOATS = (np.dtype(np.float32), np.dtype(np.float64), *TWO_BYTES)

COUNTERS = 64                                           # counters of finished blocks: kernels/last_block.cuh
MAX_THREADS = 1024                                      # in a block
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_BYTES = 48 * 1024                                # without a request
# On request, by compute capability (CUDA Programming Guide, "Technical specifications per compute capability"), in KiB.
MAX_SHARED_KIB = {70: 96, 72: 96, 75: 64, 80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}
LEAST_SHARED_KIB = 99                                   # sm_86, sm_89, sm_120, and GPUs unknown here


# ------------------------------------------------------------------------------------------------ launches


def empty(like: Array, shape: Sequence[int], dtype: np.dtype | type | str) -> Array:
    """A new, uninitialised array on the device of `like`."""
    return backend.empty(like, shape, dtype)


def launch(
    source: str,
    name: str,
    grid: int | Sequence[int],
    block: int | Sequence[int],
    args: Sequence[Any],
    shared_bytes: int = 0,
    **defines: Any,
) -> None:
    """Run the kernel `name` of ``kernels/SOURCE.cu``.

    Parameters
    ----------
    source, name : str
    grid, block : int or tuple of int
        Number of blocks, and of threads in each. Without a block nothing runs.
    args : sequence
        C-contiguous arrays, :func:`strided` ones, None for a null pointer, and NumPy scalars of exactly the declared type. A
        plain number has no type and is refused.
    shared_bytes : int
        Dynamic shared memory of each block.
    **defines
        Defines of the source; a dtype becomes its name in C.
    """
    program = compiled_text(source, tuple(sorted((key, c_name(value)) for key, value in defines.items())))
    grid, block = _three(grid), _three(block)
    if name not in program.kernels:
        raise ValueError(f"kernels/{source}.cu has no kernel {name!r}, but {', '.join(program.kernels)}")
    if min(block) < 1 or prod(block) > MAX_THREADS or any(n > most for n, most in zip(block, MAX_BLOCK, strict=True)):
        raise ValueError(f"{name}: block is {block}, but at most {MAX_BLOCK} and {MAX_THREADS} threads in all are possible")
    if min(grid) < 0 or any(n > most for n, most in zip(grid, MAX_GRID, strict=True)):
        raise ValueError(f"{name}: grid is {grid}, but at most {MAX_GRID} is possible")
    if not 0 <= shared_bytes <= SHARED_BYTES and not 0 <= shared_bytes <= max_shared_bytes():
        raise ValueError(f"{name}: shared_bytes is {shared_bytes}, but must lie in 0..{max_shared_bytes()}")
    args = _checked(name, args, program.kernels[name])
    if 0 not in grid:
        backend.run(program, name, grid, block, args, shared_bytes)


def max_shared_bytes() -> int:
    """The largest shared memory of a block on the current GPU."""
    return 1024 * MAX_SHARED_KIB.get(backend.compute_capability(), LEAST_SHARED_KIB)


def zeros(like: Array, shape: Sequence[int], dtype: np.dtype | type | str) -> Array:
    """A new array of zeros on the device of `like`."""
    return backend.zeros(like, shape, dtype)


class strided(NamedTuple):
    """An array whose strides the kernel gets as well."""

    array: Array


def _three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    given = [sizes] if isinstance(sizes, int) else [*map(int, sizes)]
    x, y, z = given + [1] * (3 - len(given))
    return x, y, z


def _checked(name: str, args: Sequence[Any], parameters: tuple[Parameter, ...]) -> list:
    """The arguments, each an array, a NumPy scalar or None, exactly as the kernel declares them."""
    if len(args) != len(parameters):
        raise TypeError(f"{name} takes {len(parameters)} arguments, not {len(args)}")
    checked = []
    for i, (arg, parameter) in enumerate(zip(args, parameters, strict=True)):
        is_strided = isinstance(arg, strided)
        value = arg.array if is_strided else arg
        if parameter.is_pointer:
            if value is not None:
                if not backend.owns(value):
                    raise TypeError(f"argument {i} of {name} must be an array on the device, not {type(value).__name__}")
                if not (is_strided or value.flags.c_contiguous):
                    raise ValueError(f"argument {i} of {name} must be contiguous, or passed as strided(...)")
        elif not isinstance(value, np.generic):
            raise TypeError(f"argument {i} of {name} must be a NumPy scalar for {parameter.c_type}, not {value!r}")
        if value is not None and parameter.dtype is not None and value.dtype != parameter.dtype:
            raise TypeError(f"argument {i} of {name} is {value.dtype}, but its {parameter.c_type} means {parameter.dtype}")
        checked.append(value)
    return checked


# ------------------------------------------------------------------------------------------------ shared by launchers


def is_uniform(*arrays: Array) -> bool:
    """Whether these have one floating type, known to kernels, and none is empty."""
    dtype = arrays[0].dtype
    return dtype in FLOATS and all(a.dtype == dtype and a.size for a in arrays)


def is_plain(*arrays: Array) -> bool:
    """Whether kernels support these: contiguous, not empty, and of one floating type."""
    return is_uniform(*arrays) and all(a.flags.c_contiguous for a in arrays)


def ids(tokens: Array) -> Array:
    """Ids for a kernel, contiguous int32 or int64. They are few, so a view or another integer type is copied."""
    dtype = tokens.dtype if tokens.dtype in (np.int32, np.int64) else np.int64
    return xp_of(tokens).ascontiguousarray(tokens, dtype=dtype)


def adjacent(arrays: Sequence[Array], axis: int) -> Array | None:
    """One view of arrays that are adjacent in memory along an axis; None if they are not."""
    first, end, n = arrays[0], backend.address(arrays[0]), 0
    axis %= first.ndim
    for array in arrays:
        if not (
            backend.owns(array)
            and array.dtype == first.dtype
            and array.strides == first.strides
            and array.shape[:axis] == first.shape[:axis]
            and array.shape[axis + 1 :] == first.shape[axis + 1 :]
            and backend.address(array) == end
        ):
            return None
        end, n = end + array.shape[axis] * array.strides[axis], n + array.shape[axis]
    return backend.view(first, (*first.shape[:axis], n, *first.shape[axis + 1 :]), first.strides)


def parts(x: Array, sizes: Iterable[int], axis: int) -> tuple[Array, ...]:
    """Consecutive views of these sizes along an axis: the inverse of :func:`adjacent`."""
    lead = (slice(None),) * (axis % x.ndim)
    return tuple(x[(*lead, slice(start, stop))] for start, stop in pairwise(accumulate(sizes, initial=0)))


def row_stride(x: Array) -> int | None:
    """Elements from one row (the last axis) to the next; None unless all rows are equally far apart and contiguous."""
    *lead, C = zip(x.shape, x.strides, strict=True)
    if x.size == 0 or (C[0] > 1 and C[1] != x.dtype.itemsize):
        return None
    step, rows = None, 1  # from row to row, in bytes
    for n, stride in reversed(lead):
        if n > 1:
            step = stride // rows if step is None else step
            if stride != step * rows or stride % rows:
                return None
        rows *= n
    step = C[0] if step is None else step // x.dtype.itemsize
    return step if step >= C[0] else None


def blocks(n: int, block: int) -> int:
    """Number of blocks of `block` that cover n."""
    return -(-n // block)


def width(dtype: np.dtype, *multiples: int, arrays: Iterable[Array] = ()) -> int:
    """Elements of `dtype` that a thread moves in one access: 16 bytes, if that divides all `multiples` and every address.

    Parameters
    ----------
    dtype : dtype
        Type of the activations. Arrays of other types are accessed in the same number of elements.
    *multiples : int
        Row length and strides, in elements.
    arrays : iterable of arrays
        The arrays that the kernel accesses at that width; None is skipped.
    """
    n = 16 // dtype.itemsize
    if any(size % n for size in multiples):
        return 1
    return 1 if any(backend.address(a) % min(16, n * a.dtype.itemsize) for a in arrays if a is not None) else n


def row_block(C: int, width: int) -> tuple[int, int]:
    """Threads for a row of C elements, a multiple of 32, and rows in a block: about 128 threads, more for long rows."""
    threads = 32
    while threads < 512 and threads * width * 4 <= C:
        threads *= 2
    return threads, max(1, 128 // threads)


def elementwise(
    source: str, name: str, arrays: Sequence[Array], values: Sequence[Any] = (), width_of: np.dtype | None = None, **defines: Any
) -> None:
    """Launch a kernel (arrays, their size, values) in which each thread handles 16 bytes, and the last one the remainder.

    Parameters
    ----------
    width_of : dtype
        The type whose 16 bytes a thread handles; default that of the first array.
    """
    x = arrays[0]
    n = width(width_of or x.dtype, arrays=arrays)
    args = [*arrays, int64(x.size), *values]
    launch(source, name, blocks(x.size, 256 * n), 256, args, **{"DTYPE": x.dtype, "WIDTH": n} | defines)


# ------------------------------------------------------------------------------------------------ CuPy


@dataclass
class _Function:
    """A compiled kernel, and its limit of dynamic shared memory: static memory counts towards the 48 KiB."""

    kernel: Any
    dynamic_bytes: int


class CuPy:
    """Runs kernels with CuPy, compiled by NVRTC when first used and kept on disk by CuPy.

    Attributes
    ----------
    compile_seconds : float
        Time spent compiling kernels, or loading those an earlier process compiled.
    """

    def __init__(self) -> None:
        self.compile_seconds = 0.0
        self._functions: dict[tuple, _Function] = {}
        self._capabilities: dict[int, int] = {}
        self._counters: dict[tuple[int, int, int], Array] = {}

    def is_ready(self) -> bool:
        """Whether there can be arrays on a GPU: making one imports CuPy."""
        return "cupy" in sys.modules

    def owns(self, array: Any) -> bool:
        """Whether this is an array on a GPU."""
        cupy = sys.modules.get("cupy")  # None where a test forbids its import
        return cupy is not None and isinstance(array, cupy.ndarray)

    def address(self, array: Array) -> int:
        return array.data.ptr

    def compute_capability(self) -> int:
        """The current GPU's compute capability: 90 for an H200."""
        cuda = sys.modules["cupy"].cuda
        device = cuda.runtime.getDevice()
        if device not in self._capabilities:
            self._capabilities[device] = int(cuda.Device(device).compute_capability)
        return self._capabilities[device]

    def empty(self, like: Array, shape: Sequence[int], dtype: Any) -> Array:
        return sys.modules["cupy"].empty(shape, dtype)

    def zeros(self, like: Array, shape: Sequence[int], dtype: Any) -> Array:
        return sys.modules["cupy"].zeros(shape, dtype)

    def view(self, array: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
        """An array of other shape that begins where this one does; strides in bytes."""
        return sys.modules["cupy"].ndarray(shape, array.dtype, memptr=array.data, strides=strides)

    def counters(self) -> Array:
        """Zeros that kernels count with and reset.

        One array per stream, since streams run concurrently, and per thread: the default streams of all threads share a number.
        """
        cupy = sys.modules["cupy"]
        key = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr, threading.get_ident()
        if key not in self._counters:
            self._counters[key] = cupy.zeros(COUNTERS, np.uint32)
        return self._counters[key]

    def run(self, program: Program, name: str, grid: tuple, block: tuple, args: list, shared_bytes: int) -> None:
        """Compile if necessary, and launch on the current stream."""
        cupy = sys.modules["cupy"]
        device = cupy.cuda.runtime.getDevice()
        for arg in args:
            if isinstance(arg, cupy.ndarray) and arg.size and arg.data.device_id != device:
                raise DeviceError(f"{name} runs on GPU {device}, but was given an array of GPU {arg.data.device_id}")
        function = self._function(program, name, device)
        if shared_bytes > function.dynamic_bytes:  # more than is granted without a request
            function.kernel.max_dynamic_shared_size_bytes = function.dynamic_bytes = shared_bytes
        null = np.uintp(0)
        function.kernel(grid, block, tuple(null if arg is None else arg for arg in args), shared_mem=shared_bytes)

    def _function(self, program: Program, name: str, device: int) -> "_Function":
        key = (program, name, device)
        if key not in self._functions:
            start = time.perf_counter()
            module = sys.modules["cupy"].RawModule(code=program.text, options=("-std=c++17",), backend="nvrtc")
            kernel = module.get_function(name)
            self._functions[key] = _Function(kernel, SHARED_BYTES - kernel.shared_size_bytes)
            self.compile_seconds += time.perf_counter() - start
        return self._functions[key]

    gemm = staticmethod(cublas.gemm)


backend: Any = CuPy()


def compile_seconds() -> float:
    """Time spent compiling kernels in this process."""
    return getattr(backend, "compile_seconds", 0.0)


def runs_here(values: Iterable[Any]) -> bool:
    """Whether kernels can run on these values: an array among them, or in nested tuples, is the backend's."""
    if not backend.is_ready():
        return False
    return any(runs_here(value) if isinstance(value, tuple) else backend.owns(value) for value in values)
