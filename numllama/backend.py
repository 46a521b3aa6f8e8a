"""NumPy or CuPy, the device and the dtypes. CuPy is imported only when a GPU is requested."""

import math
import re
import sys
from types import ModuleType
from typing import Any

import numpy as np

from numllama.errors import DeviceError, shown
from numllama.install import install_command, required

Array = Any  # a numpy.ndarray or a cupy.ndarray
DTYPES = {"float32": np.float32, "float64": np.float64}
try:
    import ml_dtypes
except ImportError:  # in WebAssembly; no array has this dtype, and `known_dtype` refuses the name
    BFLOAT16 = np.dtype([("ml_dtypes is missing", np.uint16)])
else:
    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LEAST_CUPY = "14.2"  # before it, deleting a memory pool also freed the arrays still allocated from it
LEAST_NUMPY = "2.1.2"  # CuPy needs it for bfloat16
TWO_BYTES = (BFLOAT16, np.dtype(np.float16))  # for storage and a GPU's matrix products; sums are in float32
INT8 = np.dtype(np.int8)  # for storage on a CPU, with scales: see `numllama.cpu.int8`
FLOAT32, FLOAT64 = map(np.dtype, DTYPES.values())
COMPUTE_DTYPES = {  # of weights in each dtype
    FLOAT32: (FLOAT32, *TWO_BYTES), FLOAT64: (FLOAT64,), INT8: (FLOAT32,), **{two: (two, FLOAT32) for two in TWO_BYTES}
}  # fmt: skip


def xp_of(*arrays: Array) -> ModuleType:
    """The module that these arrays belong to: ``cupy`` if any of them lives on a GPU, else ``numpy``."""
    cupy = sys.modules.get("cupy")  # None: not imported, so no array is CuPy's
    if cupy is not None and any(isinstance(array, cupy.ndarray) for array in arrays):
        return cupy
    return np


def array_module(device: str) -> ModuleType:
    """The array module of a device, which becomes the current one.

    Parameters
    ----------
    device : str
        ``"cpu"``, ``"cuda"``, or ``"cuda:N"`` for the N-th GPU.

    Raises
    ------
    ValueError
        For any other name.
    numllama.errors.DeviceError
        If CuPy is not installed, or there is no such GPU.
    """
    name, _, index = device.partition(":")
    if device == "cpu":
        return np
    if name != "cuda" or (index and not index.isdigit()) or device.endswith(":"):
        raise ValueError(f"device is {shown(device)}, but must be 'cpu', 'cuda' or 'cuda:N'")
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            f"device 'cuda' needs CuPy: {install_command('cuda13')} (or cuda12, as nvidia-smi's CUDA version says)"
        ) from error
    if is_older(cupy.__version__, LEAST_CUPY):
        fix = install_command("cuda13")
        raise DeviceError(f"device 'cuda' needs CuPy {LEAST_CUPY} or newer, but this is {cupy.__version__}: {fix} (or cuda12)")
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:  # says "driver too old" even without a driver
        raise DeviceError("device 'cuda' needs an NVIDIA GPU and its driver, and none was found (see nvidia-smi)") from error
    if int(index or 0) >= count:
        raise DeviceError(f"device {shown(device)} was requested, but this machine has {count} GPU(s), counted from 0")
    if is_older(np.__version__, LEAST_NUMPY):
        fix = "pip install -U numpy"
        raise DeviceError(f"device 'cuda' needs NumPy {LEAST_NUMPY} for bfloat16, but this is {np.__version__}: {fix}")
    try:
        from cupy_backends.cuda.libs import cublas, nvrtc  # noqa: F401 - matrix products, and the compiler of the kernels

        nvrtc.getVersion()  # opens the library, which CuPy does only on first use
    except (ImportError, RuntimeError) as error:
        raise DeviceError("device 'cuda' needs cuBLAS and NVRTC, and one is missing: `numllama doctor` says which") from error
    cupy.cuda.Device(int(index or 0)).use()
    return cupy


def is_older(version: str, least: str) -> bool:
    """Whether a library's version, such as 14.2.0 or 15.0.0rc1, is older than the oldest that works."""
    first_numbers = [tuple(map(int, re.findall(r"\d+", text)[: least.count(".") + 1])) for text in (version, least)]
    return first_numbers[0] < first_numbers[1]


def as_array(values: Any) -> Array:
    """Lists and numbers as a NumPy array; arrays are returned unchanged."""
    return values if hasattr(values, "dtype") else np.asarray(values)


def float_dtype(name: str | np.dtype | type) -> np.dtype:
    """The dtype of parameters and activations: ``"float32"`` or ``"float64"``."""
    known = getattr(name, "name", None) or getattr(name, "__name__", name)
    if known not in DTYPES:
        raise ValueError(f"dtype is {shown(known)}, but must be one of {', '.join(DTYPES)}")
    return np.dtype(known)


def known_dtype(name: str | np.dtype | type, argument: str = "dtype") -> np.dtype:
    """One of :func:`float_dtype`, or ``"bfloat16"`` or ``"float16"``; errors call it `argument`."""
    known: Any = getattr(name, "name", None) or getattr(name, "__name__", name)
    if known == "bfloat16":
        required("ml_dtypes", "bfloat16")
    choices = DTYPES | {dtype.name: dtype for dtype in TWO_BYTES}
    if known not in choices:
        raise ValueError(f"{argument} is {shown(known)}, but must be one of {', '.join(choices)}")
    return np.dtype(choices[known])


def model_dtypes(
    dtype: str | np.dtype | None, compute_dtype: str | np.dtype | None, on_cpu: bool = True
) -> tuple[np.dtype, np.dtype]:
    """The dtypes of a model's weights and activations, with defaults for those not given.

    Weights default to float32, or float64 if `compute_dtype` is float64. Activations default to the dtype of the weights, but on
    a CPU to float32 for weights in two bytes.

    Raises
    ------
    ValueError
        If a dtype is unknown, or if the two cannot be combined.
    """
    compute = None if compute_dtype is None else known_dtype(compute_dtype, "compute_dtype")
    if dtype is None:
        weights = real_dtype(np.dtype(np.float32) if compute is None else compute)
    else:
        weights = INT8 if getattr(dtype, "name", dtype) == INT8.name else known_dtype(dtype)
    if compute is None:
        compute = real_dtype(weights) if on_cpu else weights
    elif compute not in COMPUTE_DTYPES[weights]:
        known = ", ".join(choice.name for choice in COMPUTE_DTYPES[weights])
        raise ValueError(f"compute_dtype is {shown(compute.name)}, but must be one of {known} for weights in {weights}")
    return weights, compute


def finfo(dtype: np.dtype | type) -> Any:
    """The limits of a dtype: :func:`numpy.finfo`, which does not know bfloat16."""
    return required("ml_dtypes", "bfloat16").finfo(dtype) if dtype == BFLOAT16 else np.finfo(dtype)


def real_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of statistics, gains, losses and weight gradients for activations of a dtype: float32 for two bytes."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def default_dtype(device: str) -> str:
    """The default dtype of training: bfloat16 on a GPU that supports it (Ampere, 2020, or newer), else float32."""
    xp = array_module(device)
    return "bfloat16" if xp is not np and int(xp.cuda.Device().compute_capability) >= 80 else "float32"


def quiet() -> np.errstate:
    """Context without NumPy's overflow warnings: logits that are not finite raise an error elsewhere."""
    return np.errstate(over="ignore", invalid="ignore", divide="ignore")


def to_numpy(array: Array) -> np.ndarray:
    """The array as a NumPy array; copies only from a GPU."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def write_to(out: Array | None, value: Array) -> Array:
    """Write `value` to `out` and return `out`; without a buffer, return `value` itself."""
    if out is None:
        return value
    out[...] = value
    return out


def add_to(buffer: Array | None, value: Array) -> Array:
    """Add `value` to `buffer` and return `buffer`; without one, return `value` itself."""
    if buffer is None:
        return value
    buffer += value
    return buffer


def erf(x: Array) -> Array:
    """The error function, element by element, in x's dtype."""
    if xp_of(x) is np:
        return np.vectorize(math.erf, otypes=[x.dtype])(x)
    from cupyx.scipy.special import erf as cupy_erf

    return cupy_erf(x)
