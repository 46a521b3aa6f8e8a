import doctest
import importlib

import numpy as np
import pytest

from numllama.gradcheck import GradientError, gradcheck


def matmul_forward(x, weight):
    return x @ weight, (x, weight)


def matmul_backward(dout, cache):
    x, weight = cache
    return dout @ weight.T, x.T @ dout


def softmax_forward(x):
    p = np.exp(x - x.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p, p


def softmax_backward(dout, p):
    return p * (dout - (dout * p).sum(-1, keepdims=True))


def square_arguments(seed=1):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3, 3)), rng.standard_normal((3, 3))]


def check_matmul(backward, seed=1):
    return gradcheck(matmul_forward, backward, square_arguments(seed))


def test_a_right_backward_passes_with_a_wide_margin():
    results = check_matmul(matmul_backward)
    assert [result.argument for result in results] == [0, 0, 1, 1]
    assert all(result.passed and result.error < result.bound / 100 for result in results)


def test_the_example_in_the_docstring_runs():
    module = importlib.import_module("numllama.gradcheck")  # `numllama.gradcheck` may be the function of that name
    failed, attempted = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert attempted > 0 and failed == 0


def test_a_wrong_sign():
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        check_matmul(lambda dout, cache: (-(dout @ cache[1].T), cache[0].T @ dout))


@pytest.mark.parametrize("scale", [0, 0.5, 1 + 1e-7, 3])
def test_a_wrong_scale(scale):
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 1\) is wrong"):
        check_matmul(lambda dout, cache: (dout @ cache[1].T, scale * (cache[0].T @ dout)))


def test_a_missing_term():
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        gradcheck(softmax_forward, lambda dout, p: p * dout, [square_arguments()[0]])


def test_a_transposed_gradient_of_a_square_shape():
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 1\) is wrong"):
        check_matmul(lambda dout, cache: (dout @ cache[1].T, dout.T @ cache[0]))


def test_arguments_drawn_from_the_default_seed_hide_nothing():
    with pytest.raises(GradientError, match=r"weight \(argument 1\) is wrong"):  # were dout x, then xᵀ dout were symmetric
        check_matmul(lambda dout, cache: (dout @ cache[1].T, dout.T @ cache[0]), seed=0)


def test_gradients_in_the_wrong_order():
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        check_matmul(lambda dout, cache: matmul_backward(dout, cache)[::-1])


def test_one_wrong_element():
    def backward(dout, cache):
        dx, dweight = matmul_backward(dout, cache)
        dx[2, 1] += 1e-6
        return dx, dweight

    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        check_matmul(backward)


def test_a_gradient_that_is_not_a_number():
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        gradcheck(softmax_forward, lambda dout, p: np.full_like(p, np.nan), [square_arguments()[0]])


def test_an_infinite_gradient():
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        gradcheck(lambda x: (2 * x, None), lambda dout, cache: np.full(1, np.inf), [np.ones(1)])


def test_a_wrong_shape():
    with pytest.raises(GradientError, match=r"of weight \(argument 1\) is float64\(9,\), but the argument is float64\(3, 3\)"):
        check_matmul(lambda dout, cache: (dout @ cache[1].T, (cache[0].T @ dout).ravel()))


def test_a_wrong_dtype():
    with pytest.raises(GradientError, match=r"gradient of weight \(argument 1\) is float32\(3, 3\)"):
        check_matmul(lambda dout, cache: (dout @ cache[1].T, (cache[0].T @ dout).astype("float32")))


@pytest.mark.parametrize("keep", [1, 3])
def test_a_missing_or_a_surplus_gradient(keep):
    with pytest.raises(GradientError, match=f"backward returns {keep} gradients for 2 differentiable arguments"):
        check_matmul(lambda dout, cache: (*matmul_backward(dout, cache), dout)[:keep])


def test_a_forward_that_writes_to_an_input():
    def forward(x):
        x *= 2
        return x, None

    with pytest.raises(GradientError, match=r"x \(argument 0\) was written to"):
        gradcheck(forward, lambda dout, cache: 2 * dout, [np.ones(3)])


def test_a_backward_that_writes_to_an_input():
    def backward(dout, cache):
        gradients = matmul_backward(dout, cache)
        cache[1][0, 0] = 5
        return gradients

    with pytest.raises(GradientError, match=r"weight \(argument 1\) was written to"):
        check_matmul(backward)


def test_an_integer_input_that_is_written_to():
    def forward(x, indices):
        out = x[indices]
        indices[:] = 0
        return out, None

    with pytest.raises(GradientError, match=r"indices \(argument 1\) was written to"):
        gradcheck(forward, lambda dout, cache: dout, [np.arange(3.0), np.array([2, 1, 0])])


def test_float32_is_refused():
    with pytest.raises(TypeError, match=r"weight \(argument 1\) is float32, but a gradient is checked in float64"):
        gradcheck(matmul_forward, matmul_backward, [np.ones((2, 2)), np.ones((2, 2), "float32")])


def divide_forward(x, y):
    return (x / y, x * y), (x, y)


def divide_backward(dout, cache):
    (dquotient, dproduct), (x, y) = dout, cache
    return dquotient / y + dproduct * y, dproduct * x - dquotient * x / (y * y)


def test_several_outputs():
    x, y = np.array([1.0, -2.0]), np.array([1.5, 0.8])
    assert all(result.passed for result in gradcheck(divide_forward, divide_backward, [x, y]))


def test_several_outputs_of_which_one_is_forgotten():
    def backward(dout, cache):
        return divide_backward((dout[0], np.zeros(2)), cache)

    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        gradcheck(divide_forward, backward, [np.array([1.0, -2.0]), np.array([1.5, 0.8])])


def test_a_scalar_output():
    def forward(x):
        return (x * x).sum(), x

    assert gradcheck(forward, lambda dout, x: 2 * x * dout, [np.array([1.0, 2.0])])


def test_only_what_wrt_names_is_checked():
    x, weight = square_arguments()
    results = gradcheck(matmul_forward, lambda dout, cache: matmul_backward(dout, cache)[1], [x, weight], wrt=[1])
    assert {result.argument for result in results} == {1}


def test_arguments_that_are_no_arrays_of_floats_are_left_alone():
    def forward(x, power, indices):
        return x[indices] ** power, (x, power, indices)

    def backward(dout, cache):
        x, power, indices = cache
        dx = np.zeros_like(x)
        np.add.at(dx, indices, dout * power * x[indices] ** (power - 1))
        return dx

    results = gradcheck(forward, backward, [np.array([1.0, 2.0, 3.0]), 3, np.array([0, 0, 2])])
    assert {result.argument for result in results} == {0}


def nameless(forward):
    """The same function, whose signature says nothing."""
    return lambda *args: forward(*args)


def test_a_report_names_every_argument():
    results = check_matmul(matmul_backward)
    assert [result.name for result in results] == ["x", "x", "weight", "weight"]
    x, weight = square_arguments()
    assert {result.name for result in gradcheck(nameless(matmul_forward), matmul_backward, [x, weight])} == {""}
    results = gradcheck(nameless(matmul_forward), matmul_backward, [x, weight], argument_names=["a", "b"])
    assert {result.name for result in results} == {"a", "b"}
    with pytest.raises(ValueError, match="argument_names has 1 names, but there are 2 arguments"):
        gradcheck(matmul_forward, matmul_backward, [x, weight], argument_names=["x"])


@pytest.mark.parametrize(
    ("scale_x", "scale_weight", "said"),
    [
        (1, 2, r"the gradient of weight \(argument 1\) is wrong: .*\); right: x \(argument 0\)$"),
        (2, 2, r"the gradient of x \(argument 0\) is wrong: .*\); wrong too: weight \(argument 1\)$"),
    ],
)
def test_an_error_names_what_is_wrong_and_what_is_right(scale_x, scale_weight, said):
    def backward(dout, cache):
        dx, dweight = matmul_backward(dout, cache)
        return scale_x * dx, scale_weight * dweight

    with pytest.raises(GradientError, match=said):
        check_matmul(backward)


class OfAnotherLibrary:
    """All that NumPy knows of another library's array."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype, copy=copy)


def test_arrays_of_another_library():
    def forward(x, weight):
        assert type(x) is type(weight) is np.ndarray
        out, cache = matmul_forward(x, weight)
        return OfAnotherLibrary(out), cache

    def backward(dout, cache):
        return [OfAnotherLibrary(gradient) for gradient in matmul_backward(dout, cache)]

    args = [OfAnotherLibrary(array) for array in square_arguments()]
    assert len(gradcheck(forward, backward, args)) == 4
    with pytest.raises(GradientError, match=r"weight \(argument 1\) is wrong"):
        gradcheck(forward, lambda dout, cache: [backward(dout, cache)[0]] * 2, args)


def test_a_list_of_numbers_is_an_array_where_wrt_names_it():
    assert gradcheck(lambda x: (2 * x, None), lambda dout, cache: 2 * dout, [[1.0, 2.0]], wrt=[0])


def take_forward(x, indices, weight):
    return x[indices] * weight, (x, indices, weight)


def take_backward(dout, cache):
    x, indices, weight = cache
    dx = np.zeros_like(x)
    np.add.at(dx, indices, dout * weight)
    return dx, None, dout * x[indices]


def test_a_backward_may_return_one_gradient_for_each_argument():
    args = [np.array([1.0, 2.0, 3.0]), np.array([0, 0, 2]), np.array([3.0, -1.0, 0.5])]
    assert [result.argument for result in gradcheck(take_forward, take_backward, args, directions=1)] == [0, 2]
    assert [result.argument for result in gradcheck(take_forward, take_backward, args, directions=1, wrt=[2])] == [2]
    with pytest.raises(GradientError, match="backward returns 3 gradients for 2 differentiable arguments"):
        gradcheck(take_forward, lambda dout, cache: (dout,) * 3, args)
    with pytest.raises(GradientError, match=r"the gradient of weight \(argument 2\) is a NoneType, not an array"):
        gradcheck(take_forward, lambda dout, cache: (dout, None, None), args)


@pytest.mark.parametrize("directions", [1, 5])
def test_as_many_directions_as_asked(directions):
    assert len(gradcheck(matmul_forward, matmul_backward, square_arguments(), directions=directions)) == 2 * directions


def test_under_a_cotangent_of_ones_a_wrong_softmax_gradient_would_pass():
    """Why cotangents are random: softmax sums to one, so that under a sum its gradient is zero, and so is this nonsense."""
    p = softmax_forward(square_arguments()[0])[1]

    def wrong(dout, p):
        return 3 * softmax_backward(dout, p)

    assert abs(wrong(np.ones((3, 3)), p)).max() < 1e-15
    with pytest.raises(GradientError, match=r"gradient of x \(argument 0\) is wrong"):
        gradcheck(softmax_forward, wrong, [square_arguments()[0]])
