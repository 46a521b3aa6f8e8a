"""Matrices in int8: how far elements move, products against a formula in float64, and a whole model."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import numllama as nl
from numllama import ops
from numllama.backend import BFLOAT16, INT8
from numllama.cpu import int8, onednn, products
from numllama.cpu.int8 import Int8Matrix, quantize
from numllama.model.parameters import copied_parameters

has_int8 = pytest.mark.skipif(not products.multiplies_int8(), reason="needs oneDNN and a CPU that multiplies int8")
SIZES = st.integers(1, 40)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def stored(matrix):
    return Int8Matrix.quantized(matrix, np.empty(matrix.shape, INT8))


def wide(matrix):
    """What a matrix in int8 stands for, in float64."""
    return matrix.values * matrix.scales.astype(np.float64)


def rounded_rows(x):
    """Rows as they are multiplied where the CPU multiplies int8, in float64."""
    scales = abs(x).max(-1, keepdims=True).astype(np.float64) / 127
    return np.rint(x / scales) * scales


def in_int8(model):
    return nl.Transformer(model.config, params=copied_parameters(model.config, model.params, INT8))


@given(SIZES, SIZES, st.integers(-20, 20), st.sampled_from([np.float32, np.float64, BFLOAT16]))
def test_no_element_moves_by_more_than_half_a_scale(O, I, exponent, dtype):  # noqa: E741
    matrix = (normal(O, I) * 10.0**exponent).astype(dtype)
    rounded = stored(matrix)
    assert (abs(rounded.values) <= 127).all() and (abs(rounded.values).max(1) == 127).all()
    assert_close(rounded.scales[:, 0], abs(matrix.astype(np.float64)).max(1) / 127, rtol=1e-6)
    assert (abs(wide(rounded) - matrix.astype(np.float64)) <= 0.5001 * rounded.scales).all()


def test_rows_of_zeros_and_of_tiny_numbers_become_zero_and_others_that_are_not_finite_nan():
    matrix = np.ones((5, 3), np.float32)
    matrix[0], matrix[1], matrix[2, 1], matrix[3, 2] = 0, 1e-40, np.nan, -np.inf
    rows = np.asarray(stored(matrix))
    assert (rows[:2] == 0).all() and np.isnan(rows[2]).all() and not np.isfinite(rows[3]).any() and (rows[4] == 1).all()


def test_one_row_without_its_axis_is_the_same_row():
    x, values, scales = normal(1, 30), np.empty((1, 30), INT8), np.empty((1, 1), np.float32)
    quantize(x, values, scales, np.empty_like(x))
    alone, scale = np.empty(30, INT8), np.empty((), np.float32)
    quantize(x[0], alone, scale, np.empty(30, np.float32))
    assert_same_bits(alone, values[0])
    assert scale == scales[0, 0]


def test_a_matrix_of_many_rows_is_rounded_block_by_block(monkeypatch):
    matrix = normal(50, 8)
    whole = stored(matrix)
    monkeypatch.setattr(int8, "ROUNDED_ROWS", 7)
    assert_same_bits(stored(matrix).values, whole.values)
    assert_same_bits(stored(matrix).scales, whole.scales)


def test_rows_are_looked_up_in_float32_and_cannot_be_written():
    matrix = stored(normal(9, 4))
    tokens = np.array([[3, 0], [3, 8]])
    out, _ = ops.embedding_forward(tokens, matrix)
    assert out.dtype == np.float32
    assert_close(out, wide(matrix)[tokens], rtol=1e-7)
    assert_same_bits(np.asarray(matrix)[tokens], out)
    with pytest.raises(ValueError, match=r"^weights stored as int8 cannot be changed: load the model without store_as$"):
        matrix[0] = 1


@given(SIZES, st.integers(1, 300), SIZES)
def test_without_onednn_a_product_is_one_with_the_matrix_it_stands_for(N, I, O):  # noqa: E741
    x, matrix = normal(N, I, seed=1), stored(normal(O, I))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "library", lambda: None)
        patch.setattr(products, "BLOCK_ELEMENTS", 500)
        out, _ = ops.linear_forward(x, matrix)
    assert out.dtype == np.float32
    assert_close(out, x @ wide(matrix).T, rtol=1e-5)


@has_int8
@given(SIZES, st.integers(1, 300), SIZES)
def test_a_cpu_that_multiplies_int8_rounds_the_rows_too(N, I, O):  # noqa: E741
    x, bias, matrix = normal(N, I, seed=1), normal(O, seed=2), stored(normal(O, I))
    out, _ = ops.linear_forward(x, matrix, bias)
    values, scales = np.empty(x.shape, INT8), np.empty((N, 1), np.float32)
    quantize(x, values, scales, np.empty_like(x))
    assert_close(values * scales, rounded_rows(x), rtol=1e-5)
    assert_close(out - bias, (values * scales.astype(np.float64)) @ wide(matrix).T, rtol=1e-5)


def test_rows_in_float64_stay_as_they_are():
    x, matrix = normal(3, 20).astype(np.float64), stored(normal(5, 20))
    assert_close(ops.linear_forward(x, matrix)[0], x @ wide(matrix).T, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_no_rows_and_a_single_one(n):
    assert ops.linear_forward(normal(n, 20), stored(normal(5, 20)))[0].shape == (n, 5)


KINDS = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "ffn": "gelu", "bias": True},
    "qk_norm": {"qk_norm": "rms"},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_model_in_int8_is_the_model_whose_matrices_are_rounded(without_onednn, name):
    config = nl.ModelConfig(61, 32, 2, 4, n_kv_heads=2, max_seq_len=24, init_std=0.1, **KINDS[name])
    model = in_int8(nl.Transformer(config, seed=3))
    tokens, targets = np.random.default_rng(0).integers(0, 61, (2, 3, 20))
    matrices = {name: np.asarray(view) for name, view in model.params.items()}
    same = nl.Transformer(config, params=copied_parameters(config, matrices, "float64"))
    assert (model.dtype, model.compute_dtype, same.dtype) == (INT8, np.float32, np.float64)
    assert_close(model.forward(tokens), same.forward(tokens), rtol=1e-5)
    assert float(model.loss(tokens, targets)) == pytest.approx(float(same.loss(tokens, targets)), rel=1e-6)


def test_it_takes_a_quarter_of_the_memory():
    config = nl.ModelConfig(512, 128, 2, 2)
    model = in_int8(nl.Transformer(config))
    params, exact = model.params, nl.Transformer(config).params
    scales = sum(params[name].scales.nbytes for name, view in exact.items() if view.ndim == 2)
    assert 4 * params.flat.nbytes == exact.matrices.nbytes
    assert scales < 0.05 * params.flat.nbytes


def test_joined_matrices_are_the_rows_of_each():
    params = in_int8(nl.Transformer(nl.ModelConfig(30, 16, 2, 4, n_kv_heads=2))).params
    joined = params.joined("blocks.1.wq", "blocks.1.wv")
    assert np.shares_memory(joined.values, params.flat)
    assert_same_bits(np.asarray(joined), np.concatenate([np.asarray(params[f"blocks.1.{name}"]) for name in ("wq", "wk", "wv")]))
