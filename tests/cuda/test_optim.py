"""AdamW and the gradient norm."""

import numpy as np
import pytest
from emulator import BACKWARD, FORWARD, SHUFFLED, emulated
from helpers import assert_same_bits
from kernel_checks import EXACT, FLOAT32, FLOAT64, HALVES, assert_as_good, every_dtype, offset_by_one

from numllama.optim.adamw import adamw_update
from numllama.optim.clip import euclidean_norm

BETAS, EPS = (0.9, 0.95), 1e-8


def draw(n, dtype):
    w, g, m, v = np.random.default_rng(0).standard_normal((4, n)).astype(dtype)
    return [w, g, m, v * v]


def stepped(buffers, weight_decay, copy=None):
    buffers = [buffer.copy() for buffer in buffers]
    w, g, m, v = buffers
    adamw_update(w, g, m, v, 3, 1e-2, BETAS, EPS, weight_decay, copy)
    return buffers


@pytest.mark.parametrize("n", [1, 7, 8, 257, 4099])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_adamw(n, weight_decay, dtype):
    buffers = draw(n, dtype)
    exact = stepped([buffer.astype(EXACT) for buffer in buffers], weight_decay)
    reference, results = stepped(buffers, weight_decay), []
    for order in (FORWARD, SHUFFLED):
        with emulated(order) as emulator:
            results.append(stepped(buffers, weight_decay))
        assert emulator.launched == ["adamw"]
    assert_as_good(results[0], [reference], exact, "buffer")
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("n", [1, 7, 8, 257, 4099])
def test_adamw_writes_the_copy_that_the_model_computes_with(n, dtype):
    copy = np.full(n + 2, 7, dtype)
    with emulated() as emulator:
        w, *_ = stepped(draw(n, FLOAT32), 0.1, copy[:n])
    assert emulator.launched == ["adamw"]
    assert_same_bits(copy, np.concatenate([w, np.full(2, 7, "float32")]).astype(dtype))
    expected = np.zeros(n, dtype)
    w, *_ = stepped(draw(n, FLOAT32), 0.1, expected)  # NumPy
    assert_same_bits(expected, w.astype(dtype))


def test_adamw_at_any_address_and_nothing_beside_it(gpu):
    buffers = draw(100, FLOAT32)
    whole = [np.concatenate([[5], buffer, [5]]).astype(FLOAT32) for buffer in buffers]
    w, g, m, v = (buffer[1:-1] for buffer in whole)
    adamw_update(w, g, m, v, 3, 1e-2, BETAS, EPS, 0.1)
    for a, b in zip(whole, stepped(buffers, 0.1), strict=True):
        assert_same_bits(a, np.concatenate([[5], b, [5]]).astype(FLOAT32))
    assert gpu.launched == ["adamw"] * 2


@every_dtype
@pytest.mark.parametrize("n", [1, 65, 16385, 70001])
def test_the_norm(n, dtype):
    flat = np.random.default_rng(0).standard_normal(n).astype(dtype)
    norms = []
    for order in (FORWARD, BACKWARD, SHUFFLED):
        with emulated(order) as emulator:
            norms += [euclidean_norm(flat), euclidean_norm(offset_by_one(flat))]
        assert emulator.launched == ["gradient_norm"] * 2
    assert norms[0] == norms[2] == norms[4]
    exact = float(np.sqrt((flat.astype(EXACT) ** 2).sum()))
    assert norms == pytest.approx([exact] * 6, rel=1e-6 if dtype != FLOAT64 else 1e-14)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
def test_a_norm_that_is_not_finite(gpu, value):
    flat = np.ones(1000, "float32")
    flat[777] = value
    assert not np.isfinite(euclidean_norm(flat))
    assert gpu.launched == ["gradient_norm"]
