"""The emulator's tensor cores and asynchronous copies: are they right, and would they show who does not wait?"""

import shutil

import numpy as np
import pytest
from emulator import BACKWARD, FORWARD, HERE, SHUFFLED, EmulatorError, emulated

from numllama.backend import BFLOAT16
from numllama.cuda import launch, sources

i32 = np.int32


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Launch a kernel of planted_tensor_cores.cu, with a bug or without."""
    for path in (sources.KERNELS / "common.cuh", sources.KERNELS / "tensor_cores.cuh", HERE / "planted_tensor_cores.cu"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(sources, "KERNELS", tmp_path)
    sources.compiled_text.cache_clear()

    def run(name, block, args, shared_bytes, *, bug=0, order=SHUFFLED, dtype=BFLOAT16):
        with emulated(order):
            launch.launch("planted_tensor_cores", name, 1, block, args, shared_bytes, PLANTED=bug, DTYPE=dtype)

    yield run
    sources.compiled_text.cache_clear()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)], ids=str)
def test_a_product_of_matrices(planted, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 16)).astype(dtype), rng.standard_normal((16, 8)).astype(dtype)
    expected = 1 + a.astype("f8") @ b.astype("f8")
    for matrix, is_transposed in ((b, 0), (np.ascontiguousarray(b.T), 1)):
        out = np.full((16, 8), np.nan, "f4")
        planted("product", 32, [out, a, matrix, i32(is_transposed)], 1024, dtype=dtype)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def copied(planted, bug, order=SHUFFLED):
    rounds, threads = 6, 64
    data = np.arange(rounds * threads * 4, dtype="f4") + 1
    out = np.full((rounds, threads), np.nan, "f4")
    planted("copies", threads, [out, data, i32(rounds)], 2 * threads * 16, bug=bug, order=order)
    expected = data.reshape(rounds, threads, 4).copy()
    expected[1:, -1] = 0                                               # asked for as zeros
    return np.array_equal(out, np.roll(expected.sum(-1), -32, 1))


def test_copies_arrive_in_any_order_of_threads(planted):
    assert all(copied(planted, 0, order) for order in (FORWARD, BACKWARD, SHUFFLED))


@pytest.mark.parametrize("bug", [1, 2, 3], ids=["the next copy too early", "no wait", "no barrier"])
def test_copies_that_are_not_waited_for_are_seen(planted, bug):
    assert not all(copied(planted, bug, order) for order in (FORWARD, BACKWARD, SHUFFLED))


def test_copies_to_nowhere_and_to_odd_addresses_are_errors(planted):
    out, data = np.zeros(1, "f4"), np.arange(8, dtype="f4")
    planted("misplaced", 1, [out, data, i32(0)], 16)
    with pytest.raises(EmulatorError, match="copy_async: 16 bytes at an address that 16 does not divide"):
        planted("misplaced", 1, [out, data, i32(2)], 64)
    with pytest.raises(EmulatorError, match="copy_async: to outside of shared memory"):
        planted("misplaced", 1, [out, data, i32(4)], 16)
