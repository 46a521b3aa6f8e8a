import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import softcap_backward, softcap_forward

CAPS = st.sampled_from([0.5, 1.0, 30.0])


def example(xp):
    return [normal(xp, np.random.default_rng(0), 2, 3, 4), 2.0]


@given(LEADS, SIZES, RNGS, CAPS)
def test_gradients(xp, lead, n, rng, cap):
    gradcheck(softcap_forward, softcap_backward, [xp.asarray(rng.uniform(-2 * cap, 2 * cap, (*lead, n))), cap])


@given(LEADS, SIZES, RNGS, CAPS)
def test_forward_by_scalars(xp, lead, n, rng, cap):
    x = rng.uniform(-3 * cap, 3 * cap, (*lead, n))
    expected = np.reshape([cap * math.tanh(value / cap) for value in x.ravel()], x.shape)
    assert_close(softcap_forward(xp.asarray(x), cap)[0], expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_values_end_at_the_cap_and_get_no_gradient(xp, dtype):
    x = xp.asarray([-1e30, -1e4, 0, 1e4, 1e30], dtype=dtype)
    out, cache = softcap_forward(x, 30.0)
    assert to_numpy(out).tolist() == [-30, -30, 0, 30, 30]
    assert to_numpy(softcap_backward(xp.ones_like(x), cache)).tolist() == [0, 0, 1, 0, 0]


def test_writes_to_no_input(xp):
    check_inputs_stay(softcap_forward, softcap_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(softcap_forward, softcap_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(softcap_forward, softcap_backward, example(xp), dtype)


@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_a_cap_is_positive(xp, cap):
    with pytest.raises(ValueError, match=rf"^cap is {cap}, but must be positive$"):
        softcap_forward(xp.ones(3), cap)


def test_dout_of_another_shape(xp):
    _, cache = softcap_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(4,\), but \(2, 3, 4\) is needed$"):
        softcap_backward(xp.ones(4), cache)
