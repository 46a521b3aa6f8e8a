"""How cuBLAS itself is called: CuPy's own, by its prototypes, with a handle and a workspace for each thread and stream."""

import ctypes
import gc
import threading

import cupy
import numpy as np
import pytest
from helpers import assert_close
from kernel_checks import HALVES, every_dtype, real

from numllama.cuda import cublas
from numllama.cuda.gemm import gemm
from numllama.errors import DeviceError


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def laid_out(x, how):
    """The same matrix in other memory: transposed, or as some columns of a wider one."""
    if how == "transposed":
        return cupy.asarray(np.ascontiguousarray(x.swapaxes(-1, -2))).swapaxes(-1, -2)
    if how == "columns":
        wide = np.full((*x.shape[:-1], x.shape[-1] + 5), np.nan, x.dtype)
        wide[..., 2 : 2 + x.shape[-1]] = x
        return cupy.asarray(wide)[..., 2 : 2 + x.shape[-1]]
    return cupy.asarray(x)


@pytest.fixture
def no_handles(monkeypatch):
    monkeypatch.setattr(cublas, "_handles", threading.local())


def number(name):
    return ctypes.c_int.in_dll(cublas.library(), name)


@every_dtype
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("batch", [(), (4,)], ids=str)
def test_what_cublas_is_called_with_gives_the_product(gpu, monkeypatch, batch, tf32, dtype):
    monkeypatch.setattr(cublas, "TF32", tf32)
    a, b = normal(*batch, 3, 4, dtype=dtype), normal(*batch, 4, 5, dtype=dtype)
    expected = a.astype(real(dtype)) @ b.astype(real(dtype))
    for how_a in ("rows", "transposed", "columns"):
        for how_b in ("rows", "transposed", "columns"):
            left, right = laid_out(a, how_a), laid_out(b, how_b)
            assert_close(gemm(left, right).get().astype(real(dtype)), expected, rtol=1e-2 if dtype in HALVES else 1e-6)
            wide = cupy.full(expected.shape, 2, real(dtype))
            gemm(left, right, wide, beta=0.5)
            assert_close(wide.get(), expected + 1, rtol=1e-6)
            gemm(left, right, wide, alpha=3)
            assert_close(wide.get(), 3 * expected, rtol=1e-6)


@pytest.mark.parametrize("major", [12, 13])
def test_the_library_is_of_cupys_cuda_also_where_another_program_has_loaded_another(gpu, major):
    gpu.runtime = 1000 * major
    cublas.library.cache_clear()
    try:
        assert number("version").value == major
    finally:
        gpu.runtime = 13000
        cublas.library.cache_clear()


def test_a_library_that_cupy_has_not_loaded_is_named(gpu):
    gpu.runtime = 14000
    cublas.library.cache_clear()
    try:
        with pytest.raises(DeviceError, match=r"^CuPy's cuBLAS, libcublas\.so\.14, is not loaded: see `numllama doctor`$"):
            cublas.library()
    finally:
        gpu.runtime = 13000
        cublas.library.cache_clear()


def test_each_stream_and_each_thread_has_a_handle_with_a_workspace_of_its_own(gpu, no_handles):
    a, seen = cupy.ones((3, 4)), {}

    def multiply(name):
        gemm(a, a.T)
        seen[name] = cublas.handle()

    one, other = cupy.cuda.Stream(), cupy.cuda.Stream()
    for name, stream in (("default", cupy.cuda.Stream.null), ("one", one), ("other", other), ("one again", one)):
        with stream:
            multiply(name)
    threads = [threading.Thread(target=multiply, args=[f"thread {i}"]) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen["one"] is seen["one again"]
    assert len({handle.value for handle in seen.values()}) == len({handle.workspace.ptr for handle in seen.values()}) == 5


def test_threads_with_a_default_stream_each_do_not_share_a_workspace(gpu, no_handles):
    seen = []

    def multiply():
        with cupy.cuda.Stream.ptds:
            gemm(cupy.ones((3, 4)), cupy.ones((4, 3)))
            seen.append(cublas.handle())

    for _ in range(2):
        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
    assert seen[0].workspace.ptr != seen[1].workspace.ptr


def test_handles_of_streams_that_are_gone_go_too(gpu, no_handles):
    before, a = number("handles").value, cupy.ones((3, 4))
    for _ in range(3 * cublas.MOST_HANDLES):
        with cupy.cuda.Stream():
            gemm(a, a.T)
    gc.collect()
    assert number("handles").value - before <= cublas.MOST_HANDLES


def test_a_product_that_fails_says_why(gpu):
    a, failing = cupy.ones((3, 4)), number("failing")
    failing.value = 13
    try:
        with pytest.raises(DeviceError, match=r"^cublasGemmEx failed: the product failed \(13\)$"):
            gemm(a, a.T)
    finally:
        failing.value = 0
