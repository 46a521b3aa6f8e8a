import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import linear_backward, linear_backward_input, linear_forward, lora_backward, lora_forward

SCALE = 0.75


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 4), normal(xp, rng, 2, 4), normal(xp, rng, 5, 2)]


def forward(x, a, b):
    return lora_forward(x, a, b, SCALE)


@given(LEADS, SIZES, SIZES, SIZES, RNGS)
def test_gradients(xp, lead, n_in, n_out, rank, rng):
    args = normal(xp, rng, *lead, n_in), normal(xp, rng, rank, n_in), normal(xp, rng, n_out, rank)
    gradcheck(forward, lora_backward, args)


@given(LEADS, SIZES, SIZES, SIZES, RNGS)
def test_gradients_where_b_is_zero_as_at_the_start(xp, lead, n_in, n_out, rank, rng):
    args = normal(xp, rng, *lead, n_in), normal(xp, rng, rank, n_in), xp.zeros((n_out, rank))
    gradcheck(forward, lora_backward, args)
    out, cache = forward(*args)
    dx, da, _ = lora_backward(normal(xp, rng, *out.shape), cache)
    assert not out.any() and not dx.any() and not da.any()


@given(LEADS, SIZES, SIZES, SIZES, RNGS)
def test_forward_is_a_sum_over_ranks_and_inputs(xp, lead, n_in, n_out, rank, rng):
    x, a, b = normal(xp, rng, *lead, n_in), normal(xp, rng, rank, n_in), normal(xp, rng, n_out, rank)
    expected = SCALE * np.einsum("...i,ri,or->...o", to_numpy(x), to_numpy(a), to_numpy(b))
    assert_close(forward(x, a, b)[0], expected, rtol=1e-11)


def test_it_is_a_linear_map_by_the_merged_weight(xp):
    x, a, b = example(xp)
    dout = normal(xp, np.random.default_rng(1), 2, 3, 5)
    out, cache = forward(x, a, b)
    merged, merged_cache = linear_forward(x, SCALE * b @ a)
    assert_close(out, merged)
    dx, da, db = lora_backward(dout, cache)
    merged_dx, dweight = linear_backward(dout, merged_cache)
    assert_close(dx, merged_dx)
    assert_close(da, SCALE * b.T @ dweight)                            # the chain rule of  weight = scale · b · a
    assert_close(db, SCALE * dweight @ a.T)


def test_a_gradient_of_x_may_be_added_to_a_buffer(xp):
    args = example(xp)
    out, cache = forward(*args)
    buffer = xp.ones_like(args[0])
    assert lora_backward(out, cache, dx=buffer)[0] is buffer
    assert_close(buffer, 1 + lora_backward(out, cache)[0])


def test_a_frozen_map_gives_the_gradient_of_x_alone(xp):
    rng = np.random.default_rng(2)
    x, weight, bias, dout = normal(xp, rng, 2, 3, 4), normal(xp, rng, 5, 4), normal(xp, rng, 5), normal(xp, rng, 2, 3, 5)
    for cache in (linear_forward(x, weight)[1], linear_forward(x, weight, bias)[1]):
        assert_close(linear_backward_input(dout, cache), linear_backward(dout, cache)[0], rtol=1e-15)
        buffer = xp.ones_like(x)
        assert linear_backward_input(dout, cache, dx=buffer) is buffer
        assert_close(buffer, 1 + linear_backward(dout, cache)[0])
    gradcheck(lambda x: linear_forward(x, weight, bias), linear_backward_input, [x])


def test_no_rows_give_gradients_of_zero(xp):
    x, a, b = example(xp)
    out, cache = forward(x[:0], a, b)
    dx, da, db = lora_backward(out, cache)
    assert out.shape == (0, 3, 5) and dx.shape == (0, 3, 4)
    assert not da.any() and not db.any()


def test_writes_to_no_input(xp):
    check_inputs_stay(forward, lora_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(forward, lora_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(forward, lora_backward, example(xp), dtype)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 5), (2, 4), (5, 2)), r"^x has shape \(2, 3, 5\), but \(2, 3, 4\) is needed$"),
        (((2, 3, 4), (2, 4), (5, 3)), r"^b has shape \(5, 3\), but \(any, 2\) is needed$"),
        (((2, 3, 4), (4,), (5, 3)), r"^a has shape \(4,\), but \(any, any\) is needed$"),
    ],
)
def test_shapes_that_do_not_fit(xp, shapes, message):
    with pytest.raises(ValueError, match=message):
        forward(*map(xp.ones, shapes))


def test_dout_of_another_shape(xp):
    _, cache = forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 5\), but \(2, 3, 5\) is needed$"):
        lora_backward(xp.ones((3, 2, 5)), cache)
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 5\), but \(2, 3, 5\) is needed$"):
        linear_backward_input(xp.ones((3, 2, 5)), linear_forward(xp.ones((2, 3, 4)), xp.ones((5, 4)))[1])
