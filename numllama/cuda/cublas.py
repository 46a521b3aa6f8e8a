"""cuBLAS, called without CuPy in between.

CuPy's own functions refuse to be recorded in a CUDA graph. cuBLAS itself can be, if its workspace is allocated before. So each
thread and stream has a handle with its own workspace, and every product uses it, recorded or not: the same
algorithm, the same bits. The library is the one that CuPy has loaded; others may be installed, such as PyTorch's.
"""

import ctypes
import os
import sys
import threading
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import BFLOAT16, Array
from numllama.errors import DeviceError

NAME = "cublas64_{}.dll" if sys.platform == "win32" else "libcublas.so.{}"  # by CUDA's major version
MOST_HANDLES = 8              # per thread
WORKSPACE_BYTES = 32 * 2**20  # NVIDIA's recommendation since Hopper; less makes some products slower
FLOAT32_SUMS = 16             # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: float32 partial sums of two-byte products
STATUS = {1: "it was not initialised", 3: "out of memory", 7: "an argument is invalid", 8: "this GPU cannot do it",
          13: "the product failed", 14: "an internal error", 15: "not supported"}  # fmt: skip

# cublas_api.h and library_types.h
KINDS = {np.dtype(np.float32): 0, np.dtype(np.float64): 1, np.dtype(np.float16): 2, BFLOAT16: 14}    # cudaDataType
COMPUTE_32F, COMPUTE_64F, COMPUTE_TF32 = 68, 70, 77
NORMAL, TRANSPOSED = 0, 1
ANY_ALGORITHM = -1

# float32 products on tensor cores, with 10 bits of mantissa. The variable is CuPy's own, so one setting serves both.
TF32 = os.environ.get("CUPY_TF32", "0") != "0"

_int, _long, _at = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
_MATRIX, _MATRICES = (_at, _int, _int), (_at, _int, _int, _long)  # address, type, leading dimension, stride
PROTOTYPES = {  # cublas_api.h
    "cublasCreate_v2": (_at,),
    "cublasDestroy_v2": (_at,),
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
    """The library that CuPy has loaded, with its functions' types."""
    from cupy_backends.cuda.libs import cublas  # noqa: F401 - loads it

    name = NAME.format(sys.modules["cupy"].cuda.runtime.runtimeGetVersion() // 1000)
    loaded_only = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_NOW", 0)  # not another installed library of that name
    try:
        found = ctypes.CDLL(name, mode=loaded_only or ctypes.DEFAULT_MODE)
    except OSError as error:
        raise DeviceError(f"CuPy's cuBLAS, {name}, is not loaded: see `numllama doctor`") from error
    for function, arguments in PROTOTYPES.items():
        getattr(found, function).argtypes = arguments  # ctypes then converts arguments
    return found


class Handle:
    """A handle for the current GPU and stream, with a workspace of 32 MiB for partial sums of products.

    Code that records products in a graph keeps the handle, because the graph uses the workspace's address.
    """

    def __init__(self) -> None:
        cuda, made = sys.modules["cupy"].cuda, _at()
        call("cublasCreate_v2", ctypes.byref(made))
        self.value, self.workspace = made.value, cuda.alloc(WORKSPACE_BYTES)
        call("cublasSetStream_v2", made, cuda.get_current_stream().ptr)
        call("cublasSetWorkspace_v2", made, self.workspace.ptr, WORKSPACE_BYTES)  # setting a stream resets the workspace
        call("cublasSetMathMode", made, FLOAT32_SUMS)

    def __del__(self) -> None:
        if getattr(self, "value", None) and not sys.is_finalizing():
            library().cublasDestroy_v2(self.value)


_handles = threading.local()  # two threads must not use a handle at the same time


def handle() -> Handle:
    """This thread's handle for the current GPU and stream."""
    cuda = sys.modules["cupy"].cuda
    key = cuda.runtime.getDevice(), cuda.get_current_stream().ptr
    known: dict[Any, Handle] = _handles.__dict__
    if key not in known:
        while len(known) >= MOST_HANDLES:  # mostly of deleted streams
            known.pop(next(iter(known)))
        known[key] = Handle()
    return known[key]


class Operand(NamedTuple):
    """A matrix, or a batch of them, as cuBLAS sees it."""

    array: Array
    flag: int
    leading: int  # elements from one row (or column) to the next
    stride: int   # elements from one matrix of the batch to the next


def gemm(
    left: Operand, right: Operand, result: Operand, M: int, N: int, K: int, batch: int, beta: float, alpha: float
) -> None:
    """The call on a GPU, with cuBLAS's names: M columns of `left`, N rows of `right`, on the current stream."""
    dtype = left.array.dtype
    double = dtype == np.float64
    compute = COMPUTE_64F if double else COMPUTE_TF32 if TF32 and dtype == np.float32 else COMPUTE_32F
    number = ctypes.c_double if double else ctypes.c_float  # on the host, read before the call returns
    alpha_at, beta_at = (ctypes.byref(number(value)) for value in (alpha, beta))
    (a, b, c), kind, kind_out = (left, right, result), KINDS[dtype], KINDS[result.array.dtype]
    a_at, b_at, c_at = (operand.array.data.ptr for operand in (a, b, c))
    start = handle().value, a.flag, b.flag, M, N, K, alpha_at
    if batch == 1:
        operands = a_at, kind, a.leading, b_at, kind, b.leading, beta_at, c_at, kind_out, c.leading
        call("cublasGemmEx", *start, *operands, compute, ANY_ALGORITHM)
    else:
        operands = (
            a_at, kind, a.leading, a.stride, b_at, kind, b.leading, b.stride, beta_at, c_at, kind_out, c.leading, c.stride, batch,
        )  # fmt: skip
        call("cublasGemmStridedBatchedEx", *start, *operands, compute, ANY_ALGORITHM)
