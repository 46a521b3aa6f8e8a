import numpy as np
import pytest
from helpers import LEADS, RNGS, assert_close, assert_same_bits, leaves, normal, random_like, scaled_rows, strided, unmodified
from hypothesis import given
from hypothesis import strategies as st

from numllama.gradcheck import gradcheck
from numllama.ops import (
    add_rmsnorm_backward,
    add_rmsnorm_forward,
    dropout_backward,
    dropout_forward,
    rmsnorm_backward,
    rmsnorm_forward,
)


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 6), normal(xp, rng, 2, 3, 6), normal(xp, rng, 6), 1e-5]


@given(LEADS, st.integers(2, 9), RNGS)
def test_gradients(xp, lead, C, rng):
    total, x = scaled_rows(rng, *lead, C), rng.standard_normal((*lead, C))
    args = [xp.asarray(x), xp.asarray(total - x), normal(xp, rng, C), 1e-5]
    gradcheck(add_rmsnorm_forward, add_rmsnorm_backward, args)


@given(LEADS, st.integers(2, 9), RNGS)
def test_gradients_with_dropout(xp, lead, C, rng):
    x, branch = xp.asarray(scaled_rows(rng, *lead, C)), normal(xp, rng, *lead, C)
    gradcheck(add_rmsnorm_forward, add_rmsnorm_backward, [x, 0.2 * branch, normal(xp, rng, C), 1e-5, 0.3, (1, 2)])


@given(LEADS, st.integers(2, 9), st.booleans(), RNGS)
def test_gradients_of_a_branch_that_begins_the_stream(xp, lead, C, drops, rng):
    """There is no x, so no gradient of it; and behind the last norm there is no gradient of the sum."""

    def forward(branch, weight):
        (_, out), cache = add_rmsnorm_forward(None, branch, weight, 1e-2, *((0.3, (1, 2)) if drops else ()))
        return out, cache

    def backward(dout, cache):
        return add_rmsnorm_backward((None, dout), cache)[1:]

    gradcheck(forward, backward, [xp.asarray(scaled_rows(rng, *lead, C)), normal(xp, rng, C)])


def test_the_branch_goes_through_dropout_and_its_gradient_through_the_same_mask(xp):
    x, branch, weight, eps = example(xp)
    (total, out), cache = add_rmsnorm_forward(x, branch, weight, eps, 0.4, (3, 1))
    dropped, dropout_cache = dropout_forward(branch, 0.4, (3, 1))
    (total_2, out_2), cache_2 = add_rmsnorm_forward(x, dropped, weight, eps)
    assert_same_bits(total, total_2)
    assert_same_bits(out, out_2)
    douts = random_like(total), random_like(out) ** 2
    dx, dbranch, dweight = add_rmsnorm_backward(douts, cache)
    dx_2, same, dweight_2 = add_rmsnorm_backward(douts, cache_2)
    assert same is dx_2
    assert_same_bits(dx, dx_2)
    assert_same_bits(dbranch, dropout_backward(dx, dropout_cache))
    assert_same_bits(dweight, dweight_2)
    assert (dbranch == 0).any() and not (dx == 0).any()


def test_without_x_the_sum_is_the_branch_and_without_dtotal_nothing_is_added(xp):
    _, branch, weight, eps = example(xp)
    (total, out), cache = add_rmsnorm_forward(None, branch, weight, eps)
    expected, expected_cache = rmsnorm_forward(branch, weight, eps)
    assert total is branch
    assert_same_bits(out, expected)
    dout = random_like(out)
    gradients = add_rmsnorm_backward((None, dout), cache)[::2]
    for actual, wanted in zip(gradients, rmsnorm_backward(dout, expected_cache), strict=True):
        assert_same_bits(actual, wanted)


def test_into_is_added_to_and_returned(xp):
    args = example(xp)
    douts, cache = add_rmsnorm_forward(*args)
    dweight, buffer = add_rmsnorm_backward(douts, cache)[2], xp.ones(6)
    assert add_rmsnorm_backward(douts, cache, buffer)[2] is buffer
    assert_close(buffer, 1 + dweight)


def test_it_is_the_sum_and_the_norm_of_the_sum(xp):
    x, branch, weight, eps = example(xp)
    (total, out), cache = add_rmsnorm_forward(x, branch, weight, eps)
    expected, expected_cache = rmsnorm_forward(x + branch, weight, eps)
    assert_same_bits(total, x + branch)
    assert_same_bits(out, expected)
    dtotal, dout = random_like(total), random_like(out) ** 2
    dx, dbranch, dweight = add_rmsnorm_backward((dtotal, dout), cache)
    through, expected_dweight = rmsnorm_backward(dout, expected_cache)
    assert_close(dx, dtotal + through)
    assert_same_bits(dbranch, dx)
    assert_same_bits(dweight, expected_dweight)


def test_writes_to_no_input_and_takes_any_strides(xp):
    args = example(xp)
    with unmodified(args):
        outs, cache = add_rmsnorm_forward(*args)
    douts = tuple(map(random_like, outs))
    with unmodified(douts, cache):
        gradients = add_rmsnorm_backward(douts, cache)
    outs_2, cache_2 = add_rmsnorm_forward(*map(strided, args))
    gradients_2 = add_rmsnorm_backward(tuple(map(strided, douts)), cache_2)
    for a, b in zip((*outs, *gradients), (*outs_2, *gradients_2), strict=True):
        assert_close(a, b, rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    args = [arg.astype(dtype) for arg in example(xp)[:3]]
    outs, cache = add_rmsnorm_forward(*args, 1e-5)
    gradients = add_rmsnorm_backward(outs, cache)
    assert {leaf.dtype.name for leaf in leaves((outs, cache, gradients))} == {dtype}


def test_wrong_shapes(xp):
    x, branch, weight, eps = example(xp)
    with pytest.raises(ValueError, match=r"^branch has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_forward(x, branch[0], weight, eps)
    _, cache = add_rmsnorm_forward(x, branch, weight, eps)
    with pytest.raises(ValueError, match=r"^dtotal has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_backward((x[0], x), cache)
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_backward((x, x[0]), cache)
