"""What is missing for a GPU, and the one command that mends it: with every part there, and with each one taken away."""

import ctypes
import gc
import re
import sys
from types import SimpleNamespace

import cupy
import numpy as np
import pytest

from numllama.backend import array_module
from numllama.cli import main
from numllama.cuda import doctor, launch
from numllama.errors import DeviceError, explained
from numllama.install import install_command


@pytest.fixture
def machine(monkeypatch, gpu):
    """A machine with a driver, and one CuPy installed by pip."""
    monkeypatch.setattr(doctor, "driver_version", lambda: "13.0")
    installed = ["numpy", "cupy_cuda13x"]
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [SimpleNamespace(metadata={"Name": n}) for n in installed])
    return SimpleNamespace(installed=installed)


def missing():
    return {part: mend for part, found, mend in doctor.examine() if found is None}


def test_a_machine_that_has_everything(machine, gpu, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert "GPU       0: a CPU, sm_90, 64 GiB; 1: a CPU, sm_90, 64 GiB; 2: a CPU, sm_90, 64 GiB\n" in out
    assert "runs      in bfloat16 unless --compute-dtype says otherwise, with flash attention" in out
    assert "NCCL      22605\n" in out and "driver    for CUDA up to 13.0\n" in out
    assert "a kernel  compiled, launched, and right\n" in out
    assert out.endswith("device 'cuda' is available\n")


@pytest.mark.parametrize(("capability", "words"), [(75, "in float32 unless"), (80, "in bfloat16"), (120, "in bfloat16")])
def test_what_runs_how_on_a_gpu(capability, words):
    assert doctor._how(capability).startswith(words)


def test_without_a_driver_nothing_misleads(machine, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "driver_version", lambda: None)
    assert missing() == {"driver": doctor.NO_DRIVER, "GPU": doctor.NO_DRIVER}
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 2
    assert capsys.readouterr().out.endswith("device 'cuda' is not available yet; fix first: driver\n")


@pytest.mark.parametrize(("driver", "extra"), [("13.0", "cuda13"), ("14.1", "cuda13"), ("12.4", "cuda12"), (None, "cuda13")])
def test_without_cupy_the_command_fits_the_driver(machine, monkeypatch, driver, extra):
    monkeypatch.setattr(doctor, "driver_version", lambda: driver)
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert missing()["CuPy"].startswith(f"{install_command(extra)}  (ModuleNotFoundError: ")


def test_two_cupys_at_once(machine):
    machine.installed.append("cupy-cuda12x")
    assert missing() == {"CuPy": f"pip uninstall -y cupy-cuda12x cupy-cuda13x && {install_command('cuda13')}"}


def test_without_the_compiler_for_kernels(machine, monkeypatch):
    """CuPy opens it when it is first used: importing its module says nothing."""
    from cupy_backends.cuda.libs import nvrtc

    def fail():
        raise RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: cannot open shared object file")

    monkeypatch.setattr(nvrtc, "getVersion", fail)
    assert "CuPy failed to load libnvrtc.so.13" in missing()["NVRTC"]
    with pytest.raises(DeviceError, match="needs cuBLAS and NVRTC, and one is missing: `numllama doctor` says which"):
        array_module("cuda")


def test_without_cublas(machine, monkeypatch):
    import cupy_backends.cuda.libs as libraries

    monkeypatch.setitem(sys.modules, f"{doctor.LIBRARIES}.cublas", None)
    monkeypatch.delattr(libraries, "cublas", raising=False)
    (mend,) = (mend for part, mend in missing().items() if part != "a kernel")
    assert mend.startswith(f"{install_command('cuda13')}  (")
    with pytest.raises(DeviceError, match="needs cuBLAS and NVRTC, and one is missing: `numllama doctor` says which"):
        array_module("cuda")


def test_a_numpy_that_cupys_bfloat16_does_not_take(gpu, monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.1.1")
    with pytest.raises(DeviceError, match=r"needs NumPy 2\.1\.2 for bfloat16, but this is 2\.1\.1: pip install -U numpy$"):
        array_module("cuda")


@pytest.mark.parametrize("version", ["13.6.0", "14.1.1", "14.2.0", "15.0.0rc1"])
def test_a_cupy_whose_arrays_do_not_outlive_their_pool(machine, monkeypatch, version):
    monkeypatch.setattr(cupy, "__version__", version)
    if version >= "14.2":
        assert missing() == {} and array_module("cuda") is cupy
        return
    command = install_command("cuda13")
    assert missing() == {"CuPy": f"{command}  (RuntimeError: {version} is older than 14.2)"}
    with pytest.raises(DeviceError) as error:
        array_module("cuda")
    assert str(error.value) == f"device 'cuda' needs CuPy 14.2 or newer, but this is {version}: {command} (or cuda12)"


def test_arrays_outlive_their_pool(gpu):
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        left = cupy.arange(5)
    gc.collect()  # pools of other tests
    before = gpu.counts()["cudaFree"]
    del pool
    gc.collect()
    assert gpu.counts()["cudaFree"] == before
    assert left.tolist() == [0, 1, 2, 3, 4]


def test_nccl_is_not_asked_of_one_gpu(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, f"{doctor.LIBRARIES}.nccl", None)
    assert missing() == {}


def test_a_gpu_that_computes_nonsense(machine, monkeypatch):
    asarray = cupy.asarray
    monkeypatch.setattr(cupy, "asarray", lambda x: asarray(2 + x))
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


def test_out_of_gpu_memory_says_what_is_held_and_free_and_gives_back_what_failed(gpu):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.used_bytes()
    free, total = cupy.cuda.runtime.memGetInfo()
    gpu.memory = total - free + (8 << 20)

    def work():
        held = cupy.empty(2 << 20, np.uint8)
        return held, cupy.empty(1 << 30, np.uint8)

    with pytest.raises(MemoryError) as caught:
        work()
    assert re.fullmatch(
        r"out of GPU memory \(Out of memory allocating 1,073,741,824 bytes \(allocated so far: .*\)\); arrays take [\d,]+ MB, "
        r"and [\d,]+ MB of [\d,]+ MB are free; lower batch_size or seq_len, or set shards, recompute or compute_dtype bfloat16",
        explained(caught.value),
    )
    del caught
    assert pool.used_bytes() <= before  # or less, if there was garbage


def test_out_of_the_hosts_memory():
    assert explained(MemoryError("x")) == "out of memory, a smaller model or batch may fit: x"


def test_errors_of_cuda_and_of_the_compiler_are_one_sentence(gpu):
    with pytest.raises(RuntimeError) as caught:
        cupy.cuda.Device(9).use()
    mend = "`numllama doctor` checks the driver, CuPy and the kernels"
    assert explained(caught.value) == f"the GPU failed, CUDARuntimeError: cudaErrorInvalidDevice: invalid device ordinal; {mend}"
    with pytest.raises(cupy.cuda.compiler.CompileException) as caught:
        cupy.RawModule(code="int f() { return x; }\n" * 100, backend="nvrtc").get_function("f")
    sentence = explained(caught.value)
    assert sentence.startswith("the GPU failed, CompileException: ") and 'identifier "x" is undefined' in sentence
    assert len(sentence) < 400 and "\n" not in sentence


def test_a_command_ends_with_that_sentence(gpu, tmp_path, capsys):
    gpu.memory = 1 << 20
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 500)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(f"train --data {tmp_path / 'text.txt'} --steps 1 --device cuda --out {tmp_path / 'run'}".split())
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: out of GPU memory (Out of memory allocating ")


@pytest.mark.parametrize(("architecture", "words"), [
    ("SkylakeX", "openblas 0.3, kernels for SkylakeX, 2 thread(s)"), ("Zen", "openblas 0.3, kernels for Zen, 2 thread(s)"),
    (None, "openblas 0.3, 2 thread(s)"),
])  # fmt: skip
def test_the_kernels_that_blas_runs_are_named(monkeypatch, architecture, words):
    pool = dict(user_api="blas", internal_api="openblas", version="0.3", num_threads=2, architecture=architecture)
    monkeypatch.setattr(doctor, "threadpool_info", lambda: [pool, {"user_api": "openmp"}])
    assert next(finding.found for finding in doctor.examine() if finding.part == "BLAS") == words
