"""Would the emulator find it?  Each bug planted in emulator/planted.cu is found, and without it the same kernel passes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulator import BACKWARD, COMPILER, FORWARD, HERE, SHUFFLED, EmulatorError, emulated
from helpers import assert_same_bits

from numllama.backend import BFLOAT16
from numllama.cuda import launch, sources

f32, i32, i64 = np.float32, np.int32, np.int64


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Launch a kernel of planted.cu, with its bug or without."""
    for path in (sources.KERNELS / "common.cuh", HERE / "planted.cu"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(sources, "KERNELS", tmp_path)
    sources.compiled_text.cache_clear()

    def run(name, grid, block, args, shared_bytes=0, *, bug=False, order=SHUFFLED, **defines):
        with emulated(order):
            launch.launch("planted", name, grid, block, args, shared_bytes, PLANTED=bug, **defines)

    yield run
    sources.compiled_text.cache_clear()


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(f32)


def test_a_missing_barrier_is_found(planted):
    x = 1 + abs(normal(3, 200))
    expected = x / x.sum(1, keepdims=True)
    for order in (FORWARD, BACKWARD, SHUFFLED):
        y = np.full_like(x, np.nan)
        planted("missing_barrier", 3, 128, [y, x, i32(200)], order=order)
        np.testing.assert_allclose(y, expected, rtol=1e-5)
    y = np.full_like(x, np.nan)
    planted("missing_barrier", 3, 128, [y, x, i32(200)], bug=True)
    assert np.isnan(y).any()


def test_a_buffer_that_is_overwritten_too_early_is_found(planted):
    x, results = normal(256), {}
    for bug in (False, True):
        for order in (FORWARD, BACKWARD, SHUFFLED):
            y = np.full(64, np.nan, f32)
            planted("early_overwrite", 1, 64, [y, x, i32(256)], 256, bug=bug, order=order)
            results[bug, order] = y.tolist()
    assert results[False, FORWARD] == results[False, BACKWARD] == results[False, SHUFFLED]
    assert results[True, FORWARD] != results[True, BACKWARD]


def test_a_missing_syncwarp_is_found(planted):
    x, y = normal(32), np.full(32, np.nan, f32)
    planted("missing_syncwarp", 1, 32, [y, x])
    assert_same_bits(y, x[::-1].copy())
    planted("missing_syncwarp", 1, 32, [y, x], bug=True)
    assert np.isnan(y).any()


@pytest.mark.parametrize(
    ("name", "n_args", "message"),
    [
        ("divergent_shuffle", 0, "warp 0 is divergent: .*w{16}d{16}"),
        ("left_out_of_the_mask", 0, "a lane calls a warp function whose mask 0x0000ffff leaves it out"),
        ("barrier_that_some_never_reach", 1, "20 threads wait at a barrier that 12 have left without"),
    ],
)
def test_threads_that_wait_for_ever_are_found_and_the_process_lives(planted, name, n_args, message):
    y = np.full(32, np.nan, f32)
    args = [y, i32(20)][: 1 + n_args]
    with pytest.raises(EmulatorError, match=rf"^{name}: block \(0, 0, 0\).*: {message}"):
        planted(name, 1, 32, args, bug=True)
    planted(name, 1, 32, args)
    assert not np.isnan(y[:20]).any()


def test_a_misaligned_access_of_16_bytes_is_found(planted):
    x = normal(16)
    x = x[(-x.ctypes.data // 4) % 4 :][:12]  # from a multiple of 16 bytes on
    y = np.zeros(12, f32)
    with pytest.raises(EmulatorError, match=r"common\.cuh:\d+: a misaligned access: .*uint4.* needs an address that 16 divides"):
        planted("misaligned", 2, 1, [y, x, i32(6)], bug=True)
    planted("misaligned", 3, 1, [y, x, i32(4)])
    assert_same_bits(y, x)


def test_output_that_is_not_written_is_nan(planted):
    with emulated() as emulator:
        y = emulator.empty(None, 40, f32)
        half = emulator.empty(None, 40, BFLOAT16)
        assert np.isnan(y).all() and np.isnan(half.astype(f32)).all()
        assert (emulator.empty(None, 40, i64) == -1).all()
    planted("unwritten_output", 2, 32, [y, i32(40)], bug=True)
    assert np.isnan(y).tolist() == [False] * 39 + [True]
    planted("unwritten_output", 2, 32, [y, i32(40)])
    assert y.tolist() == list(range(40))


def test_shared_memory_that_is_not_written_is_nan(planted):
    y = np.zeros(32, f32)
    planted("unwritten_shared", 1, 32, [y], 128, bug=True)
    assert np.isnan(y[31]) and y[30] == 30
    y = np.zeros(5, f32)
    planted("shared_of_the_block_before", 5, 1, [y], bug=True)
    assert np.isnan(y).tolist() == [False, True, True, True, True]
    planted("shared_of_the_block_before", 5, 1, [y])
    assert (y == 1).all()


def test_too_much_shared_memory_is_found(planted):
    y = np.zeros(32, f32)
    planted("much_shared_memory", 1, 32, [y], TILE=11900)
    assert (y == 1).all()
    with pytest.raises(EmulatorError, match="bytes of shared memory, which is too much"):
        planted("much_shared_memory", 1, 32, [y], TILE=12300)
    with pytest.raises(ValueError, match=r"shared_bytes is 232449, but must lie in 0\.\.232448"):
        planted("unwritten_shared", 1, 32, [y], 227 * 1024 + 1)
    with pytest.raises(EmulatorError, match="which is too much"):  # beside those that are there in any case
        planted("unwritten_shared", 1, 32, [y], 227 * 1024)


ASAN = """
import numpy as np
from emulator import emulated
from numllama.cuda import launch, sources
from pathlib import Path
sources.KERNELS = Path(r"{folder}")
x, y = np.ones(1000, "float32"), np.empty(1000, "float32")
with emulated():
    for bug in (False, True):
        launch.launch("planted", "read_out_of_bounds", 8, 128, [y, x, np.int32(1000)], PLANTED=bug)
        print("ran with", bug, flush=True)
"""


def test_a_read_out_of_bounds_is_found_by_the_address_sanitizer(planted):
    library = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    root = str(Path(launch.__file__).parents[2])
    env = os.environ | {
        "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "NUMLLAMA_EMULATOR_ASAN": "1",
        "PYTHONPATH": os.pathsep.join([root, str(HERE)]),
    }  # fmt: skip
    code = ASAN.format(folder=sources.KERNELS)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert run.stdout.split("\n")[:-1] == ["ran with False"], run.stderr[-2000:]
    assert "heap-buffer-overflow" in run.stderr and "READ of size 4" in run.stderr
    assert "read_out_of_bounds" in run.stderr and "planted.cu:" in run.stderr


# ------------------------------------------------------------------------------------------------ what it emulates


@pytest.mark.parametrize("order", [FORWARD, BACKWARD, SHUFFLED])
def test_every_thread_of_every_block_runs_once_and_knows_where_it_is(planted, order):
    y = np.full((2 * 3 * 4, 2 * 3 * 5), -1, i32)
    planted("indices", (2, 3, 4), (2, 3, 5), [y], order=order)
    assert_same_bits(y, (1000 * np.arange(24)[:, None] + np.arange(30)).astype(i32))


def test_warp_functions_as_the_manual_says(planted):
    y = np.full(264, -1, i32)
    planted("warp_functions", 1, 32, [y])
    lane = np.arange(32)
    expected = [
        np.full(32, 5), lane ^ 6, np.where(lane < 29, lane + 3, lane), np.where(lane >= 3, lane - 3, lane),
        lane // 8 * 8 + 1, np.where(lane % 8 < 5, lane + 3, lane),
        np.full(32, np.uint32(sum(1 << i for i in range(0, 32, 3))).astype(i32)), np.full(32, 1),
    ]  # fmt: skip
    assert y.tolist() == np.concatenate([*expected, np.arange(8) ^ 1]).tolist()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype("float16")], ids=str)
def test_numbers_in_two_bytes_round_to_nearest_even(planted, dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate([
        rng.standard_normal(3000), rng.standard_normal(3000) * 10.0 ** rng.integers(-9, 9, 3000),
        np.arange(2048) * 2.0**-25, 1 + np.arange(2048) * 2.0**-12,
        [65519, 65520, 65504, 3.4e38, 0.0, -0.0, np.inf, -np.inf, np.nan],
    ]).astype(f32)  # fmt: skip
    x = x[(abs(x) >= 2.0**-126) | (x == 0) | np.isnan(x)]  # smaller ones are zero on a GPU
    y, back = np.zeros(x.shape, dtype), np.zeros_like(x)
    planted("conversions", (len(x) + 127) // 128, 128, [y, back, x, i32(len(x))], DTYPE=dtype)
    with np.errstate(over="ignore"):
        expected = x.astype(dtype)
    assert np.array_equal(np.isnan(back), np.isnan(x))
    real = ~np.isnan(x)
    assert_same_bits(y[real], expected[real])
    assert_same_bits(back[real], expected[real].astype(f32))


# ------------------------------------------------------------------------------------------------ what launch checks


def good():
    return [np.zeros(4, BFLOAT16), i32(1), i64(2), f32(3), np.uint32(4), np.zeros(4, f32)]


def test_arguments_that_fit_their_declaration(planted):
    args = good()
    planted("takes_all_kinds", 1, 1, args, DTYPE=BFLOAT16)
    assert args[-1][0] == 1
    args[0] = None
    planted("takes_all_kinds", 1, 1, args, DTYPE=BFLOAT16)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros(4, f32), "argument 0 of takes_all_kinds is float32, but its Element means bfloat16"),
        (0, 7, "argument 0 of takes_all_kinds must be an array on the device, not int"),
        (1, 1, "argument 1 of takes_all_kinds must be a NumPy scalar for int, not 1"),
        (1, i64(1), "argument 1 of takes_all_kinds is int64, but its int means int32"),
        (2, i32(1), "argument 2 of takes_all_kinds is int32, but its long long means int64"),
        (3, 1.0, "argument 3 of takes_all_kinds must be a NumPy scalar for Real, not 1.0"),
        (3, np.float64(1), "argument 3 of takes_all_kinds is float64, but its Real means float32"),
        (3, np.zeros(1, f32), "argument 3 of takes_all_kinds must be a NumPy scalar for Real"),
    ],
)
def test_an_argument_that_a_gpu_would_misread_is_refused(planted, position, value, message):
    args = good()
    args[position] = value
    with pytest.raises(TypeError, match=message):
        planted("takes_all_kinds", 1, 1, args, DTYPE=BFLOAT16)


def test_the_number_of_arguments(planted):
    with pytest.raises(TypeError, match="takes_all_kinds takes 6 arguments, not 5"):
        planted("takes_all_kinds", 1, 1, good()[:5], DTYPE=BFLOAT16)


def test_strided_arrays_only_where_the_kernel_knows_their_strides(planted):
    args = good()
    args[-1] = np.zeros(8, f32)[::2]
    with pytest.raises(ValueError, match=r"argument 5 of takes_all_kinds must be contiguous, or passed as strided\(\.\.\.\)"):
        planted("takes_all_kinds", 1, 1, args, DTYPE=BFLOAT16)
    view, args[-1] = args[-1], launch.strided(args[-1])
    planted("takes_all_kinds", 1, 1, args, DTYPE=BFLOAT16)
    assert view[0] == 1


@pytest.mark.parametrize(
    ("grid", "block", "message"),
    [
        (1, 1025, "block is"), (1, (32, 33), "block is"), (1, (1, 1, 65), "block is"), (1, 0, "block is"),
        ((1, 65536), 1, "grid is"), (2**31, 1, "grid is"), (-1, 1, "grid is"),
    ],
)  # fmt: skip
def test_launches_beyond_the_limits_of_a_gpu(planted, grid, block, message):
    with pytest.raises(ValueError, match=rf"^takes_all_kinds: {message}"):
        planted("takes_all_kinds", grid, block, good(), DTYPE=BFLOAT16)


def test_no_block_at_all_does_nothing(planted):
    args = good()
    planted("takes_all_kinds", 0, 32, args, DTYPE=BFLOAT16)
    assert not args[-1].any()


def test_a_kernel_that_is_not_there(planted):
    with pytest.raises(ValueError, match=r"kernels/planted\.cu has no kernel 'rmsnorm', but missing_barrier, "):
        planted("rmsnorm", 1, 1, [])
