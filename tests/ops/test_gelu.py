import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import gelu_backward, gelu_forward

FORMS = ["tanh", "none"]


def example(xp, approximate):
    return [normal(xp, np.random.default_rng(0), 2, 3, 4), approximate]


def gelu_of_scalar(x, approximate):
    if approximate == "none":
        return x * math.erfc(-x / math.sqrt(2)) / 2
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + math.exp(-2 * u))  # (1 + tanh u) / 2 is the sigmoid of 2u


@pytest.mark.parametrize("approximate", FORMS)
@given(LEADS, SIZES, RNGS)
def test_gradients(xp, approximate, lead, F, rng):
    x = rng.uniform(-3, 3, (*lead, F))  # far out on the left, all that is left of 1 + tanh u is rounding
    gradcheck(gelu_forward, gelu_backward, [xp.asarray(x), approximate])


@pytest.mark.parametrize("approximate", FORMS)
@given(LEADS, SIZES, RNGS)
def test_forward_by_scalars(xp, approximate, lead, F, rng):
    x = rng.uniform(-3, 3, (*lead, F))
    expected = np.reshape([gelu_of_scalar(value, approximate) for value in x.ravel()], x.shape)
    assert_close(gelu_forward(xp.asarray(x), approximate)[0], expected)


def test_the_default_is_gpt_2s_tanh(xp):
    x, _ = example(xp, "tanh")
    assert_close(gelu_forward(x)[0], gelu_forward(x, "tanh")[0], rtol=0)


def test_the_two_forms_agree_to_three_digits(xp):
    x = xp.linspace(-5, 5, 101)
    difference = abs(gelu_forward(x, "tanh")[0] - gelu_forward(x, "none")[0]).max()
    assert 1e-5 < difference < 1e-3


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_values_close_or_open_without_overflow(xp, approximate, dtype):
    x = xp.asarray([-1e4, -40, 40, 1e4], dtype=dtype)
    out, cache = gelu_forward(x, approximate)
    assert to_numpy(out).tolist() == [0, 0, 40, 1e4]
    assert to_numpy(gelu_backward(xp.ones_like(x), cache)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("approximate", FORMS)
def test_writes_to_no_input(xp, approximate):
    check_inputs_stay(gelu_forward, gelu_backward, example(xp, approximate))


@pytest.mark.parametrize("approximate", FORMS)
def test_takes_any_strides(xp, approximate):
    check_strides(gelu_forward, gelu_backward, example(xp, approximate))


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, approximate, dtype):
    check_dtype(gelu_forward, gelu_backward, example(xp, approximate), dtype)


@pytest.mark.parametrize("approximate", ["erf", "", None])
def test_an_unknown_form(xp, approximate):
    with pytest.raises(ValueError, match=rf"^approximate is {approximate!r}, but must be 'tanh' or 'none'$"):
        gelu_forward(xp.ones(3), approximate)


def test_dout_of_another_shape(xp):
    _, cache = gelu_forward(xp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"^dout has shape \(4,\), but \(2, 3, 4\) is needed$"):
        gelu_backward(xp.ones(4), cache)
