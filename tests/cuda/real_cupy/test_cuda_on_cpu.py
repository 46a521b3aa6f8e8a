"""The GPU that is not there is as strict as one that is: each thing that CUDA refuses, or leaves to the careful."""

import ctypes
from contextlib import suppress

import cupy
import numpy as np
import pytest

from numllama.backend import BFLOAT16

HALF = r"""
extern "C" __global__ void half_of(float* x, int n) {
  __shared__ float kept[64];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  kept[threadIdx.x % 64] = 0.5f;
  __syncthreads();
  if (i < n) x[i] *= kept[threadIdx.x % 64];
}
extern "C" __global__ void __launch_bounds__(64) few(float* x, int n) { if (threadIdx.x < n) x[threadIdx.x] = n; }
extern "C" __global__ void divergent(float* x, int n) { if (threadIdx.x < 3) __syncthreads(); }
"""


@pytest.fixture
def kernels(gpu):
    module = cupy.RawModule(code=HALF)
    made = {name: module.get_function(name) for name in ("half_of", "few", "divergent")}
    made["half_of"].max_dynamic_shared_size_bytes = 48 * 1024 - 256  # CuPy keeps modules, so they are as the last test left them
    return made


def args(n=100):
    x = cupy.ones(n, dtype=np.float32)
    return x, (x, np.int32(n))


def test_a_kernel_runs(gpu, kernels):
    x, values = args()
    kernels["half_of"]((2,), (64,), values)
    assert (x.get() == 0.5).all()


@pytest.mark.parametrize(("shared", "is_taken"), [(48 * 1024 - 256, True), (48 * 1024 - 255, False), (48 * 1024, False)])
def test_without_asking_48_KiB_hold_static_and_dynamic_memory(gpu, kernels, shared, is_taken):
    _, values = args()
    launch = lambda: kernels["half_of"]((2,), (64,), values, shared_mem=shared)  # noqa: E731
    if is_taken:
        return launch()
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="CUDA_ERROR_INVALID_VALUE"):
        launch()
    assert "more dynamic shared memory than 48896" in gpu.problems()[0]
    kernels["half_of"].max_dynamic_shared_size_bytes = shared
    return launch()


@pytest.mark.parametrize(("capability", "most"), [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)])
def test_what_can_be_asked_for_depends_on_the_gpu(gpu, kernels, capability, most):
    gpu.capability = capability
    kernels["half_of"].max_dynamic_shared_size_bytes = most * 1024 - 256
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernels["half_of"].max_dynamic_shared_size_bytes = most * 1024 - 255
    assert f"but sm_{capability} has {most * 1024}" in gpu.problems()[0]


@pytest.mark.parametrize(("name", "grid", "block", "why"), [
    ("half_of", (1, 65536), (64,), "no such grid"), ("half_of", (1,), (2048,), "no such block"),
    ("few", (1,), (65,), "more threads than __launch_bounds__"),
])  # fmt: skip
def test_launches_that_no_driver_takes(gpu, kernels, name, grid, block, why):
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernels[name](grid, block, args()[1])
    assert why in gpu.problems()[0]


def test_a_barrier_that_some_never_reach(gpu, kernels):
    kernels["divergent"]((1,), (64,), args()[1])
    # CuPy's own kernels may do this, so the kernels of others are not held to it; ours are, in tests/cuda/test_emulator.py
    assert gpu.problems() == []


@pytest.mark.parametrize(("what", "words"), [
    (lambda x: x.get(), "D2H transfers are disallowed"),
    (lambda x: float(x[0]), "D2H transfers are disallowed"),
    (lambda x: cupy.asarray(np.ones(3)), "H2D transfers|disallowed|StreamCapture"),
    (lambda x: cupy.cuda.get_current_stream().synchronize(), "is not permitted|is capturing|StreamCapture"),
    (lambda x: cupy.cuda.Device().synchronize(), "StreamCapture"),
    (lambda x: cupy.sort(x), "StreamCapture|capturing"),
    (lambda x: x[:9].reshape(3, 3) @ x[:9].reshape(3, 3), "calling cuBLAS API during stream capture is currently unsupported"),
    (lambda x: cupy.argsort(x), "StreamCapture|capturing"),
    (lambda x: cupy.partition(x, 3), "StreamCapture|capturing"),
    (lambda x: cupy.concatenate([x] * 9), "disallowed|StreamCapture"),
    (lambda x: cupy.nonzero(x), "disallowed|StreamCapture"),
    (lambda x: x[x > 0], "disallowed|StreamCapture"),
], ids=[
    "get", "float", "asarray", "synchronize", "device", "sort", "matmul", "argsort", "partition", "concatenate", "nonzero",
    "mask",
])  # fmt: skip
def test_what_cannot_be_captured(gpu, what, words):
    x = cupy.ones(16, dtype=np.float32)
    (x @ x).get()
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        try:
            with pytest.raises(Exception, match=words):
                what(x)
        finally:
            with suppress(cupy.cuda.runtime.CUDARuntimeError):
                stream.end_capture()
    gpu.problems()


def test_what_cupy_does_otherwise_than_numpy(gpu):
    """Each of these, a stand-in once forgave."""
    x = cupy.ones(4, dtype=np.float32)
    for call, error in {
        "a NumPy array does not mix": lambda: x + np.ones(4, np.float32),
        "nor is one assigned": lambda: x.__setitem__(slice(None), np.ones(4, np.float32)),
        "nor does NumPy take one of CuPy's": lambda: np.asarray(x),
        "a ufunc has fewer keywords": lambda: cupy.exp(x, subok=True),
        "two bytes are not sorted": lambda: cupy.sort(x.astype(BFLOAT16)),
        "batches of them are not multiplied": lambda: x.reshape(1, 2, 2).astype(BFLOAT16) @ x.reshape(1, 2, 2).astype(BFLOAT16),
    }.items():
        with pytest.raises((TypeError, ValueError, NotImplementedError, RuntimeError)):
            error()
            pytest.fail(call)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    gpu.problems()


def test_the_default_stream_must_rest_while_another_is_captured(gpu):
    x = cupy.ones(16, dtype=np.float32)
    stream = cupy.cuda.Stream()
    stream.begin_capture()
    with pytest.raises(Exception, match="CUDA_ERROR"):
        x += 1
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureInvalidated"):
        stream.end_capture()
    assert "legacy stream" in gpu.problems()[0]


def test_a_graph_does_again_what_was_recorded(gpu):
    x = cupy.ones(4, dtype=np.float32)
    stream = cupy.cuda.Stream()
    with stream:
        stream.begin_capture()
        x += 1
        x *= 2
        graph = stream.end_capture()
    assert (x.get() == 1).all()
    for expected in (4, 10, 22):
        graph.launch(stream)
        stream.synchronize()
        assert (x.get() == expected).all()
    assert gpu.graph().total() == 2 and gpu.counts()["graph launches"] == 3


def test_streams_that_fork_and_join_in_a_capture(gpu):
    x, y = cupy.ones(4, dtype=np.float32), cupy.zeros(4, dtype=np.float32)
    one, other = cupy.cuda.Stream(), cupy.cuda.Stream()

    def record(joins):
        with one:
            one.begin_capture()
            x[...] += 1
            event = one.record()
            other.wait_event(event)
            with other:
                y[...] += x
                done = other.record()
            if joins:
                one.wait_event(done)
            return one.end_capture()

    graph = record(joins=True)
    graph.launch(one)
    one.synchronize()
    assert (y.get() == 2).all()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="StreamCaptureUnjoined"):
        record(joins=False)
    gpu.problems()


def test_an_array_of_another_gpu(gpu):
    with cupy.cuda.Device(1):
        x = cupy.ones(3)
    assert x.device.id == 1 and (x.get() == 1).all()
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device ordinal"):
        cupy.cuda.Device(3).use()


def test_memory_has_an_end(gpu):
    gpu.memory = 1 << 20
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(1 << 30, dtype=np.uint8)


# ------------------------------------------------------------------------------------------------ as late as may be


def pinned(values):
    memory = cupy.cuda.alloc_pinned_memory(values.nbytes)
    array = np.frombuffer(memory, values.dtype, values.size).reshape(values.shape)
    array[...] = values
    return array


def test_a_pinned_buffer_that_is_written_to_too_early(gpu):
    gpu.lazy = True
    host, x, stream = pinned(np.ones(4)), cupy.zeros(4), cupy.cuda.Stream()
    x.set(host, stream)
    host[...] = 7
    stream.synchronize()
    assert (x.get() == 7).all()  # as it may come on a GPU
    host[...] = 1
    x.set(host, stream)
    stream.synchronize()
    host[...] = 7
    assert (x.get() == 1).all()


def test_memory_that_is_not_pinned_is_read_at_once(gpu):
    gpu.lazy = True
    host, x = np.ones(4), cupy.zeros(4)
    x.data.copy_from_host_async(host.ctypes.data_as(ctypes.c_void_p), host.nbytes)
    host[...] = 7
    assert (x.get() == 1).all()


def test_who_does_not_wait_reads_what_was_there_before(gpu):
    gpu.lazy = True
    x, y = cupy.zeros(4), cupy.zeros(4)
    cupy.cuda.Device().synchronize()
    one, other = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    for waits in (False, True):
        with one:
            x += 1
            event = one.record()
        with other:
            if waits:
                other.wait_event(event)
            y[...] = x
        other.synchronize()
        seen = y.get(stream=other).copy()
        one.synchronize()
        assert (seen == (2 if waits else 0)).all()


def test_the_default_stream_waits_for_others_and_they_for_it(gpu):
    gpu.lazy = True
    x, stream = cupy.zeros(4), cupy.cuda.Stream()
    with stream:
        x += 1
    y = x * 2
    with stream:
        y += x
        stream.synchronize()
    assert (y.get() == 3).all()
