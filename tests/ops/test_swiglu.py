import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import swiglu_backward, swiglu_forward


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 4), normal(xp, rng, 2, 3, 4)]


@given(LEADS, SIZES, RNGS)
def test_gradients(xp, lead, F, rng):
    gate = rng.uniform(-6, 6, (*lead, F))  # far out on the left, all that is left of 1 + tanh(g/2) is rounding
    gradcheck(swiglu_forward, swiglu_backward, [xp.asarray(gate), normal(xp, rng, *lead, F)])


@given(LEADS, SIZES, RNGS)
def test_forward_by_scalars(xp, lead, F, rng):
    gate, up = rng.uniform(-6, 6, (*lead, F)), rng.standard_normal((*lead, F))
    expected = [g / (1 + math.exp(-g)) * u for g, u in zip(gate.ravel(), up.ravel(), strict=True)]
    assert_close(swiglu_forward(xp.asarray(gate), xp.asarray(up))[0], np.reshape(expected, gate.shape))


def test_known_values(xp):
    gate = xp.asarray([0.0, math.log(3), -math.log(3)])  # the sigmoid is 1/2, 3/4, 1/4
    assert_close(swiglu_forward(gate, xp.ones(3))[0], np.array([0.0, 0.75, -0.25]) * math.log(3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_gates_close_or_open_without_overflow(xp, dtype):
    gate, up = xp.asarray([-1e4, -200, 200, 1e4], dtype=dtype), xp.full(4, 3, dtype=dtype)
    out, cache = swiglu_forward(gate, up)
    dgate, dup = swiglu_backward(xp.ones_like(gate), cache)
    assert to_numpy(out).tolist() == [0, 0, 600, 3e4]
    assert to_numpy(dgate).tolist() == [0, 0, 3, 3]
    assert to_numpy(dup).tolist() == [0, 0, 200, 1e4]


def test_writes_to_no_input(xp):
    check_inputs_stay(swiglu_forward, swiglu_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(swiglu_forward, swiglu_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(swiglu_forward, swiglu_backward, example(xp), dtype)


@pytest.mark.parametrize("shape", [(4,), (1, 3, 4), (2, 3, 1), (3, 2, 4)])
def test_up_of_another_shape(xp, shape):
    gate, _ = example(xp)
    with pytest.raises(ValueError, match=r"^up has shape .*, but \(2, 3, 4\) is needed$"):
        swiglu_forward(gate, xp.ones(shape))


def test_dout_of_another_shape(xp):
    _, cache = swiglu_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(4,\), but \(2, 3, 4\) is needed$"):
        swiglu_backward(xp.ones(4), cache)
