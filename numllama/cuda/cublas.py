"""cuBLAS, called without CuPy in between.

CuPy's own functions refuse to be recorded in a CUDA graph. cuBLAS does not, if its workspace is there before; so there is a
handle for each stream, with a workspace of its own, and every product goes through it, recorded or not: the same algorithm, the
same bits. The library is the one that CuPy has loaded.
"""

import ctypes
import os
import sys
from functools import cache
from typing import Any

from numllama.errors import DeviceError

NAMES = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
WORKSPACE_BYTES = 32 * 2**20  # what NVIDIA recommends since Hopper; less would make some products slower
FLOAT32_SUMS = 16             # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: partial sums of two-byte products, too
STATUS = {1: "it was not initialised", 3: "out of memory", 7: "an argument is invalid", 8: "this GPU cannot do it",
          13: "the product failed", 14: "an internal error", 15: "not supported"}  # fmt: skip

_int, _long, _at = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_MATRIX, _MATRICES = (_at, _int, _int), (_at, _int, _int, _long)  # address, type, leading dimension, stride
PROTOTYPES = {  # cublas_api.h
    "cublasCreate_v2": (_at,),
    "cublasSetStream_v2": (_at, _at),
    "cublasSetWorkspace_v2": (_at, _at, ctypes.c_size_t),
    "cublasSetMathMode": (_at, _int),
    "cublasGemmEx": (_at, *(_int,) * 5, _at, *_MATRIX, *_MATRIX, _at, *_MATRIX, _int, _int),
    "cublasGemmStridedBatchedEx": (_at, *(_int,) * 5, _at, *_MATRICES, *_MATRICES, _at, *_MATRICES, _int, _int, _int),
}


def call(name: str, *args: Any) -> None:
    """Call a function of cuBLAS; DeviceError if it fails."""
    status = getattr(library(), name)(*args)
    if status:
        raise DeviceError(f"{name} failed: {STATUS.get(status, 'status')} ({status})")


@cache
def library() -> Any:
    """The library, as CuPy has loaded it, with its functions' types."""
    from cupy_backends.cuda.libs import cublas  # noqa: F401 - loads it

    loaded_only = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)  # not another version that may lie about
    for name in NAMES:
        try:
            found = ctypes.CDLL(name, mode=loaded_only or ctypes.DEFAULT_MODE)
        except OSError:
            continue
        return typed(found)
    raise DeviceError(f"CuPy's cuBLAS is none of {', '.join(NAMES)}: see `numllama doctor`")


def typed(library: Any) -> Any:
    """The library, whose functions then convert their arguments."""
    for name, arguments in PROTOTYPES.items():
        getattr(library, name).argtypes = arguments
    return library


_handles: dict[tuple[int, int], tuple[int, Any]] = {}


def handle() -> int:
    """The handle of the current GPU and stream."""
    cuda = sys.modules["cupy"].cuda
    key = cuda.runtime.getDevice(), cuda.get_current_stream().ptr
    if key not in _handles:
        made = _at()
        call("cublasCreate_v2", ctypes.byref(made))
        workspace = cuda.alloc(WORKSPACE_BYTES)
        call("cublasSetStream_v2", made, key[1])
        call("cublasSetWorkspace_v2", made, workspace.ptr, WORKSPACE_BYTES)  # setting a stream takes the workspace away
        call("cublasSetMathMode", made, FLOAT32_SUMS)
        _handles[key] = made.value, workspace
    return _handles[key][0]
