"""Check what a GPU needs, what is installed, and how to fix what is missing.

Parts are checked independently, so that a missing one hides no other. Nothing is changed.
"""

import ctypes
import platform
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_info

from numllama.backend import BFLOAT16, LEAST_CUPY, is_older, to_numpy
from numllama.cpu import doctor as cpu_doctor
from numllama.install import install_command
from numllama.version import __version__

DRIVER_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
LIBRARIES = "cupy_backends.cuda.libs"
NO_DRIVER = "install NVIDIA's driver (https://www.nvidia.com/drivers); then `nvidia-smi` lists the GPU"


class Finding(NamedTuple):
    """One part: what was found, or None if it is missing, and how to fix that."""

    part: str
    found: str | None
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, from the processor to a kernel that runs."""
    return [*_processor(), *_gpu()]


def first_problem(findings: list[Finding]) -> Finding | None:
    """The problem to fix first: each part needs those before it."""
    return next((finding for finding in findings if finding.found is None), None)


def driver_version() -> str | None:
    """The newest CUDA version that the installed driver can run, as ``13.0``; None without a driver."""
    for name in DRIVER_LIBRARIES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return None


def cupy_command(driver: str | None) -> str:
    """The command that installs CuPy and CUDA's libraries for a driver."""
    return install_command("cuda12" if driver and int(driver.split(".")[0]) < 13 else "cuda13")


def _processor() -> Iterator[Finding]:
    yield Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("numllama", __version__)
    yield Finding("NumPy", np.__version__)
    pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    yield Finding("BLAS", "; ".join(map(_blas, pools)) or "NumPy's own")
    yield Finding("CPU", cpu_doctor.cpu_name())
    yield Finding("oneDNN", cpu_doctor.onednn_name())


def _blas(pool: dict) -> str:
    """A library, its kernels for this processor, and its threads."""
    kernels = f", kernels for {pool['architecture']}" if pool.get("architecture") else ""
    return f"{pool['internal_api']} {pool['version']}{kernels}, {pool['num_threads']} thread(s)"


def _gpu() -> Iterator[Finding]:
    driver = driver_version()
    install = cupy_command(driver)
    yield Finding("driver", driver and f"for CUDA up to {driver}", NO_DRIVER)
    names = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in metadata.distributions()}
    packages = sorted(name for name in names if name == "cupy" or name.startswith("cupy-cuda"))
    if len(packages) > 1:
        yield Finding("CuPy", None, f"pip uninstall -y {' '.join(packages)} && {install}")
        return
    package = _look("CuPy", _cupy, install)
    yield package
    if package.found is None:
        return
    needed = [
        _look("GPU", _gpus, NO_DRIVER) if driver else Finding("GPU", None, NO_DRIVER),  # CuPy's own error would mislead
        _look("NVRTC", lambda: ".".join(map(str, import_module(f"{LIBRARIES}.nvrtc").getVersion())), install),
        _look("cuBLAS", lambda: import_module(f"{LIBRARIES}.cublas") and "found", install),
    ]
    yield from needed
    if needed[0].found:
        yield Finding("runs", _how(int(import_module("cupy").cuda.Device().compute_capability)))
    nccl = _look("NCCL", lambda: str(import_module(f"{LIBRARIES}.nccl").get_version()), "")
    yield nccl if nccl.found else Finding("NCCL", "not found, and needed for several GPUs only")
    if driver and all(finding.found for finding in needed):
        yield _look("a kernel", _try_kernel, f"{install} --force-reinstall --no-cache-dir")


def _look(part: str, probe: Callable[[], str], fix: str) -> Finding:
    """The result of a probe; its exception is the reason why the part is missing."""
    try:
        return Finding(part, probe(), fix)
    except Exception as error:  # a partly installed library may raise anything
        reason = " ".join(str(error).split())[:120]
        return Finding(part, None, f"{fix}  ({type(error).__name__}: {reason})")


def _cupy() -> str:
    version = import_module("cupy").__version__
    if is_older(version, LEAST_CUPY):
        raise RuntimeError(f"{version} is older than {LEAST_CUPY}")
    return version


def _gpus() -> str:
    runtime = import_module("cupy").cuda.runtime
    gpus = []
    for i in range(runtime.getDeviceCount()):
        about = runtime.getDeviceProperties(i)
        memory = about["totalGlobalMem"] / 2**30
        gpus.append(f"{i}: {about['name'].decode()}, sm_{about['major']}{about['minor']}, {memory:.0f} GiB")
    if not gpus:
        raise RuntimeError("the driver lists none")
    return "; ".join(gpus)


def _how(capability: int) -> str:
    """How training and generation run on such a GPU."""
    if capability >= 80:
        return "in bfloat16 unless --compute-dtype says otherwise, with flash attention, steps and tokens as CUDA graphs"
    older = "attention by products and a softmax: it is from before 2020 (sm_80)"
    return f"in float32 unless --compute-dtype float16 says otherwise, {older}"


def _try_kernel() -> str:
    """Compare with NumPy: a kernel of ours, a product, and one of CuPy's own in bfloat16, which needs CUDA's headers."""
    from numllama.ops import linear_forward, rmsnorm_forward

    cupy = import_module("cupy")
    x, weight = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    on_gpu = [cupy.asarray(a) for a in (x, weight)]
    for name, run in {
        "rmsnorm": lambda x, weight: rmsnorm_forward(x, weight[0].copy(), 1e-5)[0],
        "a product": lambda x, weight: linear_forward(x, weight)[0],
        "a sum in bfloat16": lambda x, weight: (x.astype(BFLOAT16) + weight.astype(BFLOAT16)).astype(np.float32),
    }.items():
        error = float(abs(to_numpy(run(*on_gpu)) - run(x, weight)).max())
        if not error < 0.1:  # TF32's products are off by some hundredths
            raise RuntimeError(f"{name} on the GPU is off by {error:.1e}")
    return "compiled, launched, and right"
