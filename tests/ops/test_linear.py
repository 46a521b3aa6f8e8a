import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import linear_backward, linear_forward


def example(xp, with_bias=True):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 4), normal(xp, rng, 5, 4), normal(xp, rng, 5) if with_bias else None]


@given(LEADS, SIZES, SIZES, st.booleans(), RNGS)
def test_gradients(xp, lead, n_in, n_out, with_bias, rng):
    x, weight = normal(xp, rng, *lead, n_in), normal(xp, rng, n_out, n_in)
    gradcheck(linear_forward, linear_backward, [x, weight, normal(xp, rng, n_out) if with_bias else None])


@given(LEADS, SIZES, SIZES, st.booleans(), RNGS)
def test_gradients_into_a_buffer_of_zeros(xp, lead, n_in, n_out, with_bias, rng):
    def backward(dout, cache):
        return linear_backward(dout, cache, into=xp.zeros((n_out, n_in)))

    x, weight = normal(xp, rng, *lead, n_in), normal(xp, rng, n_out, n_in)
    gradcheck(linear_forward, backward, [x, weight, normal(xp, rng, n_out) if with_bias else None])


@given(LEADS, SIZES, SIZES, RNGS)
def test_forward_is_a_sum_over_inputs(xp, lead, n_in, n_out, rng):
    x, weight, bias = normal(xp, rng, *lead, n_in), normal(xp, rng, n_out, n_in), normal(xp, rng, n_out)
    expected = np.einsum("...i,oi->...o", to_numpy(x), to_numpy(weight))
    assert_close(linear_forward(x, weight)[0], expected)
    assert_close(linear_forward(x, weight, bias)[0], expected + to_numpy(bias))


def test_into_is_added_to_and_returned(xp):
    x, weight, bias = example(xp)
    out, cache = linear_forward(x, weight, bias)
    dweight = linear_backward(out, cache)[1]
    buffer = xp.ones_like(weight)
    assert linear_backward(out, cache, into=buffer)[1] is buffer
    assert_close(buffer, 1 + dweight)


@pytest.mark.parametrize("with_bias", [False, True])
def test_there_is_a_bias_gradient_only_where_there_is_a_bias(xp, with_bias):
    out, cache = linear_forward(*example(xp, with_bias))
    assert len(linear_backward(out, cache)) == 2 + with_bias


def test_rows_without_leading_axes(xp):
    x, weight, bias = example(xp)
    assert_close(linear_forward(x[0, 0], weight, bias)[0], linear_forward(x, weight, bias)[0][0, 0])


def test_no_rows_give_a_gradient_of_zero(xp):
    x, weight, bias = example(xp)
    out, cache = linear_forward(x[:0], weight, bias)
    dx, dweight, dbias = linear_backward(out, cache)
    assert out.shape == (0, 3, 5) and dx.shape == (0, 3, 4)
    assert not dweight.any() and not dbias.any()


@pytest.mark.parametrize("with_bias", [False, True])
def test_writes_to_no_input(xp, with_bias):
    check_inputs_stay(linear_forward, linear_backward, example(xp, with_bias))


def test_takes_any_strides(xp):
    check_strides(linear_forward, linear_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(linear_forward, linear_backward, example(xp), dtype)


def test_x_of_another_width(xp):
    _, weight, _ = example(xp)
    with pytest.raises(ValueError, match=r"^x has shape \(2, 3, 5\), but \(2, 3, 4\) is needed$"):
        linear_forward(xp.ones((2, 3, 5)), weight)


def test_bias_of_another_width(xp):
    x, weight, _ = example(xp)
    with pytest.raises(ValueError, match=r"^bias has shape \(4,\), but \(5,\) is needed$"):
        linear_forward(x, weight, xp.ones(4))


def test_dout_of_another_shape(xp):
    _, cache = linear_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 5\), but \(2, 3, 5\) is needed$"):
        linear_backward(xp.ones((3, 2, 5)), cache)


def test_a_gradient_of_x_may_be_added_to_a_buffer(xp):
    x, weight = example(xp)[:2]
    out, cache = linear_forward(x, weight)
    buffer = xp.ones_like(x)
    assert linear_backward(out, cache, dx=buffer)[0] is buffer
    assert_close(buffer, 1 + linear_backward(out, cache)[0])
