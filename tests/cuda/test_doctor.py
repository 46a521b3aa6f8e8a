"""What is missing for a GPU, and the one command that mends it: with every part there, and with each one taken away."""

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from numllama.backend import array_module, default_dtype, out_of_memory
from numllama.cli import main
from numllama.cuda import doctor, launch
from numllama.errors import DeviceError
from numllama.system.install import install_command


class OutOfMemoryError(MemoryError):
    __module__ = "cupy.cuda.memory"


@pytest.fixture
def machine(monkeypatch, gpu):
    """A machine with a driver, CuPy and its libraries, all of them fakes but for the kernels, which the emulator runs."""
    about = {"totalGlobalMem": 140 * 2**30, "name": b"NVIDIA H200", "major": 9, "minor": 0}
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDeviceProperties=lambda i: about, memGetInfo=lambda: (2**20, 2**30),
        CUDARuntimeError=OSError,
    )  # fmt: skip
    array = type("Array", (np.ndarray,), {"get": lambda self: np.asarray(self)})
    device = lambda index=0: SimpleNamespace(use=lambda: None, compute_capability="90")  # noqa: E731
    cupy = SimpleNamespace(
        __version__="14.2.0", ndarray=array, cuda=SimpleNamespace(runtime=runtime, Device=device),
        asarray=lambda x: x.view(array),
    )  # fmt: skip
    libraries = SimpleNamespace(nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)), cublas=SimpleNamespace())
    modules = {
        "cupy": cupy, "cupy_backends": SimpleNamespace(), "cupy_backends.cuda": SimpleNamespace(), doctor.LIBRARIES: libraries,
        f"{doctor.LIBRARIES}.nvrtc": libraries.nvrtc, f"{doctor.LIBRARIES}.cublas": libraries.cublas,
        f"{doctor.LIBRARIES}.nccl": SimpleNamespace(get_version=lambda: 22703),
    }  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(doctor, "driver_version", lambda: "13.0")
    installed = ["numpy", "cupy_cuda13x"]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [SimpleNamespace(metadata={"Name": n}) for n in installed])
    return SimpleNamespace(cupy=cupy, libraries=libraries, installed=installed)


def missing():
    return {part: mend for part, found, mend in doctor.examine() if found is None}


def test_a_machine_that_has_everything(machine, gpu, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "GPU       0: NVIDIA H200, sm_90, 140 GiB\n" in out
    assert "NVRTC     13.0\n" in out and "NCCL      22703\n" in out and "driver    for CUDA up to 13.0\n" in out
    assert "a kernel  compiled, launched, and right\n" in out
    assert out.endswith("device 'cuda' can be used\n")
    assert gpu.launched == ["rmsnorm_forward"] * 2 + ["gemm"] * 2  # on the fakes of the GPU, and on NumPy's arrays


def test_without_a_driver_nothing_misleads(machine, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "driver_version", lambda: None)
    assert missing() == {"driver": doctor.NO_DRIVER, "GPU": doctor.NO_DRIVER}
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 2
    assert capsys.readouterr().out.endswith("device 'cuda' cannot be used yet, mend first: driver\n")


@pytest.mark.parametrize(("driver", "extra"), [("13.0", "cuda13"), ("14.1", "cuda13"), ("12.4", "cuda12"), (None, "cuda13")])
def test_without_cupy_the_command_fits_the_driver(machine, monkeypatch, driver, extra):
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert missing()["CuPy"].startswith(f"{install_command(extra)}  (ModuleNotFoundError: ")


def test_two_cupys_at_once(machine):
    machine.installed.append("cupy-cuda12x")
    assert missing() == {"CuPy": f"pip uninstall -y cupy-cuda12x cupy-cuda13x && {install_command('cuda13')}"}


@pytest.mark.parametrize("part", ["nvrtc", "cublas"])
def test_without_a_library_of_cuda(machine, monkeypatch, part):
    monkeypatch.setitem(sys.modules, f"{doctor.LIBRARIES}.{part}", None)
    delattr(machine.libraries, part)
    (mend,) = missing().values()
    assert mend.startswith(f"{install_command('cuda13')}  (")
    with pytest.raises(DeviceError, match="needs cuBLAS and NVRTC, and one is missing: `numllama doctor` says which"):
        array_module("cuda")


def test_nccl_is_not_asked_of_one_gpu(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{doctor.LIBRARIES}.nccl", None)
    assert missing() == {}


def test_a_gpu_that_computes_nonsense(machine, monkeypatch):
    machine.cupy.asarray = lambda x: (2 + x).view(machine.cupy.ndarray)
    assert "RuntimeError: rmsnorm on the GPU is off by" in missing()["a kernel"]


def test_a_kernel_that_does_not_run(machine, monkeypatch):
    monkeypatch.setattr(launch.backend, "run", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in missing()["a kernel"]


def test_the_drivers_version(monkeypatch):
    def library(name, code=0, version=12040):
        def get_version(pointer):
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_int))[0] = version
            return code

        if name != "nvcuda.dll":
            raise OSError
        return SimpleNamespace(cuDriverGetVersion=get_version)

    monkeypatch.setattr(doctor.ctypes, "CDLL", library)
    assert doctor.driver_version() == "12.4"
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: library(name, code=100))
    assert doctor.driver_version() is None
    monkeypatch.setattr(doctor, "DRIVER_LIBRARIES", ())
    assert doctor.driver_version() is None


@pytest.mark.parametrize(("capability", "dtype"), [("75", "float32"), ("80", "bfloat16"), ("100", "bfloat16")])
def test_training_is_in_bfloat16_where_a_gpu_multiplies_it(machine, capability, dtype):
    machine.cupy.cuda.Device = lambda index=0: SimpleNamespace(use=lambda: None, compute_capability=capability)
    assert default_dtype("cuda") == dtype
    assert default_dtype("cpu") == "float32"


def test_out_of_gpu_memory_says_what_is_free_and_which_settings_to_lower(machine):
    sentence = out_of_memory(OutOfMemoryError("Out of memory allocating 3,221,225,472 bytes"))
    assert sentence == (
        "out of GPU memory, 1 MB of 1,074 MB are free (Out of memory allocating 3,221,225,472 bytes); "
        "lower batch_size or seq_len, or set shards, recompute or dtype bfloat16"
    )
    assert out_of_memory(MemoryError("x")) == "out of memory, a smaller model or batch may fit: x"


@pytest.mark.parametrize(("architecture", "words"), [
    ("SkylakeX", "openblas 0.3, kernels for SkylakeX, 2 thread(s)"), ("Zen", "openblas 0.3, kernels for Zen, 2 thread(s)"),
    (None, "openblas 0.3, 2 thread(s)"),
])  # fmt: skip
def test_the_kernels_that_blas_runs_are_named(monkeypatch, architecture, words):
    pool = dict(user_api="blas", internal_api="openblas", version="0.3", num_threads=2, architecture=architecture)
    monkeypatch.setattr(doctor, "threadpool_info", lambda: [pool, {"user_api": "openmp"}])
    assert next(finding.found for finding in doctor.examine() if finding.part == "BLAS") == words
