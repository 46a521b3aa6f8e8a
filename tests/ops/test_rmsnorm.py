import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, assert_close, check_dtype, check_inputs_stay, check_strides, normal, random_like, scaled_rows
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import rmsnorm_backward, rmsnorm_forward

WIDTHS = st.integers(2, 9)
EPS = st.sampled_from([1e-6, 1e-5, 0.1])


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 6), normal(xp, rng, 6), 1e-5]


@given(LEADS, WIDTHS, EPS, RNGS)
def test_gradients(xp, lead, C, eps, rng):
    gradcheck(rmsnorm_forward, rmsnorm_backward, [xp.asarray(scaled_rows(rng, *lead, C)), normal(xp, rng, C), eps])


@given(LEADS, WIDTHS, EPS, RNGS)
def test_forward_by_scalars(xp, lead, C, eps, rng):
    x, weight = scaled_rows(rng, *lead, C), rng.standard_normal(C)
    expected = np.empty_like(x)
    for n in np.ndindex(*lead):
        rms = math.sqrt(math.fsum(value**2 for value in x[n]) / C + eps)
        expected[n] = [w * value / rms for w, value in zip(weight, x[n], strict=True)]
    assert_close(rmsnorm_forward(xp.asarray(x), xp.asarray(weight), eps)[0], expected)


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_width_of_one_against_its_closed_form(xp, eps):
    rng = np.random.default_rng(0)
    x, weight, dout = rng.standard_normal((5, 1)), rng.standard_normal(1), rng.standard_normal((5, 1))
    out, cache = rmsnorm_forward(xp.asarray(x), xp.asarray(weight), eps)
    dx, dweight = rmsnorm_backward(xp.asarray(dout), cache)
    root = np.sqrt(x * x + eps)
    assert_close(out, weight * x / root)
    assert np.abs(to_numpy(dx) - dout * weight * eps / root**3).max() < 1e-12  # what is left of 1/root - x²/root³
    assert_close(dweight, (dout * x / root).sum(0))


def test_rows_come_out_with_a_root_mean_square_of_one(xp):
    x, _, _ = example(xp)
    out = to_numpy(rmsnorm_forward(100 * x, xp.ones(6), 1e-12)[0])
    assert_close((out**2).mean(-1), np.ones((2, 3)))


def test_the_gradient_cannot_change_the_length_of_its_input(xp):
    x, weight, _ = example(xp)
    out, cache = rmsnorm_forward(x, weight, 0.0)
    dx, _ = rmsnorm_backward(random_like(out), cache)
    assert abs((dx * x).sum(-1)).max() < 1e-14


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient(xp):
    out, cache = rmsnorm_forward(xp.zeros((1, 4)), xp.ones(4), 1e-6)
    dx, dweight = rmsnorm_backward(xp.ones((1, 4)), cache)
    assert not out.any() and not dweight.any()
    assert_close(dx, np.full((1, 4), 1e3))


def test_writes_to_no_input(xp):
    check_inputs_stay(rmsnorm_forward, rmsnorm_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(rmsnorm_forward, rmsnorm_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(rmsnorm_forward, rmsnorm_backward, example(xp), dtype)


@pytest.mark.parametrize("shape", [(1,), (5,), (1, 6)])
def test_weight_of_another_shape(xp, shape):
    x, _, eps = example(xp)
    with pytest.raises(ValueError, match=r"^weight has shape .*, but \(6,\) is needed$"):
        rmsnorm_forward(x, xp.ones(shape), eps)


def test_dout_of_another_shape(xp):
    _, cache = rmsnorm_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 6\), but \(2, 3, 6\) is needed$"):
        rmsnorm_backward(xp.ones((3, 2, 6)), cache)
