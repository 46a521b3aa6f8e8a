import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import softmax_backward, softmax_forward


def example(xp):
    return [normal(xp, np.random.default_rng(0), 2, 3, 5)]


@given(LEADS, SIZES, RNGS)
def test_gradients(xp, lead, n, rng):
    gradcheck(softmax_forward, softmax_backward, [normal(xp, rng, *lead, n)])


@given(LEADS, SIZES, RNGS)
def test_forward_by_scalars(xp, lead, n, rng):
    x = rng.standard_normal((*lead, n))
    expected = np.empty_like(x)
    for row in np.ndindex(*lead):
        total = math.fsum(map(math.exp, x[row]))
        expected[row] = [math.exp(value) / total for value in x[row]]
    assert_close(softmax_forward(xp.asarray(x))[0], expected)


def test_large_numbers_do_not_overflow(xp):
    p = to_numpy(softmax_forward(xp.asarray([[1e4, 1e4, -1e4], [-1e30, -1e30, -1e30]]))[0])
    assert_close(p, np.array([[0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]]))


def test_masked_places_have_no_probability_and_no_gradient(xp):
    x = xp.asarray([[1.0, -math.inf, 1.0], [-math.inf, -math.inf, -math.inf]])
    p, cache = softmax_forward(x)
    assert to_numpy(p).tolist() == [[0.5, 0, 0.5], [0, 0, 0]]
    dx = to_numpy(softmax_backward(xp.asarray([[1.0, 5.0, 3.0], [1.0, 2.0, 3.0]]), cache))
    assert dx.tolist() == [[-0.5, 0, 0.5], [0, 0, 0]]


def test_writes_to_no_input(xp):
    check_inputs_stay(softmax_forward, softmax_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(softmax_forward, softmax_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(softmax_forward, softmax_backward, example(xp), dtype)


def test_dout_of_another_shape(xp):
    _, cache = softmax_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(5,\), but \(2, 3, 5\) is needed$"):
        softmax_backward(xp.ones(5), cache)
