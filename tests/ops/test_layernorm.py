import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, assert_close, check_dtype, check_inputs_stay, check_strides, normal, random_like
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import layernorm_backward, layernorm_forward

WIDTHS = st.integers(3, 9)
EPS = st.sampled_from([1e-6, 1e-5, 0.1])


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 6), normal(xp, rng, 6), normal(xp, rng, 6), 1e-5]


def rows_with_a_spread(rng, *shape):
    """Rows with a standard deviation in [0.5, 2] and any mean: constant rows have no derivative to speak of."""
    x = rng.standard_normal(shape)
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    return x * rng.uniform(0.5, 2, (*shape[:-1], 1)) + rng.standard_normal((*shape[:-1], 1))


@given(LEADS, WIDTHS, EPS, RNGS)
def test_gradients(xp, lead, C, eps, rng):
    x = xp.asarray(rows_with_a_spread(rng, *lead, C))
    gradcheck(layernorm_forward, layernorm_backward, [x, normal(xp, rng, C), normal(xp, rng, C), eps])


@given(LEADS, WIDTHS, EPS, RNGS)
def test_forward_by_scalars(xp, lead, C, eps, rng):
    x, weight, bias = rows_with_a_spread(rng, *lead, C), rng.standard_normal(C), rng.standard_normal(C)
    expected = np.empty_like(x)
    for n in np.ndindex(*lead):
        mean = math.fsum(x[n]) / C
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in x[n]) / C + eps)
        expected[n] = [w * (value - mean) / std + b for w, value, b in zip(weight, x[n], bias, strict=True)]
    assert_close(layernorm_forward(xp.asarray(x), xp.asarray(weight), xp.asarray(bias), eps)[0], expected)


def test_a_width_of_one_gives_the_bias(xp):
    rng = np.random.default_rng(0)
    x, weight, bias, dout = (normal(xp, rng, *shape) for shape in [(5, 1), (1,), (1,), (5, 1)])
    out, cache = layernorm_forward(x, weight, bias, 1e-5)
    dx, dweight, dbias = layernorm_backward(dout, cache)
    assert_close(out, np.broadcast_to(to_numpy(bias), (5, 1)))
    assert not dx.any() and not dweight.any()
    assert_close(dbias, to_numpy(dout).sum(0))


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_a_width_of_two_against_its_closed_form(xp, eps):
    rng = np.random.default_rng(0)
    x, weight, bias, dout = (rng.standard_normal(shape) for shape in [(5, 2), (2,), (2,), (5, 2)])
    out, cache = layernorm_forward(*map(xp.asarray, (x, weight, bias)), eps)
    dx, dweight, dbias = layernorm_backward(xp.asarray(dout), cache)

    half = (x[:, :1] - x[:, 1:]) / 2          # a row is its mean plus (half, -half)
    root = np.sqrt(half**2 + eps)
    n = np.concatenate([half, -half], axis=1) / root
    dn = dout * weight
    dhalf = (dn[:, :1] - dn[:, 1:]) * eps / root**3
    assert_close(out, n * weight + bias)
    assert np.abs(to_numpy(dx) - np.concatenate([dhalf, -dhalf], axis=1) / 2).max() < 1e-12
    assert_close(dweight, (dout * n).sum(0))
    assert_close(dbias, dout.sum(0))


def test_rows_come_out_with_mean_zero_and_variance_one(xp):
    x, _, _, _ = example(xp)
    out = to_numpy(layernorm_forward(100 * x + 5, xp.ones(6), xp.zeros(6), 1e-12)[0])
    assert np.abs(out.mean(-1)).max() < 1e-14
    assert_close(out.var(-1), np.ones((2, 3)))


def test_the_gradient_can_neither_shift_nor_stretch_its_input(xp):
    x, weight, bias, _ = example(xp)
    out, cache = layernorm_forward(x, weight, bias, 0.0)
    dx = layernorm_backward(random_like(out), cache)[0]
    assert abs(dx.sum(-1)).max() < 1e-14
    assert abs((dx * x).sum(-1)).max() < 1e-14


def test_a_large_mean_costs_no_accuracy_but_its_own_rounding(xp):
    x, weight, bias, eps = example(xp)
    out = layernorm_forward(x + 1e6, weight, bias, eps)[0]  # mean(x²) - mean(x)² would be off by 1e-4
    assert_close(out, layernorm_forward(x, weight, bias, eps)[0], rtol=1e-8)


def test_writes_to_no_input(xp):
    check_inputs_stay(layernorm_forward, layernorm_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(layernorm_forward, layernorm_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(layernorm_forward, layernorm_backward, example(xp), dtype)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 6)])
def test_gain_or_bias_of_another_shape(xp, name, shape):
    x, weight, bias, eps = example(xp)
    args = {"weight": weight, "bias": bias} | {name: xp.ones(shape)}
    with pytest.raises(ValueError, match=rf"^{name} has shape .*, but \(6,\) is needed$"):
        layernorm_forward(x, args["weight"], args["bias"], eps)


def test_dout_of_another_shape(xp):
    _, cache = layernorm_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 6\), but \(2, 3, 6\) is needed$"):
        layernorm_backward(xp.ones((3, 2, 6)), cache)
