import numpy as np
import pytest
from helpers import LEADS, RNGS, assert_close, assert_same_bits, normal, random_like, scaled_rows, strided, unmodified
from hypothesis import given
from hypothesis import strategies as st

from numllama.gradcheck import gradcheck
from numllama.ops import add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward


def example(xp):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, 2, 3, 6), normal(xp, rng, 2, 3, 6), normal(xp, rng, 6), 1e-5]


@given(LEADS, st.integers(2, 9), RNGS)
def test_gradients(xp, lead, C, rng):
    total, x = scaled_rows(rng, *lead, C), rng.standard_normal((*lead, C))
    args = [xp.asarray(x), xp.asarray(total - x), normal(xp, rng, C), 1e-5]
    gradcheck(add_rmsnorm_forward, add_rmsnorm_backward, args)


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
    assert {leaf.dtype.name for leaf in (*outs, *cache, *gradients)} == {dtype}


def test_wrong_shapes(xp):
    x, branch, weight, eps = example(xp)
    with pytest.raises(ValueError, match=r"^branch has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_forward(x, branch[0], weight, eps)
    _, cache = add_rmsnorm_forward(x, branch, weight, eps)
    with pytest.raises(ValueError, match=r"^dtotal has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_backward((x[0], x), cache)
    with pytest.raises(ValueError, match=r"^dout has shape \(3, 6\), but \(2, 3, 6\) is needed$"):
        add_rmsnorm_backward((x, x[0]), cache)
