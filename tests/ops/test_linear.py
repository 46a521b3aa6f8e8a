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
    leaves,
    normal,
    unmodified,
)
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import (
    linear_backward,
    linear_backward_input,
    linear_forward,
    linears_backward,
    linears_backward_input,
    linears_forward,
)


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


# ------------------------------------------------------------------------------------------------ several maps of one input


@given(LEADS, SIZES, st.lists(SIZES, min_size=1, max_size=3), st.booleans(), RNGS)
def test_gradients_of_several_maps(xp, lead, n_in, n_outs, with_bias, rng):
    x, weights = normal(xp, rng, *lead, n_in), [normal(xp, rng, n, n_in) for n in n_outs]
    biases = [normal(xp, rng, n) for n in n_outs] if with_bias else []

    def forward(x, *values):
        biases = tuple(values[len(n_outs) :]) or None
        return linears_forward(x, tuple(values[: len(n_outs)]), biases)

    def backward(douts, cache):
        dx, *gradients = linears_backward(douts, cache)
        return dx, *(gradient for of_maps in gradients for gradient in of_maps)

    gradcheck(forward, backward, [x, *weights, *biases])


@pytest.mark.parametrize("with_bias", [False, True])
def test_several_maps_are_one_after_the_other(xp, with_bias):
    rng = np.random.default_rng(0)
    x, weights = normal(xp, rng, 2, 3, 4), tuple(normal(xp, rng, n, 4) for n in (5, 1, 2))
    biases = tuple(normal(xp, rng, n) for n in (5, 1, 2)) if with_bias else None
    with unmodified(x, weights, biases):
        outs, cache = linears_forward(x, weights, biases)
    singles = [linear_forward(x, w, None if biases is None else biases[i]) for i, w in enumerate(weights)]
    into, dx, expected_dx = tuple(xp.ones_like(w) for w in weights), xp.ones_like(x), xp.ones_like(x)
    with unmodified(outs, cache):
        results = linears_backward(outs, cache, into=into, dx=dx)
        frozen = linears_backward_input(outs, cache, dx=xp.ones_like(x))
    assert results[0] is dx and len(results) == 2 + with_bias
    for i, (out, of_map) in enumerate(singles):
        assert_same_bits(outs[i], out)
        _, dweight, *dbias = linear_backward(out, of_map, dx=expected_dx)
        assert results[1][i] is into[i]
        assert_close(into[i], 1 + dweight)
        if with_bias:
            assert_same_bits(results[2][i], dbias[0])
    assert_same_bits(dx, expected_dx)
    assert_same_bits(frozen, expected_dx)
    for out, of_map in singles[:1]:
        assert_same_bits(linears_backward_input((out,), (of_map,)), linear_backward_input(out, of_map))


def test_what_is_not_several_maps_is_named(xp):
    x, weight, _ = example(xp)
    with pytest.raises(TypeError, match=r"^weights is .*, but must be a tuple of arrays$"):
        linears_forward(x, weight)
    with pytest.raises(TypeError, match=r"^weights is \(\), but must be a tuple of arrays$"):
        linears_forward(x, ())
    with pytest.raises(TypeError, match=r"^weights\[1\] must be real floating-point numbers, not int64$"):
        linears_forward(x, (weight, weight.astype("int64")))
    with pytest.raises(ValueError):
        linears_forward(x, (weight, weight), (weight[:, 0],))
    outs, cache = linears_forward(x, (weight, weight))
    for fewer in (dict(douts=outs[:1]), dict(cache=cache[:1]), dict(into=(weight,)), dict(into=(weight, weight, weight))):
        with pytest.raises(ValueError):
            linears_backward(**{"douts": outs, "cache": cache, **fewer})
    with pytest.raises(TypeError, match=r"^into is .*, but must be a tuple of arrays$"):
        linears_backward(outs, cache, into=[weight])
    assert len(leaves(outs)) == 2
