import math

import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import geglu_backward, geglu_forward


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 4), normal(xp, rng, 2, 3, 4)]


@given(LEADS, SIZES, RNGS)
def test_gradients(xp, lead, F, rng):
    gate = rng.uniform(-3, 3, (*lead, F))  # far out on the left, all that is left of 1 + tanh u is rounding
    gradcheck(geglu_forward, geglu_backward, [xp.asarray(gate), normal(xp, rng, *lead, F)])


@given(LEADS, SIZES, RNGS)
def test_forward_by_scalars(xp, lead, F, rng):
    gate, up = rng.uniform(-3, 3, (*lead, F)), rng.standard_normal((*lead, F))
    expected = [
        g / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * u
        for g, u in zip(gate.ravel(), up.ravel(), strict=True)
    ]  # (1 + tanh u) / 2 is the sigmoid of 2u
    assert_close(geglu_forward(xp.asarray(gate), xp.asarray(up))[0], np.reshape(expected, gate.shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_gates_close_or_open_without_overflow(xp, dtype):
    gate, up = xp.asarray([-1e4, -40, 40, 1e4], dtype=dtype), xp.full(4, 3, dtype=dtype)
    out, cache = geglu_forward(gate, up)
    dgate, dup = geglu_backward(xp.ones_like(gate), cache)
    assert to_numpy(out).tolist() == [0, 0, 120, 3e4]
    assert to_numpy(dgate).tolist() == [0, 0, 3, 3]
    assert to_numpy(dup).tolist() == [0, 0, 40, 1e4]


def test_writes_to_no_input(xp):
    check_inputs_stay(geglu_forward, geglu_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(geglu_forward, geglu_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(geglu_forward, geglu_backward, example(xp), dtype)


@pytest.mark.parametrize("shape", [(4,), (1, 3, 4), (2, 3, 1), (3, 2, 4)])
def test_up_of_another_shape(xp, shape):
    gate, _ = example(xp)
    with pytest.raises(ValueError, match=r"^up has shape .*, but \(2, 3, 4\) is needed$"):
        geglu_forward(gate, xp.ones(shape))


def test_dout_of_another_shape(xp):
    _, cache = geglu_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(4,\), but \(2, 3, 4\) is needed$"):
        geglu_backward(xp.ones(4), cache)
