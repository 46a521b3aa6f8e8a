"""The product and the linear map, with a stand-in for cuBLAS that takes the same flags, leading dimensions and strides."""

from contextlib import nullcontext

import numpy as np
import pytest
from emulator import emulated
from helpers import assert_close, assert_same_bits, leaves
from kernel_checks import FLOAT32, HALVES, check_kernels, every_dtype, real

from numllama.cuda.gemm import gemm
from numllama.ops import (
    linear_backward,
    linear_backward_input,
    linear_forward,
    linears_backward,
    linears_backward_input,
    linears_forward,
)

SIZES = [(1, 1, 1), (3, 5, 7), (1, 8, 4), (8, 1, 4), (8, 4, 1), (65, 96, 33)]


def normal(*shape, dtype=FLOAT32):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def laid_out(x, how):
    """The same matrix in other memory: transposed, or as some columns of a wider one."""
    if how == "transposed":
        return np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2)
    if how == "columns":
        wide = np.full((*x.shape[:-1], x.shape[-1] + 5), np.nan, x.dtype)
        wide[..., 2 : 2 + x.shape[-1]] = x
        return wide[..., 2 : 2 + x.shape[-1]]
    return x


@every_dtype
@pytest.mark.parametrize("batch", [(), (1,), (4,)], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_layout_gives_the_product(gpu, sizes, batch, dtype):
    M, K, N = sizes
    a, b = normal(*batch, M, K, dtype=dtype), normal(*batch, K, N, dtype=dtype)
    expected = a.astype(real(dtype)) @ b.astype(real(dtype))
    for how_a in ("rows", "transposed", "columns"):
        for how_b in ("rows", "transposed", "columns"):
            out = gemm(laid_out(a, how_a), laid_out(b, how_b))
            assert out.dtype == dtype
            assert_close(out.astype(real(dtype)), expected, rtol=1e-2 if dtype in HALVES else 1e-6)
            wide = laid_out(np.full(expected.shape, 2, real(dtype)), "columns")
            assert gemm(laid_out(a, how_a), laid_out(b, how_b), wide, beta=0.5) is wide
            assert_close(wide, expected + 1, rtol=1e-6)
    assert gpu.launched == ["gemm"] * 18


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_products_of_two_byte_numbers_add_up_in_float32(gpu, dtype):
    a, b = normal(300, 400, dtype=dtype), normal(400, 5, dtype=dtype)
    out = gemm(a, b, np.full((300, 5), np.nan, "float32"))  # beta = 0: what it held is forgotten
    assert_close(out, a.astype("float64") @ b.astype("float64"), rtol=1e-6)


def test_a_view_of_every_second_row_is_no_transposition(gpu):
    a, b = normal(6, 4), normal(8, 5)
    assert_close(gemm(a[::2], b[::2]), a[::2] @ b[::2], rtol=1e-6)


def test_empty_products(gpu):
    assert gemm(normal(0, 3), normal(3, 2)).shape == (0, 2)
    out = np.ones((2, 2), "float32")
    assert gemm(normal(2, 0), normal(0, 2), out, beta=0.5).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert gpu.launched == []


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (normal(2, 3), normal(4, 2), {}, ValueError, r"a has shape \(2, 3\) and b \(4, 2\)"),
        (normal(2, 3), normal(1, 3, 2), {}, ValueError, r"a has shape \(2, 3\) and b \(1, 3, 2\)"),
        (normal(2, 3), normal(3, 2, dtype="float64"), {}, TypeError, "a is float32 and b float64, but both must be one of"),
        (normal(2, 3), normal(3, 2), dict(out=normal(2, 3)), ValueError, r"out has shape \(2, 3\), but \(2, 2\) is needed"),
        (normal(2, 3), normal(3, 2), dict(out=normal(2, 2, dtype="float64")), TypeError, "out is float64, but the product"),
        (normal(2, 3), normal(3, 2), dict(beta=1.0), ValueError, r"beta is 1\.0, but there is no out"),
        (normal(2, 6)[:, ::2], normal(3, 2), {}, ValueError, "a has strides .*, but rows or columns must be contiguous"),
        (normal(2, 3), normal(3, 2), dict(out=normal(2, 2).T), ValueError, "out must have contiguous rows"),
    ],
)  # fmt: skip
def test_what_cublas_would_misread_is_refused(gpu, a, b, options, error, message):
    with pytest.raises(error, match=message):
        gemm(a, b, **options)


@every_dtype
@pytest.mark.parametrize("shape", [(1, 8, 8), (65, 96, 40), (2, 5, 33, 7)], ids=str)
def test_linear(shape, dtype):
    *lead, I, O = shape  # noqa: E741
    x, weight = normal(*lead, I, dtype="float64"), normal(O, I, dtype="float64")
    into = normal(O, I, dtype=real(dtype))
    check_kernels(linear_forward, linear_backward, [x, weight], dtype, (["gemm"], ["gemm"] * 2), into=into)


@every_dtype
def test_linear_with_a_bias_and_without_a_buffer(dtype):
    x, weight, bias = normal(9, 8, dtype="float64"), normal(5, 8, dtype="float64"), normal(5, dtype="float64")
    check_kernels(linear_forward, linear_backward, [x, weight, bias], dtype, (["gemm"], ["gemm"] * 3), reals={2})


def test_a_gradient_is_added_to_a_float32_buffer_inside_the_product(gpu):
    x, weight, dout = normal(4, 8, dtype=HALVES[0]), normal(5, 8, dtype=HALVES[0]), normal(4, 5, dtype=HALVES[0])
    _, cache = linear_forward(x, weight)
    buffer = np.full((5, 8), 1000, "float32")
    assert linear_backward(dout, cache, into=buffer)[1] is buffer
    assert_close(buffer - 1000, dout.T.astype("float32") @ x.astype("float32"), rtol=1e-4)
    assert gpu.launched == ["gemm"] * 3


@every_dtype
def test_gradients_of_an_input_of_several_maps_add_up_inside_the_product(dtype):
    x, weight, dout = normal(4, 8, dtype=dtype), normal(5, 8, dtype=dtype), normal(4, 5, dtype=dtype)
    results = []
    for run in (nullcontext, emulated):
        dx = normal(9, 8, dtype=dtype)[:4].copy()
        with run() as emulator:
            _, cache = linear_forward(x, weight)
            assert linear_backward(dout, cache, dx=dx)[0] is dx
        results.append(dx.astype(real(dtype)))
    assert emulator.launched == ["gemm"] * 3
    expected = normal(9, 8, dtype=dtype)[:4].astype(real(dtype)) + dout.astype(real(dtype)) @ weight.astype(real(dtype))
    for result in results:
        assert_close(result, expected, rtol=1e-2 if dtype in HALVES else 1e-6)


@every_dtype
def test_a_frozen_maps_gradient_is_one_product(dtype):
    x, weight, dout = normal(4, 8, dtype=dtype), normal(5, 8, dtype=dtype), normal(4, 5, dtype=dtype)
    with emulated() as emulator:
        _, cache = linear_forward(x, weight)
        dx = linear_backward_input(dout, cache)
        twice = linear_backward_input(dout, cache, dx=dx.copy())
    assert emulator.launched == ["gemm"] * 3
    rtol = 1e-2 if dtype in HALVES else 1e-6
    assert_close(dx.astype(real(dtype)), dout.astype(real(dtype)) @ weight.astype(real(dtype)), rtol=rtol)
    assert_close(twice.astype(real(dtype)), 2 * dx.astype(real(dtype)), rtol=rtol)


@every_dtype
@pytest.mark.parametrize("with_bias", [False, True])
def test_several_maps_whose_weights_are_neighbours_are_one_product(with_bias, dtype):
    flat, grads = normal(11, 8, dtype=dtype), np.ones((11, 8), real(dtype))
    x, biases = normal(2, 3, 8, dtype=dtype), normal(11, dtype=real(dtype))
    cuts = slice(0, 6), slice(6, 8), slice(8, 11)
    weights, into = tuple(flat[cut] for cut in cuts), tuple(grads[cut] for cut in cuts)
    biases = tuple(biases[cut] for cut in cuts) if with_bias else None
    rows = normal(2, 3, 11, dtype=dtype)
    douts = tuple(rows[..., cut] for cut in cuts)
    expected, expected_cache = linears_forward(x, weights, biases)
    expected_grads = linears_backward(douts, expected_cache)
    with emulated() as emulator:
        outs, cache = linears_forward(x, weights, biases)
        assert emulator.launched == ["gemm"]
        dx, dweights, *dbiases = linears_backward(douts, cache, into=into)
        assert emulator.launched == ["gemm"] * (4 if with_bias else 3)
        twice = linears_backward_input(douts, cache, dx=dx.copy())
        assert emulator.launched == ["gemm"] * (5 if with_bias else 4)
    rtol = 2e-2 if dtype in HALVES else 1e-5
    for one, other in zip(leaves((outs, dx, dbiases)), leaves((expected, expected_grads[0], expected_grads[2:])), strict=True):
        assert one.shape == other.shape
        assert_close(one.astype(real(dtype)), other.astype(real(dtype)), rtol=rtol)
    assert_close(twice.astype(real(dtype)), 2 * dx.astype(real(dtype)), rtol=rtol)
    for dweight, buffer, other in zip(dweights, into, expected_grads[1], strict=True):
        assert dweight is buffer
        assert_close(buffer - 1, other.astype(real(dtype)), rtol=rtol)


def test_several_maps_that_are_no_neighbours_are_one_after_the_other(gpu):
    x, weights = normal(4, 8), (normal(3, 8), normal(5, 8))
    outs, cache = linears_forward(x, weights)
    dx, dweights = linears_backward(outs, cache)
    assert gpu.launched == ["gemm"] * 6
    expected = linears_backward(outs, linears_forward.reference(x, weights)[1])
    assert_close(dx, expected[0], rtol=1e-5)
    for one, other in zip(dweights, expected[1], strict=True):
        assert_close(one, other, rtol=1e-5)


@every_dtype
def test_rows_of_a_result_begin_at_multiples_of_16_bytes(gpu, dtype):
    x, weight = normal(3, 4, 8, dtype=dtype), normal(5, 8, dtype=dtype)
    out, cache = linear_forward(x, weight)
    assert out.shape == (3, 4, 5) and out.strides[-2] % 16 == 0 and out.strides[-2] - 5 * dtype.itemsize < 16
    dx, dweight = linear_backward(out, cache)
    dense_dx, dense_dweight = linear_backward(out.copy(), cache)
    assert gpu.launched == ["gemm"] * 5
    assert_same_bits(dx, dense_dx)
    assert_same_bits(dweight, dense_dweight)


def test_what_the_product_does_not_take_runs_as_the_op_says(gpu):
    x, weight = normal(3, 16)[:, ::2], normal(5, 8)
    assert_same_bits(linear_forward(x, weight)[0], linear_forward.reference(x, weight)[0])
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^x has shape \(3, 7\), but \(3, 8\) is needed$"):
        linear_forward(normal(3, 7), weight)
