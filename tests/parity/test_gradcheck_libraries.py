"""Functions of PyTorch and JAX under gradcheck: right ones pass, and a wrong gradient is found by its argument's name."""

import numpy as np
import pytest

from numllama.gradcheck import GradientError, gradcheck, of_jax, of_torch

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
pytestmark = pytest.mark.parity


def arguments():
    rng = np.random.default_rng(1)
    return [rng.standard_normal((5, 3)), np.array([4, 0, 4, 1]), rng.standard_normal((4, 3)), 2.0]


class Take(torch.autograd.Function):
    """scale · x[indices] · weight; the gradient of weight is multiplied by `wrong`."""

    wrong = 1

    @staticmethod
    def forward(ctx, x, indices, weight, scale):
        ctx.save_for_backward(x, indices, weight)
        ctx.scale = scale
        return scale * x[indices] * weight

    @classmethod
    def backward(cls, ctx, dout):
        x, indices, weight = ctx.saved_tensors
        dx = torch.zeros_like(x).index_add(0, indices, ctx.scale * dout * weight)
        return dx, None, Take.wrong * ctx.scale * dout * x[indices], None


class TakeWithSetup(torch.autograd.Function):
    """The same in the other style, with two outputs."""

    @staticmethod
    def forward(x, indices, weight, scale):
        return scale * x[indices] * weight, 2 * weight

    @staticmethod
    def setup_context(ctx, inputs, output):
        *arrays, ctx.scale = inputs
        ctx.save_for_backward(*arrays)

    @staticmethod
    def backward(ctx, dout, dtwice):
        x, indices, weight = ctx.saved_tensors
        dx = torch.zeros_like(x).index_add(0, indices, ctx.scale * dout * weight)
        return dx, None, ctx.scale * dout * x[indices] + 2 * dtwice, None


def take(x, indices, weight, scale):
    return scale * x[indices] * weight


FUNCTIONS = {"with a context": Take, "with setup_context": TakeWithSetup, "a function": take}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_function_of_pytorch(function):
    results = gradcheck(*of_torch(function), arguments(), directions=1)
    assert [(result.name, result.argument) for result in results] == [("x", 0), ("weight", 2)]
    results = gradcheck(*of_torch(function), [torch.tensor(arg) if np.ndim(arg) else arg for arg in arguments()], wrt=[2])
    assert {result.name for result in results} == {"weight"}


def test_a_wrong_function_of_pytorch(monkeypatch):
    monkeypatch.setattr(Take, "wrong", 1 + 1e-6)
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 2\) is wrong: .*; right: x \(argument 0\)$"):
        gradcheck(*of_torch(Take), arguments())


def test_a_function_of_pytorch_that_writes_to_an_input():
    class InPlace(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.mul_(2)

        @staticmethod
        def backward(ctx, dout):
            return 2 * dout

    with pytest.raises(GradientError, match=r"x \(argument 0\) was written to"):
        gradcheck(*of_torch(InPlace), [np.ones(3)])


@pytest.fixture
def in_float64():
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def taken(wrong=1):
    """The same function of JAX, its gradient by hand."""

    @jax.custom_vjp
    def function(x, indices, weight, scale):
        return scale * x[indices] * weight

    def forward(x, indices, weight, scale):
        return function(x, indices, weight, scale), (x, indices, weight, scale)

    def backward(cache, dout):
        x, indices, weight, scale = cache
        dx = jax.numpy.zeros_like(x).at[indices].add(scale * dout * weight)
        return dx, None, wrong * scale * dout * x[indices], None

    function.defvjp(forward, backward)
    return function


def test_a_function_of_jax(in_float64):
    for function in (taken(), jax.jit(taken()), take):
        results = gradcheck(*of_jax(function), arguments(), directions=1)
        assert [(result.name, result.argument) for result in results] == [("x", 0), ("weight", 2)]
    results = gradcheck(*of_jax(taken()), [jax.numpy.asarray(arg) if np.ndim(arg) else arg for arg in arguments()], wrt=[2])
    assert {result.name for result in results} == {"weight"}


def test_a_wrong_function_of_jax(in_float64):
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 2\) is wrong: .*; right: x \(argument 0\)$"):
        gradcheck(*of_jax(taken(wrong=1 + 1e-6)), arguments())


def test_several_outputs_of_jax(in_float64):
    assert gradcheck(*of_jax(lambda x: (x * x, x.sum())), [np.array([1.0, -2.0])])


def test_jax_in_float32_is_refused():
    with pytest.raises(ValueError, match=r'JAX computes in float32: call jax.config.update\("jax_enable_x64", True\) first'):
        of_jax(take)
