"""A GPU that this machine does not have, for the CuPy that people install:   `install()`, then ``import cupy``.

    device memory is the host's; streams, events, capture and graphs work, and fail, as CUDA's do (runtime.cc); programs are
    compiled by the real NVRTC, and launches are refused where a driver refuses them (driver.cc); kernels, CuPy's own too, run on
    the emulator

`Cuda.computes` chooses between two modes: *compute* gives numbers; without it launches are only looked at, which is fast.
`Cuda.lazy` does all work as late as CUDA allows: whoever overwrites a buffer too early, or does not wait, sees it.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cupy_on_cpu as build
import numpy as np

HERE = Path(__file__).resolve().parent
FILES = ("runtime.cc", "driver.cc", "libraries.cc")
DEVICES = 3  # CuPy's pool of memory has a place for each that there is when it is imported
LOADED = ("libcublasLt.so.12", "libcublasLt.so.13", "libnccl.so.2")
FLAGS = ["-std=c++17", "-O2", "-fPIC", "-w", "-shared", "-Wl,-Bsymbolic"]


class Cuda:
    """The device: its settings are attributes to set, and what it has seen are methods."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.__dict__["library"] = library
        for name in ("device_counts", "device_problems", "device_graph"):
            getattr(library, name).restype = ctypes.c_char_p

    def __setattr__(self, name: str, value: int) -> None:
        if name not in ("capability", "devices", "runtime", "computes", "lazy", "memory"):
            raise AttributeError(name)
        self.library.device_set(name.encode(), ctypes.c_longlong(value))

    def reset(self) -> None:
        """Forget what was counted."""
        self.library.device_reset()

    def counts(self) -> Counter:
        """How often things were done: launches, kernels by name, copies, waits, graph launches."""
        lines = self.library.device_counts().decode().splitlines()
        return Counter({name: int(n) for name, n in (line.rsplit("\t", 1) for line in lines)})

    def problems(self) -> list[str]:
        """What CUDA has refused since the last time, and what kernels did that a GPU would not forgive."""
        return self.library.device_problems().decode().splitlines()

    def graph(self) -> Counter:
        """The nodes, by kind, of the graph that was instantiated last."""
        return Counter(self.library.device_graph().decode().splitlines())


_cuda = None


def install() -> Cuda:
    """Let ``import cupy`` find CuPy, and that a GPU. Once for a process."""
    global _cuda
    if _cuda is not None:
        return _cuda
    if "cupy" in sys.modules:
        raise RuntimeError("cupy was imported before")
    site = build.folder()
    emulator = [HERE / "emulate.py", HERE.parent / "emulator/runtime.cc", *HERE.parent.glob("emulator/*.h"), *HERE.rglob("*.*h")]
    key = hashlib.sha256("".join(path.read_text() for path in sorted(emulator)).encode()).hexdigest()[:12]
    cubins, programs = build.cache() / "cubins", build.cache() / f"programs-{key}"
    for folder in (cubins, programs):
        folder.mkdir(exist_ok=True)
    environment = {
        "CUPY_CACHE_DIR": cubins,
        "CUDA_ON_CPU_TEXTS": cubins,  # of the programs that the cubins were made of
        "CUDA_ON_CPU_PROGRAMS": programs,
        "CUDA_ON_CPU_EMULATE": f"'{sys.executable}' '{HERE / 'emulate.py'}'",
        "CUDA_ON_CPU_CUPY": site,
        "CUDA_ON_CPU_NVRTC": nvrtc(),
        "CUPY_ACCELERATORS": "",  # CUB's own reductions are no text that g++ could compile
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    _cuda = Cuda(ctypes.CDLL(str(library(site)), mode=ctypes.RTLD_GLOBAL))
    for path in (cublas(12), cublas(13), *map(nothing, LOADED)):
        ctypes.CDLL(str(path))
    sys.path.insert(0, str(site))
    _cuda.devices = DEVICES
    _sort_without_thrust()
    return _cuda


def nvrtc() -> Path:
    """The real NVRTC, from its wheel."""
    for name in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        found = importlib.util.find_spec(name)
        for place in found.submodule_search_locations if found else ():
            for path in Path(place).glob("lib/libnvrtc.so.*"):
                return path
    raise RuntimeError("pip install nvidia-cuda-nvrtc")


def library(site: Path) -> Path:
    """cuda_on_cpu, with a function that fails for each of CUDA's that it does not have."""
    text = "".join((HERE / name).read_text() for name in ("device.h", *FILES))
    names = (site / build.NAMES).read_text().split()
    fails = [f'extern "C" __attribute__((weak)) int {name}() {{ return missing("{name}"); }}' for name in names]
    missing = 'static int missing(const char* name) { return device::problem(std::string(name) + " is not there", 801); }'
    main = "\n".join(['#include "device.h"', missing, *fails])
    return _compiled(text, main, [str(HERE / name) for name in FILES], build.LIBRARY)


def cublas(major: int) -> Path:
    """libcublas as the package calls it; there are two versions, so that it has to take CuPy's."""
    source, runtime = HERE / "cublas.cc", HERE.parent / "emulator" / "runtime.cc"
    key = source.read_text() + (HERE / "device.h").read_text()
    return _compiled(key, "", [f"-DMAJOR={major}", str(source), str(runtime)], f"libcublas.so.{major}")


def nothing(soname: str) -> Path:
    """A library without a function, which CuPy wants to be loaded before it uses its own module."""
    return _compiled("", "", [], soname)


def _compiled(key: str, main: str, inputs: list[str], soname: str) -> Path:
    folder = build.cache() / "libraries"
    folder.mkdir(exist_ok=True)
    command = [os.environ.get("CXX", "g++"), *FLAGS, f"-I{HERE}", f"-Wl,-soname,{soname}", *inputs, "-x", "c++", "-"]
    made = folder / f"{hashlib.sha256('|'.join([key, main, *command]).encode()).hexdigest()[:16]}-{soname}"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(part)], input=main, text=True, check=True, env={**os.environ, "LD_PRELOAD": ""})
        part.replace(made)
    return made


def properties(number: int) -> dict:
    """What cupy.cuda.runtime.getDeviceProperties says."""
    from cupy.cuda import runtime

    value = {name: runtime.deviceGetAttribute(i, number) for name, i in ATTRIBUTES.items()}
    return {"name": b"a CPU", "totalGlobalMem": runtime.memGetInfo()[1], **value}


ATTRIBUTES = dict(
    maxThreadsPerBlock=1, sharedMemPerBlock=8, warpSize=10, multiProcessorCount=16, maxThreadsPerMultiProcessor=39,
    major=75, minor=76, sharedMemPerMultiprocessor=81, sharedMemPerBlockOptin=97,
)  # fmt: skip


def _sort_without_thrust() -> None:
    """CuPy's sorting is a part that nvcc compiles; here NumPy sorts the same memory. It allocates and waits, as thrust does."""
    import cupy
    import cupy._core._routines_sorting as routines

    def memory(address: int, dtype: np.dtype, shape: tuple) -> np.ndarray:
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * n).from_address(int(address)), dtype).reshape(shape)

    def wait(dtype: np.dtype) -> None:
        if np.dtype(dtype).kind not in "biuf":  # bfloat16, for one
            raise NotImplementedError(f"Sorting arrays with dtype '{dtype}' is not supported")
        cupy.cuda.get_current_stream().synchronize()  # an error in a capture, as thrust's

    class Thrust:
        available = True

        @staticmethod
        def sort(dtype, data, keys, shape):
            wait(dtype)
            values = memory(data, dtype, shape)
            values[...] = np.sort(values, -1, kind="stable")

        @staticmethod
        def argsort(dtype, indices, data, keys, shape):
            wait(dtype)
            values, into = memory(data, dtype, shape), memory(indices, np.intp, shape)
            into[...] = np.argsort(values, -1, kind="stable")
            values[...] = np.take_along_axis(values, into, -1)

    sys.modules["cupy.cuda.thrust"] = cupy.cuda.thrust = Thrust
    routines.thrust = Thrust
