"""The one door to a GPU's memory and to kernels: ``empty`` and ``launch``.

A kernel is ``kernels/NAME.cu``; what it is compiled for (types, widths) are ``#define``s before its text. Arguments are checked
against the kernel's own declaration, for a GPU checks nothing: an int where a long long is expected, or a strided array, would
be read as whatever lies there.

`backend` is who runs kernels: CuPy, unless something else is put there. The tests put an emulator there, which compiles the
same sources for the CPU and takes NumPy arrays, so that the same launchers run without a GPU.
"""

import re
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, TWO_BYTES, Array, real_dtype, xp_of
from numllama.cuda import cublas
from numllama.errors import DeviceError

int32, int64 = np.int32, np.int64  # what a launcher writes for an int and a long long

PACKAGED = Path(__file__).parent / "kernels"
KERNELS = PACKAGED if PACKAGED.is_dir() else Path(__file__).parents[2] / "kernels"  # in a wheel, or a checkout

C_NAMES = {
    np.dtype(np.float32): "float", np.dtype(np.float64): "double", BFLOAT16: "bfloat16", np.dtype(np.float16): "half",
    np.dtype(np.int32): "int", np.dtype(np.int64): "long long",
    np.dtype(np.uint8): "unsigned char", np.dtype(np.uint16): "unsigned short", np.dtype(np.uint32): "unsigned",
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in C_NAMES.items()} | {"Index": np.dtype(np.int64)}

FLOATS = (np.dtype(np.float32), np.dtype(np.float64), *TWO_BYTES)

COUNTERS = 64                                           # of blocks that have arrived: kernels/last_block.cuh
MAX_THREADS = 1024                                      # of a block
MAX_BLOCK = (1024, 1024, 64)
MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_BYTES = 48 * 1024                                # without asking
# Asked for, by compute capability (CUDA Programming Guide, "Technical specifications per compute capability"), in KiB.
MAX_SHARED_KIB = {70: 96, 72: 96, 75: 64, 80: 163, 87: 163, 90: 227, 100: 227, 103: 227, 110: 227}
LEAST_SHARED_KIB = 99                                   # sm_86, sm_89, sm_120, and GPUs that are not known here


class Parameter(NamedTuple):
    """One parameter of a kernel: its type in C, what that is in NumPy (None: any), and whether it is a pointer."""

    c_type: str
    dtype: np.dtype | None
    is_pointer: bool


class Program(NamedTuple):
    """A kernel source with its defines, ready to be compiled.

    Attributes
    ----------
    name : str
        The file's, without ``.cu``.
    defines : tuple of (str, str)
    text : str
        Defines, ``common.cuh`` and the file, as one text: a cache of compiled kernels does not look into included files.
    kernels : dict
        The parameters of each kernel by its name.
    """

    name: str
    defines: tuple[tuple[str, str], ...]
    text: str
    kernels: dict[str, tuple[Parameter, ...]]

    def __hash__(self) -> int:
        return hash((self.name, self.defines))


# ------------------------------------------------------------------------------------------------ the door


def empty(like: Array, shape: Sequence[int], dtype: np.dtype | type | str) -> Array:
    """A new array of any content on the device of `like`."""
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
        How many blocks, and threads in each. No block at all: nothing is done.
    args : sequence
        Arrays that are C-contiguous, :func:`strided` ones, None for a null pointer, and NumPy scalars of exactly the declared
        type. A plain number has no type and is refused.
    shared_bytes : int
        Of dynamic shared memory in each block.
    **defines
        What is defined for the source; a dtype stands for its name in C.
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
    """The most shared memory that a block may have on the current GPU."""
    return 1024 * MAX_SHARED_KIB.get(backend.compute_capability(), LEAST_SHARED_KIB)


def zeros(like: Array, shape: Sequence[int], dtype: np.dtype | type | str) -> Array:
    """A new array of zeros on the device of `like`."""
    return backend.zeros(like, shape, dtype)


class strided(NamedTuple):
    """An array of which a kernel gets the strides as well."""

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


# ------------------------------------------------------------------------------------------------ sources


def c_name(value: Any) -> str:
    """A define's value as C reads it."""
    return C_NAMES[value] if isinstance(value, np.dtype) else str(int(value) if isinstance(value, bool) else value)


@cache
def compiled_text(source: str, defines: tuple[tuple[str, str], ...]) -> Program:
    """``kernels/SOURCE.cu`` as one text with nothing left to include, and what its kernels take."""
    lines = [f"#define {name} {value}" for name, value in defines]
    seen: set[str] = set()
    for file in ("common.cuh", f"{source}.cu"):
        _paste(file, lines, seen)
    text = "\n".join(lines) + "\n"
    return Program(source, defines, text, _kernels(text, dict(defines)))


def _paste(file: str, lines: list[str], seen: set[str]) -> None:
    """Append a file's lines, with each file that it includes in its place, once."""
    if file in seen:
        return
    seen.add(file)
    lines.append(f'#line 1 "{file}"')
    for number, line in enumerate((KERNELS / file).read_text(encoding="utf-8").splitlines(), 1):
        if included := re.match(r'\s*#include "([\w.]+)"', line):
            _paste(included[1], lines, seen)
            lines.append(f'#line {number + 1} "{file}"')
        elif line.strip() != "#pragma once":
            lines.append(line)


def _kernels(text: str, defines: dict[str, str]) -> dict[str, tuple[Parameter, ...]]:
    """The parameters of every ``extern "C" __global__ void name(...)``."""
    given = {"DTYPE": "float", **defines}
    known = DTYPES | {name: DTYPES[given[of]] for of, name in re.findall(r"typedef (\w+) (\w+);", text) if of in given}
    known["Real"] = real_dtype(known["Element"])
    pattern = r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)'
    kernels = {}
    for name, declared in re.findall(pattern, re.sub(r"//.*", "", text)):
        parameters = []
        for one in filter(None, map(str.strip, declared.split(","))):
            words = re.sub(r"\b(const|__restrict__)\b|\*", " ", one).split()
            c_type = " ".join(words[:-1])
            parameters.append(Parameter(c_type, known.get(c_type), "*" in one))
        kernels[name] = tuple(parameters)
    return kernels


# ------------------------------------------------------------------------------------------------ what launchers share


def is_uniform(*arrays: Array) -> bool:
    """Whether these are of one floating type that kernels know, and not empty."""
    dtype = arrays[0].dtype
    return dtype in FLOATS and all(a.dtype == dtype and a.size for a in arrays)


def is_plain(*arrays: Array) -> bool:
    """Whether kernels can take these: contiguous, not empty, and all of one floating type."""
    return is_uniform(*arrays) and all(a.flags.c_contiguous for a in arrays)


def ids(tokens: Array) -> Array:
    """Ids as kernels take them, contiguous int32 or int64: they are few, and a view or another type of a batch is copied."""
    dtype = tokens.dtype if tokens.dtype in (np.int32, np.int64) else np.int64
    return xp_of(tokens).ascontiguousarray(tokens, dtype=dtype)


def adjacent(arrays: Sequence[Array], axis: int) -> Array | None:
    """One view of arrays that lie next to each other in memory along an axis; None if they do not."""
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
    """Views of so many rows along an axis, one after the other: what :func:`adjacent` joins."""
    lead = (slice(None),) * (axis % x.ndim)
    return tuple(x[(*lead, slice(start, stop))] for start, stop in pairwise(accumulate(sizes, initial=0)))


def row_stride(x: Array) -> int | None:
    """Elements from one row (the last axis) of an array to the next; None unless all are equally far apart, and have no gaps."""
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
    """How many blocks of `block` it takes to cover n."""
    return -(-n // block)


def width(dtype: np.dtype, *multiples: int, arrays: Iterable[Array] = ()) -> int:
    """How many elements of `dtype` a thread moves at once: 16 bytes, if that divides all `multiples` and every address.

    Parameters
    ----------
    dtype : dtype
        Of activations. Arrays of other types are accessed at the same number of elements.
    *multiples : int
        In elements: a row's length, strides.
    arrays : iterable of arrays
        Those that the kernel accesses that wide; None is left out.
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
    """Launch a kernel (arrays, their size, values) in which each thread takes its own 16 bytes, and the last one what is left.

    Parameters
    ----------
    width_of : dtype
        Of which a thread takes 16 bytes; default that of the first array.
    """
    x = arrays[0]
    n = width(width_of or x.dtype, arrays=arrays)
    args = [*arrays, int64(x.size), *values]
    launch(source, name, blocks(x.size, 256 * n), 256, args, **{"DTYPE": x.dtype, "WIDTH": n} | defines)


# ------------------------------------------------------------------------------------------------ CuPy


@dataclass
class _Function:
    """A compiled kernel, and how much dynamic shared memory it may have by now: 48 KiB hold what is static, too."""

    kernel: Any
    dynamic_bytes: int


class CuPy:
    """Runs kernels with CuPy, compiled by NVRTC when first used and kept on disk by CuPy.

    Attributes
    ----------
    compile_seconds : float
        That went into compiling, or into loading what an earlier process has compiled.
    """

    def __init__(self) -> None:
        self.compile_seconds = 0.0
        self._functions: dict[tuple, _Function] = {}
        self._capabilities: dict[int, int] = {}
        self._counters: dict[tuple[int, int, int], Array] = {}

    def is_ready(self) -> bool:
        """Whether there can be arrays on a GPU: whoever made one has imported CuPy."""
        return "cupy" in sys.modules

    def owns(self, array: Any) -> bool:
        """Whether this is an array on a GPU."""
        cupy = sys.modules.get("cupy")  # None where a test forbids its import
        return cupy is not None and isinstance(array, cupy.ndarray)

    def address(self, array: Array) -> int:
        return array.data.ptr

    def compute_capability(self) -> int:
        """Of the current GPU: 90 for an H200."""
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
        """Zeros, with which kernels count and which they leave as zeros.

        One array for each stream, as two may run at once, and for each thread: their default streams go by the same number.
        """
        cupy = sys.modules["cupy"]
        key = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream().ptr, threading.get_ident()
        if key not in self._counters:
            self._counters[key] = cupy.zeros(COUNTERS, np.uint32)
        return self._counters[key]

    def run(self, program: Program, name: str, grid: tuple, block: tuple, args: list, shared_bytes: int) -> None:
        """Compile if need be, and launch on the current stream."""
        cupy = sys.modules["cupy"]
        device = cupy.cuda.runtime.getDevice()
        for arg in args:
            if isinstance(arg, cupy.ndarray) and arg.size and arg.data.device_id != device:
                raise DeviceError(f"{name} runs on GPU {device}, but was given an array of GPU {arg.data.device_id}")
        function = self._function(program, name, device)
        if shared_bytes > function.dynamic_bytes:  # more than what needs no asking
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
    """How long kernels have been compiled in this process."""
    return getattr(backend, "compile_seconds", 0.0)


def runs_here(values: Iterable[Any]) -> bool:
    """Whether kernels can run on these values: some array among them, or inside of nested tuples, is the backend's."""
    if not backend.is_ready():
        return False
    return any(runs_here(value) if isinstance(value, tuple) else backend.owns(value) for value in values)
