import math

import numpy as np
import pytest
from helpers import (
    LEADS,
    RNGS,
    SIZES,
    assert_close,
    assert_same_bits,
    check_dtype,
    check_inputs_stay,
    check_strides,
    normal,
    random_like,
)
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import dropout_backward, dropout_forward

KEY = (0, 1, 2)
KEYS = st.lists(st.integers(-(2**63), 2**64), min_size=0, max_size=4).map(tuple)
PROBABILITIES = st.sampled_from([0.0, 0.1, 0.5, 0.9])
N = 1 << 16


def example(xp):
    return [normal(xp, np.random.default_rng(0), 2, 3, 4), 0.4, KEY]


def kept(xp, p, key, n=N):
    """Which of n elements stay."""
    return to_numpy(dropout_forward(xp.ones(n), p, key)[0]) > 0


def kept_by_scalars(p, key, n):
    """splitmix64 folds the key, lowbias32 hashes each index, as published, in Python integers."""
    h = len(key)
    for part in key:
        z = (h + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        h = z ^ (z >> 31)

    def lowbias32(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    return np.array([lowbias32(lowbias32(i ^ (h % 2**32)) ^ (h >> 32)) / 2**32 >= p for i in range(n)])


@given(LEADS, SIZES, PROBABILITIES, KEYS, RNGS)
def test_gradients(xp, lead, C, p, key, rng):
    gradcheck(dropout_forward, dropout_backward, [normal(xp, rng, *lead, C), p, key])


@given(LEADS, SIZES, PROBABILITIES, KEYS, RNGS)
def test_forward_by_scalars(xp, lead, C, p, key, rng):
    x = rng.standard_normal((*lead, C))
    expected = np.where(kept_by_scalars(p, key, x.size).reshape(x.shape), x / (1 - p), 0)
    assert_close(dropout_forward(xp.asarray(x), p, key)[0], expected)


def test_a_mask_never_changes(xp):
    drawn = "".join(str(int(bit)) for bit in kept(xp, 0.5, KEY, 64))
    assert drawn == "0110101001001100011111100000000000001000100001110110011110010100"


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_fraction_p_is_dropped(xp, p):
    for key in [(0,), (0, 0, 0), (1, 2, 3), (2**40, 5)]:
        dropped = N - kept(xp, p, key).sum()
        assert abs(dropped - p * N) < 4.5 * math.sqrt(N * p * (1 - p))


def test_the_rest_is_scaled_up_so_that_the_mean_stays(xp):
    out = to_numpy(dropout_forward(xp.ones(N), 0.2, KEY)[0])
    assert set(out.tolist()) == {0.0, 1 / (1 - 0.2)}
    assert out.mean() == pytest.approx(1, abs=0.01)


def test_the_same_key_gives_the_same_mask(xp):
    assert_same_bits(kept(xp, 0.5, (3, 1)), kept(xp, 0.5, [3, 1]))


@pytest.mark.parametrize("other", [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0, 0, 0, 0), (0, 0, 2**32), (0, 0, -1), ()])
def test_masks_of_different_keys_are_uncorrelated(xp, other):
    a, b = kept(xp, 0.5, (0, 0, 0)), kept(xp, 0.5, other)
    for lag in range(4):
        assert abs(np.corrcoef(a[lag:], b[: N - lag])[0, 1]) < 4.5 / math.sqrt(N)


def test_neighbours_within_a_mask_are_uncorrelated(xp):
    mask = kept(xp, 0.5, KEY)
    for lag in [1, 2, 3, 4, 64, 1024, 4096]:
        assert abs(np.corrcoef(mask[lag:], mask[:-lag])[0, 1]) < 4.5 / math.sqrt(N - lag)


def test_a_higher_probability_drops_the_same_elements_and_more(xp):
    assert not (kept(xp, 0.6, KEY) & ~kept(xp, 0.3, KEY)).any()


def test_backward_uses_the_mask_of_forward(xp):
    x, p, key = example(xp)
    out, cache = dropout_forward(x, p, key)
    dout = random_like(out)
    assert_close(dropout_backward(dout, cache), to_numpy(out) / to_numpy(x) * to_numpy(dout))


def test_nothing_is_cached_but_how_to_make_the_mask_again(xp):
    _, cache = dropout_forward(*example(xp))
    assert cache == (0.4, KEY, (2, 3, 4))


def test_the_mask_does_not_depend_on_the_dtype(xp):
    single, double = (dropout_forward(xp.ones(N, dtype=dtype), 0.3, KEY)[0] for dtype in ("float32", "float64"))
    assert_same_bits(to_numpy(single) > 0, to_numpy(double) > 0)


def test_the_mask_depends_on_the_index_alone_not_on_the_shape(xp):
    x = normal(xp, np.random.default_rng(0), 24)
    assert_same_bits(dropout_forward(x.reshape(2, 3, 4), 0.5, KEY)[0].reshape(24), dropout_forward(x, 0.5, KEY)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_probability_of_zero_changes_nothing(xp, dtype):
    x = example(xp)[0].astype(dtype)
    out, cache = dropout_forward(x, 0, KEY)
    assert_same_bits(out, x)
    assert_same_bits(dropout_backward(x, cache), x)


def test_an_array_without_axes(xp):
    x = xp.asarray(3.0)
    assert float(dropout_forward(x, 0.0, KEY)[0]) == 3.0
    assert float(dropout_forward(x, 0.5, KEY)[0]) == 6.0 * kept(xp, 0.5, KEY, 1)[0]


def test_a_key_of_numpy_integers_is_the_same_key(xp):
    assert_same_bits(kept(xp, 0.5, tuple(np.array(KEY))), kept(xp, 0.5, KEY))


def test_writes_to_no_input(xp):
    check_inputs_stay(dropout_forward, dropout_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(dropout_forward, dropout_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(dropout_forward, dropout_backward, example(xp), dtype)


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, math.nan])
def test_a_probability_outside_of_its_range(xp, p):
    with pytest.raises(ValueError, match=rf"^p is {p}, but must lie in \[0, 1\)$"):
        dropout_forward(xp.ones(3), p, KEY)


def test_dout_of_another_shape(xp):
    _, cache = dropout_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(4,\), but \(2, 3, 4\) is needed$"):
        dropout_backward(xp.ones(4), cache)
