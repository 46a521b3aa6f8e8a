"""Row-blocked runs against whole ones. Blocks are a CPU matter, so everything here is NumPy."""

from importlib import import_module
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, leaves, random_like

from numllama import blocks, dispatch
from numllama.backend import BFLOAT16
from numllama.blocks import slices
from numllama.cpu import onednn, products
from numllama.cpu import rmsnorm as cpu_rmsnorm
from numllama.cuda import gelu as cuda_gelu
from numllama.dispatch import accelerated
from numllama.ops import (
    add_rmsnorm_backward,
    add_rmsnorm_forward,
    cross_entropy_backward,
    cross_entropy_forward,
    gelu_backward,
    gelu_forward,
    layernorm_backward,
    layernorm_forward,
    linear_backward,
    linear_forward,
    rmsnorm_backward,
    rmsnorm_forward,
    rope_backward,
    rope_forward,
    rope_table,
    swiglu_backward,
    swiglu_forward,
)
from numllama.ops.rmsnorm import RMSNormCache
from numllama.optim.clip import euclidean_norm

SHAPES = [(20, 7), (4, 5, 7), (2, 2, 5, 7), (1, 33, 5), (64, 1), (3, 80), (1, 160)]  # blocks of 30 numbers divide few of them


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 30)
    monkeypatch.setattr(blocks, "WHOLE_ELEMENTS", 60)


def arrays(*shapes, dtype="float64"):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def rmsnorm(shape, dtype="float64"):
    return rmsnorm_forward, rmsnorm_backward, [*arrays(shape, shape[-1:], dtype=dtype), 1e-5]


def layernorm(shape, dtype="float64"):
    return layernorm_forward, layernorm_backward, [*arrays(shape, shape[-1:], shape[-1:], dtype=dtype), 1e-5]


def swiglu(shape, dtype="float64"):
    return swiglu_forward, swiglu_backward, arrays(shape, shape, dtype=dtype)


def gelu(shape, dtype="float64"):
    return gelu_forward, gelu_backward, [*arrays(shape, dtype=dtype), "tanh"]


def exact_gelu(shape, dtype="float64"):
    return gelu_forward, gelu_backward, [*arrays(shape, dtype=dtype), "none"]


OPS = [rmsnorm, layernorm, swiglu, gelu, exact_gelu]


def whole(op, *args):
    """The result without blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "WHOLE_ELEMENTS", 2**40)
        return op(*args)


@pytest.fixture
def calls(monkeypatch):
    """How many rows each block had."""
    sizes = []

    @accelerated(by_rows=True)
    def op(x):
        sizes.append(len(x))
        return x

    return op, sizes


def test_large_arrays_run_in_blocks_of_rows(calls):
    op, sizes = calls
    op(np.ones((20, 7)))
    assert sizes == [4, 4, 4, 4, 4]
    op(np.ones((2, 3, 5, 7)))
    assert sizes[5:] == [4, 4, 4, 4, 4, 4, 4, 2]


def test_small_arrays_run_whole(calls):
    op, sizes = calls
    op(np.ones((8, 7)))
    assert sizes == [8]


def test_a_row_wider_than_a_block_is_a_block(calls):
    op, sizes = calls
    op(np.ones((3, 80)))
    assert sizes == [1, 1, 1]


def test_a_single_axis_runs_whole(calls):
    op, sizes = calls
    op(np.ones(100))
    assert sizes == [100]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", OPS)
def test_forward_gives_the_same_bits(make, shape):
    forward, _, args = make(shape)
    out, cache = forward(*args)
    out_2, cache_2 = whole(forward, *args)
    assert_same_bits(out, out_2)
    for actual, expected in zip(leaves(cache), leaves(cache_2), strict=True):
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", OPS)
def test_backward_gives_the_same_bits_for_rows_and_the_same_sums_for_weights(make, shape):
    forward, backward, args = make(shape)
    out, cache = whole(forward, *args)
    dout = random_like(out)
    for actual, expected in zip(leaves((backward(dout, cache),)), leaves((whole(backward, dout, cache),)), strict=True):
        if expected.shape == shape:
            assert_same_bits(actual, expected)
        else:
            assert_close(actual, expected, rtol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [rmsnorm, layernorm])
def test_float32_weight_gradients_agree_to_six_digits_and_stay_float32(make, shape):
    forward, backward, args = make(shape, "float32")
    out, cache = forward(*args)
    dout = random_like(out)
    for actual, expected in zip(backward(dout, cache), whole(backward, dout, cache), strict=True):
        assert actual.dtype == "float32"
        assert_close(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("make", OPS)
def test_caches_hold_the_inputs_themselves(make):
    forward, _, args = make((4, 5, 7))
    _, cache = forward(*args)
    inputs = leaves(args)
    kept = [leaf for leaf in leaves(cache) if any(leaf is value for value in inputs)]
    assert cache[0] is args[0]
    assert len(kept) >= len(inputs) - (make is layernorm)  # its bias is not needed again


def test_per_row_statistics_keep_the_leading_axes():
    x, weight = arrays((4, 5, 7), (7,))
    _, (_, _, rstd) = rmsnorm_forward(x, weight, 1e-5)
    assert rstd.shape == (4, 5, 1)


@pytest.mark.parametrize("make", OPS)
def test_non_contiguous_inputs(make):
    forward, backward, args = make((4, 5, 7))
    turned = [arg.swapaxes(0, 1).copy().swapaxes(0, 1) if np.ndim(arg) == 3 else arg for arg in args]
    (out, cache), (out_2, cache_2) = forward(*turned), whole(forward, *args)
    assert_close(out, out_2, rtol=1e-14)
    gradients, gradients_2 = backward(random_like(out), cache), whole(backward, random_like(out), cache_2)
    for actual, expected in zip(leaves((gradients,)), leaves((gradients_2,)), strict=True):
        assert_close(actual, expected, rtol=1e-13)


def test_the_same_array_may_be_passed_twice():
    (x,) = arrays((20, 7))
    out, cache = swiglu_forward(x, x)
    assert_same_bits(out, whole(swiglu_forward, x, x)[0])
    assert cache[0] is x and cache[1] is x


def test_arguments_may_be_given_by_name():
    x, weight, dout = arrays((20, 7), (7,), (20, 7))
    out, cache = rmsnorm_forward(x=x, weight=weight, eps=1e-5)
    assert_same_bits(out, whole(rmsnorm_forward, x, weight, 1e-5)[0])
    assert_same_bits(rmsnorm_backward(dout=dout, cache=cache)[0], whole(rmsnorm_backward, dout, cache)[0])


def test_rows_may_be_given_by_name():
    gate, up, dout = arrays((20, 7), (20, 7), (20, 7))
    out, cache = swiglu_forward(gate, up=up)
    assert_same_bits(out, whole(swiglu_forward, gate, up)[0])
    assert_same_bits(swiglu_backward(dout, cache=cache)[0], whole(swiglu_backward, dout, cache)[0])


@pytest.mark.parametrize("shape", [(4, 7), (7,), (20, 1), (10, 14)])  # (4, 7) is the shape of a block
def test_a_wrong_shape_is_refused_in_blocks_as_well(shape):
    with pytest.raises(ValueError, match="up has shape"):
        swiglu_forward(np.ones((20, 7)), np.ones(shape))


@pytest.mark.parametrize("shape", [(4, 7), (7,), (20, 1), (10, 14)])
def test_a_cotangent_of_a_wrong_shape_is_refused_in_blocks_as_well(shape):
    _, cache = gelu_forward(np.ones((20, 7)))
    with pytest.raises(ValueError, match="dout has shape"):
        gelu_backward(np.ones(shape), cache)


def test_the_math_itself_stays_at_hand():
    x, weight = arrays((4, 5, 7), (7,))
    assert rmsnorm_forward.reference is not rmsnorm_forward
    assert rmsnorm_forward.__doc__ == rmsnorm_forward.reference.__doc__
    out, cache = rmsnorm_forward.reference(x, weight, 1e-5)
    assert_close(out, rmsnorm_forward(x, weight, 1e-5)[0], rtol=1e-14)
    assert type(cache) is type(rmsnorm_forward(x, weight, 1e-5)[1]) is RMSNormCache


def test_a_faster_function_is_found_by_file_and_name():
    assert dispatch._twin("cpu", rmsnorm_forward.reference) is cpu_rmsnorm.rmsnorm_forward
    assert dispatch._twin("cpu", gelu_forward.reference) is None
    assert dispatch._twin("cuda", gelu_forward.reference) is cuda_gelu.gelu_forward


def test_every_function_on_a_cpu_stands_for_an_op_of_the_same_signature():
    for path in Path(cpu_rmsnorm.__file__).parent.glob("[a-z]*.py"):
        if path.stem in ("onednn", "products", "int8", "attention_tiles", "doctor"):  # what they are made of
            continue
        package = {"adamw": "optim", "rounding": "model"}.get(path.stem, "ops")
        of_ops = import_module(f"numllama.{package}.{path.stem}")
        faster = {name: op for name, op in vars(of_ops).items() if hasattr(op, "reference") and op.__module__ == of_ops.__name__}
        found = {name: each for name in faster if (each := dispatch._twin("cpu", faster[name].reference))}
        assert found
        for name, each in found.items():
            assert list(signature(each).parameters) == list(signature(faster[name]).parameters), name


@pytest.mark.parametrize(("start", "stop", "step"), [(0, 10, 5), (0, 10, 4), (3, 10, 4), (3, 10, 100), (5, 5, 4)])
def test_slices_cover_a_range_once_and_in_order(start, stop, step):
    pieces = list(slices(start, stop, step))
    assert [i for piece in pieces for i in range(piece.start, piece.stop)] == list(range(start, stop))
    assert all(0 < piece.stop - piece.start <= step for piece in pieces)


# ------------------------------------------------------------------------------------------------ weights in two bytes


@pytest.fixture
def weight_blocks(monkeypatch):
    """Blocks of two rows of a weight of width 7, without oneDNN."""
    monkeypatch.setattr(products, "BLOCK_ELEMENTS", 15)
    monkeypatch.setattr(onednn, "library", lambda: None)


@pytest.mark.parametrize("outputs", [1, 2, 3, 8])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("lead", [(1,), (3,), (2, 3)])
def test_a_weight_in_bfloat16_computes_what_its_values_do(weight_blocks, outputs, biased, lead):
    x, weight, bias = arrays((*lead, 7), (outputs, 7), (outputs,), dtype="float32")
    weight, bias = weight.astype(BFLOAT16), bias.astype(BFLOAT16) if biased else None
    out, cache = linear_forward(x, weight, bias)
    expected, _ = linear_forward(x, weight.astype("float32"), bias.astype("float32") if biased else None)
    assert_close(out, expected, rtol=1e-6)
    assert out.dtype == np.float32
    assert cache[0] is x
    assert cache[1] is weight
    assert cache[2] is bias


def test_a_weight_in_bfloat16_is_converted_a_block_at_a_time(weight_blocks, monkeypatch):
    shapes, matmul = [], np.matmul

    def spy(a, b, out):
        shapes.append((b.shape, b.dtype.name))
        return matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", spy)
    linear_forward(np.ones((1, 7), "float32"), np.ones((5, 7), BFLOAT16))
    assert shapes == [((7, 2), "float32"), ((7, 2), "float32"), ((7, 1), "float32")]
    linear_forward(np.ones((1, 7), "float32"), np.ones((5, 7), "float32"))
    assert len(shapes) == 3  # one product of the whole


# ------------------------------------------------------------------------------------------------ activations in two bytes

HALVES = [BFLOAT16, np.dtype("float16")]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_numbers_in_two_bytes_are_computed_with_in_float32_and_rounded(dtype):
    x, dout = (a.astype(dtype) for a in arrays((4, 7), (4, 7)))
    (weight,) = arrays((7,), dtype="float32")
    out, cache = rmsnorm_forward(x, weight, 1e-5)
    out_2, cache_2 = rmsnorm_forward(x.astype("float32"), weight, 1e-5)
    assert_same_bits(out, out_2.astype(dtype))
    assert cache[0] is x and cache[1] is weight
    assert_same_bits(cache[2], cache_2[2])  # a statistic: float32
    dx, dweight = rmsnorm_backward(dout, cache)
    dx_2, dweight_2 = rmsnorm_backward(dout.astype("float32"), cache_2)
    assert_same_bits(dx, dx_2.astype(dtype))
    assert_same_bits(dweight, dweight_2)  # of a gain, which is float32


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_op_of_ops_leaves_numbers_in_two_bytes_to_them(dtype):
    x, branch, dtotal, dout = (a.astype(dtype) for a in arrays((4, 7), (4, 7), (4, 7), (4, 7)))
    (weight,) = arrays((7,), dtype="float32")
    (total, out), cache = add_rmsnorm_forward(x, branch, weight, 1e-5)
    assert_same_bits(total, x + branch)
    assert_same_bits(out, rmsnorm_forward(total, weight, 1e-5)[0])  # of the sum as it was rounded
    assert cache.norm.x is total and cache.norm.weight is weight and cache.dropout is None
    dx, dbranch, dweight = add_rmsnorm_backward((dtotal, dout), cache)
    through, dweight_2 = rmsnorm_backward(dout, cache.norm)
    assert dbranch is dx
    assert_same_bits(dx, through + dtotal)
    assert_same_bits(dweight, dweight_2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_out_in_two_bytes_is_written_to(dtype):
    x = arrays((1, 2, 3, 4))[0].astype(dtype)
    table = rope_table(np.arange(3), 4, 100.0)
    apart, cache = rope_forward(x.copy(), *table)
    assert rope_forward(x, *table, out=x)[0] is x
    assert_same_bits(x, apart)
    assert rope_backward(x, cache, out=x) is x
    assert_same_bits(x, rope_backward(apart, cache))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_weights_gradient_is_added_in_the_type_of_its_buffer(dtype):
    x, weight, dout = (a.astype(dtype) for a in arrays((2, 5, 7), (3, 7), (2, 5, 3)))
    _, cache = linear_forward(x, weight)
    assert cache[0] is x and cache[1] is weight
    buffer = np.ones((3, 7), "float32")
    dx, dweight = linear_backward(dout, cache, into=buffer)
    assert dweight is buffer and dx.dtype == dtype
    assert_close(buffer, 1 + np.einsum("bto,bti->oi", dout.astype("float32"), x.astype("float32")), rtol=1e-6)
    assert linear_backward(dout, cache)[1].dtype == dtype


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_loss_stays_float32_and_its_gradient_may_take_the_place_of_the_logits(dtype):
    logits = arrays((5, 9))[0].astype(dtype)
    loss, cache = cross_entropy_forward(logits, np.arange(5))
    assert loss.dtype == np.float32 and cache[0] is logits and cache[2].dtype == np.float32
    apart = cross_entropy_backward(1.0, cache)
    assert apart.dtype == dtype
    assert cross_entropy_backward(1.0, cache, out=logits) is logits
    assert_same_bits(logits, apart)


def test_what_is_no_array_is_not_rounded():
    flat = arrays((100,))[0].astype(BFLOAT16)
    assert euclidean_norm(flat) == pytest.approx(np.linalg.norm(flat.astype("float64")), rel=1e-6)
