"""How kernels reach CuPy, with a CuPy that only writes down what it is asked for."""

import subprocess
import sys
from itertools import takewhile
from types import SimpleNamespace

import numpy as np
import pytest

from numllama.cuda import launch
from numllama.errors import DeviceError
from numllama.ops import cross_entropy_backward, rmsnorm_backward, rmsnorm_forward, swiglu_forward


class Array(np.ndarray):
    """An array on GPU number `gpu`, as far as launchers look at it."""

    gpu = 0

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data, device_id=self.gpu)


class Function:
    def __init__(self, name, calls):
        self.name, self.calls, self.max_dynamic_shared_size_bytes = name, calls, 48 * 1024

    def __call__(self, grid, block, args, *, shared_mem):
        self.calls.append((self.name, grid, block, args, shared_mem, self.max_dynamic_shared_size_bytes))


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's part in a launch; `modules` are the sources that it is given, `calls` the launches."""
    fake = SimpleNamespace(modules=[], calls=[], ndarray=Array, gpu=0)

    def raw_module(code, options, backend):
        fake.modules.append((code, options, backend))
        return SimpleNamespace(get_function=lambda name: Function(name, fake.calls))

    fake.RawModule = raw_module
    fake.empty = lambda shape, dtype: np.empty(shape, dtype).view(Array)
    fake.ascontiguousarray = np.ascontiguousarray
    fake.cuda = SimpleNamespace(runtime=SimpleNamespace(getDevice=lambda: fake.gpu))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(launch, "backend", launch.CuPy())
    return fake


def on_gpu(*shape, dtype="float32"):
    return np.ones(shape, dtype).view(Array)


def test_a_kernel_is_compiled_once_and_launched_with_typed_arguments(cupy):
    x, weight = on_gpu(5, 96), on_gpu(96)
    for _ in range(2):
        out, (_, _, rstd) = rmsnorm_forward(x, weight, 1e-5)
    assert len(cupy.modules) == 1
    code, options, backend = cupy.modules[0]
    assert code.startswith("#define DTYPE float\n#define WIDTH 4\n") and "rmsnorm_forward" in code
    assert "#include" not in code  # CuPy's cache of compiled kernels would not see what is included
    assert (options, backend) == (("-std=c++17",), "nvrtc")
    name, grid, block, args, shared, _ = cupy.calls[1]
    assert (name, grid, block, shared) == ("rmsnorm_forward", (2, 1, 1), (32, 4, 1), 4 * 96 * 4)
    assert args[0] is out and args[1] is rstd and args[2] is x and args[3] is weight
    assert [type(value) for value in args[4:]] == [np.int32, np.int32, np.float32]


def test_each_gpu_has_its_own_copy_of_a_kernel(cupy):
    x = on_gpu(5, 96)
    swiglu_forward(x, x)
    cupy.gpu = Array.gpu = 1
    try:
        swiglu_forward(x, x)
    finally:
        Array.gpu = 0
    assert len(cupy.modules) == 2


def test_an_array_of_another_gpu_is_refused(cupy):
    x = on_gpu(5, 96)
    cupy.gpu = 1
    with pytest.raises(DeviceError, match=r"^swiglu_forward runs on GPU 1, but was given an array of GPU 0$"):
        swiglu_forward(x, x)
    assert cupy.calls == []


def test_more_shared_memory_than_by_default_is_asked_for(cupy):
    x, weight = on_gpu(2, 6144), on_gpu(6144)
    _, cache = rmsnorm_forward(x, weight, 1e-5)
    rmsnorm_backward(x, cache)
    shared = {name: (asked, allowed) for name, _, _, _, asked, allowed in cupy.calls}
    assert shared["rmsnorm_forward"] == (6144 * 4, 48 * 1024)
    assert shared["rmsnorm_backward"] == (6144 * 12, 6144 * 12)


def test_a_null_pointer_is_one(cupy):
    logits, targets = on_gpu(3, 8), np.zeros(3, np.int64).view(Array)
    cross_entropy_backward(1.0, (logits, targets, on_gpu(3), on_gpu(1).reshape(())))
    args = cupy.calls[0][3]
    assert args[5] == 0 and args[5].dtype == np.uintp
    assert args[6] == 1 and args[6].dtype == np.float32


def test_arrays_of_the_cpu_do_not_reach_cupy(cupy):
    swiglu_forward(np.ones((2, 3), "float32"), np.ones((2, 3), "float32"))
    assert cupy.calls == cupy.modules == []
    with pytest.raises(TypeError, match="argument 1 of swiglu_forward must be an array on the device, not ndarray"):
        args = [on_gpu(4), np.ones(4, "float32"), on_gpu(4), np.int64(4)]
        launch.launch("swiglu", "swiglu_forward", 1, 256, args, DTYPE=np.dtype("float32"), WIDTH=4)


def test_launchers_are_not_even_imported_where_there_is_no_gpu():
    code = (
        "import sys, numllama, numpy\n"
        "x = numpy.ones((2, 3))\n"
        "numllama.ops.swiglu_forward(x, x)\n"
        "sys.exit('numllama.cuda.swiglu' in sys.modules or 'cupy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", sorted(launch.KERNELS.glob("*.cu")), ids=lambda path: path.name)
def test_a_source_opens_with_its_op_how_threads_map_to_rows_what_it_fuses_and_its_floor(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = "\n".join(takewhile(lambda line: line.startswith("//"), lines)).lower()
    assert [word for word in (f"/{path.stem}.py", "rows", "fused", "floor") if word not in head] == []
