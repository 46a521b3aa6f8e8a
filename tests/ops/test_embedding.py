import numpy as np
import pytest
from helpers import LEADS, RNGS, SIZES, assert_close, assert_same_bits, check_dtype, check_inputs_stay, check_strides, normal
from hypothesis import given

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import embedding_backward, embedding_forward


def example(xp):
    rng = np.random.default_rng(0)
    return [xp.asarray([[1, 0, 4], [1, 1, 3]]), normal(xp, rng, 5, 3)]


def draw(xp, rng, lead, V, C):
    return [xp.asarray(rng.integers(0, V, lead)), normal(xp, rng, V, C)]


@given(LEADS, SIZES, SIZES, RNGS)  # up to 343 tokens out of 7 or fewer: most of them repeat
def test_gradients(xp, lead, V, C, rng):
    gradcheck(embedding_forward, embedding_backward, draw(xp, rng, lead, V, C))


@given(LEADS, SIZES, SIZES, RNGS)
def test_gradients_into_a_buffer_of_zeros(xp, lead, V, C, rng):
    def backward(dout, cache):
        return embedding_backward(dout, cache, into=xp.zeros((V, C)))

    gradcheck(embedding_forward, backward, draw(xp, rng, lead, V, C))


@given(LEADS, SIZES, SIZES, RNGS)
def test_forward_copies_rows(xp, lead, V, C, rng):
    tokens, weight = draw(xp, rng, lead, V, C)
    out = to_numpy(embedding_forward(tokens, weight)[0])
    for n in np.ndindex(*lead):
        assert_same_bits(out[n], to_numpy(weight)[int(tokens[n])])


def test_a_repeated_token_collects_all_of_its_gradients(xp):
    _, cache = embedding_forward(xp.asarray([2, 0, 2, 2]), xp.zeros((3, 2)))
    dout = xp.asarray([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]])
    assert to_numpy(embedding_backward(dout, cache)).tolist() == [[2, 20], [0, 0], [13, 130]]


def test_into_is_added_to_and_returned(xp):
    tokens, weight = example(xp)
    out, cache = embedding_forward(tokens, weight)
    buffer = xp.ones_like(weight)
    assert embedding_backward(out, cache, into=buffer) is buffer
    assert_close(buffer, 1 + embedding_backward(out, cache))


def test_no_tokens_give_a_gradient_of_zero(xp):
    out, cache = embedding_forward(xp.zeros((2, 0), dtype=int), xp.ones((4, 3)))
    dweight = embedding_backward(out, cache)
    assert out.shape == (2, 0, 3) and dweight.shape == (4, 3) and not dweight.any()


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int32"])
def test_tokens_as_files_hold_them(xp, dtype):
    tokens, weight = example(xp)
    out, cache = embedding_forward(tokens, weight)
    out_2, cache_2 = embedding_forward(tokens.astype(dtype), weight)
    assert_same_bits(out_2, out)
    assert_same_bits(embedding_backward(out_2, cache_2), embedding_backward(out, cache))


def test_writes_to_no_input(xp):
    check_inputs_stay(embedding_forward, embedding_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(embedding_forward, embedding_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(embedding_forward, embedding_backward, example(xp), dtype)


@pytest.mark.parametrize("token", [-1, 5, 10**6])
def test_a_token_outside_of_the_vocabulary(xp, token):
    with pytest.raises(ValueError, match=rf"^tokens holds {token}, but must lie in 0\.\.4$"):
        embedding_forward(xp.asarray([0, token, 1]), xp.ones((5, 3)))


def test_tokens_that_are_no_integers(xp):
    with pytest.raises(TypeError, match=r"^tokens must be integers, not float64$"):
        embedding_forward(xp.asarray([0.0, 1.0]), xp.ones((5, 3)))


def test_dout_of_another_shape(xp):
    _, cache = embedding_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 2, 3\), but \(2, 3, 3\) is needed$"):
        embedding_backward(xp.ones((3, 2, 3)), cache)
