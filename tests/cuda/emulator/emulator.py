"""Runs kernels on a CPU: the same .cu sources, built with g++, launched by the same launchers over NumPy arrays.

    with emulated():
        out, cache = rmsnorm_forward(x, weight, eps)        # NumPy arrays, through numllama/cuda and kernels/

See runtime.cc for what is emulated. Not modelled: memory ordering between blocks and warps, and anything about speed.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from numllama.cuda import launch

HERE = Path(__file__).parent
FORWARD, BACKWARD, SHUFFLED = range(3)
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
if os.environ.get("NUMLLAMA_EMULATOR_ASAN"):  # the process needs LD_PRELOAD=libasan.so then
    FLAGS += ["-fsanitize=address", "-g"]
_one_at_a_time = threading.Lock()  # the emulated GPU has one set of threads


class EmulatorError(AssertionError):
    """A kernel did what a GPU would not forgive."""


class Emulator:
    """Stands in for CuPy in ``numllama.cuda.launch``.

    Parameters
    ----------
    order : int
        In which order lanes, warps and blocks run: FORWARD, BACKWARD or SHUFFLED.
    seed : int
        Of the shuffling.
    capability : int
        The compute capability of the GPU that this is.

    Attributes
    ----------
    launched : list of str
        The names of the kernels that ran.
    """

    def __init__(self, order=SHUFFLED, seed=0, capability=90):
        self.order, self.seed, self.capability, self.launched = order, seed, capability, []
        self._counters = np.zeros(launch.COUNTERS, np.uint32)

    def is_ready(self):
        return True

    def owns(self, array):
        return isinstance(array, np.ndarray)

    def address(self, array):
        return array.ctypes.data

    def compute_capability(self):
        return self.capability

    def empty(self, like, shape, dtype):
        """Poisoned: NaN in every floating type, -1 or the largest number in integers."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array

    def zeros(self, like, shape, dtype):
        return np.zeros(shape, dtype)

    def view(self, array, shape, strides):
        return np.lib.stride_tricks.as_strided(array, shape, strides)

    def counters(self):
        return self._counters

    def run(self, program, name, grid, block, args, shared_bytes):
        with _one_at_a_time:
            self._run(program, name, grid, block, args, shared_bytes)

    def _run(self, program, name, grid, block, args, shared_bytes):
        library = build(program)
        static = library.emulator_static_shared()  # of all kernels of the file together: never too few
        if static > launch.SHARED_BYTES or static + shared_bytes > launch.max_shared_bytes():
            raise EmulatorError(f"{name} asks for {static} + {shared_bytes} bytes of shared memory, which is too much")
        boxes = [
            ctypes.c_void_p(None if arg is None else arg.ctypes.data)
            if arg is None or isinstance(arg, np.ndarray)
            else (ctypes.c_char * arg.nbytes).from_buffer_copy(arg.tobytes())
            for arg in args
        ]
        pointers = (ctypes.c_void_p * len(boxes))(*[ctypes.addressof(box) for box in boxes])
        self.seed += 1
        three = ctypes.c_uint * 3
        invoke = ctypes.cast(getattr(library, f"invoke_{name}"), ctypes.c_void_p)
        error = library.emulator_launch(
            invoke, three(*grid), three(*block), ctypes.c_ulong(shared_bytes), pointers, self.order, self.seed
        )
        self.launched.append(name)
        if error:
            raise EmulatorError(f"{name}: {error.decode()}")
        if self._counters.any():
            raise EmulatorError(f"{name} leaves a counter that is not zero")

    def gemm(self, left, right, result, M, N, K, batch, beta, alpha=1.0):
        """What cuBLAS does with the same arguments: column-major matrices at addresses, float32 accumulation, beta."""
        a = _matrices(left, batch, *((M, K) if left.flag == 0 else (K, M)))
        b = _matrices(right, batch, *((K, N) if right.flag == 0 else (N, K)))
        c = _matrices(result, batch, M, N)
        a, b = (x.swapaxes(1, 2) if operand.flag else x for x, operand in ((a, left), (b, right)))
        wide = np.float64 if a.dtype == np.float64 else np.float32
        product = wide(alpha) * (a.astype(wide) @ b.astype(wide))
        c[...] = product if beta == 0 else product + wide(beta) * c.astype(wide)
        self.launched.append("gemm")


def _matrices(operand, batch, rows, columns):
    """The column-major matrices that cuBLAS finds at an operand's address; none may reach beyond its array."""
    array, size = operand.array, operand.array.dtype.itemsize
    if operand.leading < rows:
        raise EmulatorError(f"a leading dimension of {operand.leading} for columns of {rows}")
    low, high = np.lib.array_utils.byte_bounds(array)
    end = low + size * ((batch - 1) * operand.stride + (columns - 1) * operand.leading + rows)
    if array.ctypes.data != low or end > high:
        raise EmulatorError("a product reaches beyond its array")
    strides = (operand.stride * size, size, operand.leading * size)
    return np.lib.stride_tricks.as_strided(array, (batch, rows, columns), strides)


@contextmanager
def emulated(order=SHUFFLED, seed=0, capability=90):
    """Within it, kernels run on the emulator. Yields it."""
    before, launch.backend = launch.backend, Emulator(order, seed, capability)
    try:
        yield launch.backend
    finally:
        launch.backend = before


# ------------------------------------------------------------------------------------------------ g++

_libraries = {}


def build(program):
    """The library of a program, compiled unless it is in the cache: a folder of the system's for temporary files."""
    if program in _libraries:
        return _libraries[program]
    main = "\n".join([
        '#include "cuda_on_cpu.h"',
        "namespace {  // else the shared variables of templates could not lie in a section of ours",
        program.text,
        "}",
        *(_invoker(name, parameters) for name, parameters in program.kernels.items()),
    ])  # fmt: skip
    runtime = _compiled((HERE / "runtime.cc").read_text(encoding="utf-8"), ["-c"], ".o", [])
    kernels = _compiled(main, ["-c", "-fsanitize=alignment"], ".o", [])
    library = ctypes.CDLL(str(_compiled("", ["-shared"], ".so", [kernels, runtime])))
    library.emulator_static_shared.restype = ctypes.c_ulong
    library.emulator_launch.restype = ctypes.c_char_p
    _libraries[program] = library
    return library


def _invoker(name, parameters):
    """The function that calls a kernel with the arguments that `void*`s point to, as cuLaunchKernel takes them."""
    values = (f"*({p.c_type}{'*' if p.is_pointer else ''}*)a[{i}]" for i, p in enumerate(parameters))
    return f'extern "C" void invoke_{name}(void** a) {{ {name}({", ".join(values)}); }}'


def _compiled(text, options, suffix, objects):
    """A file that g++ makes from a C++ text or from objects, in the cache under a hash of all that it depends on."""
    folder = Path(tempfile.gettempdir()) / f"numllama-emulator-{getattr(os, 'getuid', int)()}"
    folder.mkdir(exist_ok=True, mode=0o700)
    headers = "".join(path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.h")))
    command = [COMPILER, *FLAGS, *options, "-I", str(HERE)]
    key = hashlib.sha256("\0".join([text, headers, *map(str, objects), *command]).encode()).hexdigest()[:24]
    made = folder / f"{key}{suffix}"
    if not made.exists():
        part = folder / f"{key}-{os.getpid()}{suffix}"
        inputs = list(map(str, objects)) or ["-x", "c++", "-"]
        run = subprocess.run([*command, *inputs, "-o", str(part)], input=text, capture_output=True, encoding="utf-8")
        if run.returncode:
            raise EmulatorError(f"{COMPILER} failed:\n{run.stderr[:4000]}")
        os.replace(part, made)
    return made
