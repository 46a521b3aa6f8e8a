"""How kernels reach CuPy: compiled once for each GPU, with arguments of the declared types and memory that the GPU has."""

import threading

import cupy
import numpy as np
import pytest
from helpers import assert_close
from kernel_checks import every_dtype, real

from numllama.cuda import launch
from numllama.errors import DeviceError
from numllama.ops import (
    cross_entropy_backward,
    flash_attention_backward,
    flash_attention_forward,
    layernorm_backward,
    layernorm_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    swiglu_forward,
)


@pytest.fixture
def modules(gpu, monkeypatch):
    """The sources that CuPy is given, by a backend that has compiled nothing yet."""
    given, raw_module = [], cupy.RawModule

    def make(**about):
        given.append(about)
        return raw_module(**about)

    monkeypatch.setattr(cupy, "RawModule", make)
    monkeypatch.setattr(launch, "backend", launch.CuPy())
    return given


def normal(*shape, dtype="float32"):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def test_a_kernel_is_compiled_once_and_is_one_text(gpu, modules):
    x, weight = cupy.asarray(normal(5, 96)), cupy.asarray(normal(96))
    for _ in range(2):
        rmsnorm_forward(x, weight, 1e-5)
    (about,) = modules
    assert about["code"].startswith("#define DTYPE float\n#define WIDTH 4\n") and "rmsnorm_forward" in about["code"]
    assert "#include" not in about["code"]  # CuPy's cache of compiled kernels would not see what is included
    assert (about["options"], about["backend"]) == (("-std=c++17",), "nvrtc")
    assert gpu.counts()["kernel rmsnorm_forward"] == 2
    assert launch.backend.compile_seconds > 0


def test_each_gpu_has_its_own_copy_of_a_kernel(gpu, modules):
    for device in (0, 1, 0, 1):
        with cupy.cuda.Device(device):
            x = cupy.asarray(normal(5, 96))
            swiglu_forward(x, x)
    assert len(modules) == 2


def test_an_array_of_another_gpu_is_refused(gpu, modules):
    x = cupy.asarray(normal(5, 96))
    with cupy.cuda.Device(1), pytest.raises(DeviceError, match="swiglu_forward runs on GPU 1, but was given an array of GPU 0"):
        swiglu_forward(x, x)
    assert gpu.counts()["kernel swiglu_forward"] == 0


@every_dtype
@pytest.mark.parametrize("C", [768, 1024, 1536, 2048, 3072, 4096, 6144])
def test_norms_of_every_width_ask_for_the_memory_that_they_need(gpu, C, dtype):
    """48 KiB that need no asking hold what is static, too: 3072 floats and 4 KiB more did not fit."""
    x, weight, bias = normal(3, C, dtype=dtype), normal(C, dtype=real(dtype)), normal(C, dtype=real(dtype))
    for forward, backward, arrays in (
        (rmsnorm_forward, rmsnorm_backward, (x, weight)),
        (layernorm_forward, layernorm_backward, (x, weight, bias)),
    ):
        out, cache = forward(*map(cupy.asarray, arrays), 1e-5)
        expected, expected_cache = forward.reference(*(a.astype(np.float64) for a in arrays), 1e-5)
        assert_close(out.get().astype(np.float64), expected, rtol=2e-2 if x.dtype.itemsize == 2 else 1e-5)
        grads = backward(out, cache)
        wide = backward.reference(out.get().astype(np.float64), expected_cache)
        for grad, expected_grad in zip(grads, wide, strict=True):
            assert_close(grad.get().astype(np.float64), expected_grad, rtol=3e-2 if x.dtype.itemsize == 2 else 1e-4)
    assert gpu.counts()["launches"] >= 4


@every_dtype
@pytest.mark.parametrize("D", [64, 128])
def test_attention_asks_for_the_memory_that_it_needs(gpu, D, dtype):
    q, k, v = (cupy.asarray(normal(1, heads, 20, D, dtype=dtype)) for heads in (2, 1, 1))
    out, cache = flash_attention_forward(q, k, v)
    wide = [x.get().astype(np.float64) for x in (q, k, v)]
    expected, expected_cache = flash_attention_forward.reference(*wide)
    tolerance = 3e-2 if q.dtype.itemsize == 2 else 1e-5
    assert_close(out.get().astype(np.float64), expected, rtol=tolerance)
    wide_grads = flash_attention_backward.reference(out.get().astype(np.float64), expected_cache)
    for grad, expected_grad in zip(flash_attention_backward(out, cache), wide_grads, strict=True):
        assert_close(grad.get().astype(np.float64), expected_grad, rtol=tolerance)


def test_a_null_pointer_is_one(gpu):
    logits, targets = normal(3, 8), np.array([0, 7, 3])
    lse = np.log(np.exp(logits).sum(-1))
    args = (1.0, (logits, targets, lse, np.float32(3)))
    on_gpu = (1.0, (cupy.asarray(logits), cupy.asarray(targets), cupy.asarray(lse), cupy.asarray(np.float32(3))))
    assert_close(cross_entropy_backward(*on_gpu).get(), cross_entropy_backward.reference(*args), rtol=1e-5)
    assert gpu.counts()["kernel cross_entropy_backward"] == 1


def test_arrays_of_the_cpu_do_not_reach_cupy(gpu):
    swiglu_forward(np.ones((2, 3), "float32"), np.ones((2, 3), "float32"))
    assert gpu.counts()["launches"] == 0
    with pytest.raises(TypeError, match="argument 1 of gelu_forward must be an array on the device, not ndarray"):
        args = [cupy.ones(4, "float32"), np.ones(4, "float32"), np.int64(4)]
        launch.launch("gelu", "gelu_forward", 1, 256, args, DTYPE=np.dtype("float32"), WIDTH=4)


def test_each_stream_of_each_thread_counts_blocks_in_an_array_of_its_own(gpu):
    """Two default streams of threads have the same number, and their kernels run at once."""
    seen, both = {}, threading.Barrier(2)

    def counters(name):
        for stream in (cupy.cuda.Stream.ptds, cupy.cuda.Stream()):
            with stream:
                seen[name, stream] = [launch.backend.counters() for _ in range(2)]
        both.wait()

    threads = [threading.Thread(target=counters, args=[i]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(first is again for first, again in seen.values())
    assert len({first.data.ptr for first, _ in seen.values()}) == 4
