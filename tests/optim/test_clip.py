"""Clipping by the norm of all gradients."""

from math import fsum, inf, isnan, nan, sqrt

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, unmodified

from numllama.model import Parameters
from numllama.optim import clip_grad_norm, grad_norm

SMALL, LARGE = {"a": (3, 4), "gain": (5,)}, {"a": (600, 801), "gain": (200001,)}


def random_grads(shapes=SMALL, dtype="float64", scale=1.0) -> Parameters:
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    return Parameters(shapes, (scale * np.random.default_rng(0).standard_normal(size)).astype(dtype))


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-14), ("float32", 1e-6)])
def test_the_norm_is_the_root_of_the_sum_of_all_squares(shapes, dtype, rtol):
    grads = random_grads(shapes, dtype)
    with unmodified(grads.flat):
        norm = grad_norm(grads)
    assert norm == pytest.approx(sqrt(fsum(float(g) ** 2 for g in grads.flat)), rel=rtol)
    assert type(norm) is float


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_that_are_too_long_are_shortened_to_max_norm(dtype):
    grads, before = random_grads(dtype=dtype), random_grads(dtype=dtype)
    assert clip_grad_norm(grads, 0.5) == grad_norm(before)
    assert_close(grads.flat, before.flat * (0.5 / grad_norm(before)), rtol=2e-6)
    assert grad_norm(grads) == pytest.approx(0.5, rel=2e-6)
    assert grads.flat.dtype == dtype


def test_views_are_shortened_with_the_flat_buffer():
    grads, before = random_grads(), random_grads()
    clip_grad_norm(grads, 0.5)
    for name in SMALL:
        assert_close(grads[name], before[name] * (0.5 / (grad_norm(before) + 1e-6)))


@pytest.mark.parametrize("max_norm", [4.2, 100.0, inf])
def test_gradients_that_are_short_enough_stay_bit_for_bit(max_norm):
    grads, before = random_grads(), random_grads()
    assert grad_norm(before) < max_norm
    assert clip_grad_norm(grads, max_norm) == grad_norm(before)
    assert_same_bits(grads.flat, before.flat)


def test_zero_gradients_have_norm_zero():
    grads = random_grads().zeros_like()
    assert clip_grad_norm(grads, 1.0) == 0.0
    assert not grads.flat.any()


@pytest.mark.parametrize("value", [inf, -inf, nan])
@pytest.mark.parametrize("place", [0, -1])
def test_gradients_that_are_not_finite_are_left_alone_and_reported(value, place):
    grads = random_grads()
    grads.flat[place] = value
    with unmodified(grads.flat):
        norm = clip_grad_norm(grads, 1.0)
    assert isnan(norm) if isnan(value) else norm == inf


@pytest.mark.parametrize("max_norm", [0.0, -1.0, nan])
def test_a_max_norm_that_cannot_be_is_named(max_norm):
    with pytest.raises(ValueError, match=f"^max_norm is {max_norm}, but must be positive$"):
        clip_grad_norm(random_grads(), max_norm)
