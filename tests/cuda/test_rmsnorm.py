from contextlib import nullcontext

import numpy as np
import pytest
from emulator import emulated
from helpers import assert_close, assert_same_bits
from kernel_checks import FLOAT32, HALVES, check_kernels, every_dtype, offset_by_one, real

from numllama.ops import add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward

SHAPES = [(1, 8), (65, 8), (257, 96), (3, 4096), (2, 5, 33), (3, 5), (7, 130), (600, 8)]
KERNELS = (["rmsnorm_forward"], ["rmsnorm_backward"])
ADD_KERNELS = (["add_rmsnorm_forward"], ["add_rmsnorm_backward"])


def draw(*shape):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[-1])


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rmsnorm(shape, dtype):
    x, _, weight = draw(*shape)
    check_kernels(rmsnorm_forward, rmsnorm_backward, [x, weight, 1e-5], dtype, KERNELS, reals={1})


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rmsnorm(shape, dtype):
    x, branch, weight = draw(*shape)
    check_kernels(add_rmsnorm_forward, add_rmsnorm_backward, [x, branch, weight, 1e-5], dtype, ADD_KERNELS, reals={2})


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_add_rmsnorm_with_dropout(shape, dtype):
    x, branch, weight = draw(*shape)
    args = [x, branch, weight, 1e-5, 0.3, (1, 2)]
    check_kernels(add_rmsnorm_forward, add_rmsnorm_backward, args, dtype, ADD_KERNELS, reals={2})


@every_dtype
@pytest.mark.parametrize("drops", [False, True])
def test_the_two_ends_of_the_stream(drops, dtype):
    """No x, where a branch begins the stream; no gradient of the sum, where it ends."""
    _, branch, weight = draw(3, 5, 16)
    dout = np.random.default_rng(1).standard_normal(branch.shape)
    dropout = (0.3, np.array([5, 6], "uint32")) if drops else ()  # a key on the device
    branch, weight, dout = branch.astype(dtype), weight.astype(real(dtype)), dout.astype(dtype)
    runs = []
    for run in (nullcontext, emulated):
        into = np.full(16, 0.5, real(dtype))
        with run() as emulator:
            (total, out), cache = add_rmsnorm_forward(None, branch, weight, 1e-5, *dropout)
            dx, dbranch, dweight = add_rmsnorm_backward((None, dout), cache, into)
        assert dweight is into and (dbranch is dx) == (not drops) and (total is branch) == (not drops)
        runs.append((total, out, dx, dbranch, into))
    assert emulator.launched == [f"{'add_' if drops else ''}rmsnorm_forward", "add_rmsnorm_backward"]
    for one, other in zip(*runs, strict=True):
        assert_close(one.astype("f8"), other.astype("f8"), rtol=1e-2 if dtype in HALVES else 1e-5)


def test_a_weights_gradient_is_added_to_its_buffer_by_the_same_kernel(gpu):
    x, branch, weight = (a.astype("float32") for a in draw(77, 96))
    outs, cache = add_rmsnorm_forward(x, branch, weight, 1e-5)
    dweight = add_rmsnorm_backward(outs, cache)[2]
    buffer = np.full(96, 10, "float32")
    assert add_rmsnorm_backward(outs, cache, buffer)[2] is buffer
    assert_same_bits(buffer, 10 + dweight)
    assert gpu.launched == ["add_rmsnorm_forward"] + ["add_rmsnorm_backward"] * 2


def test_a_layer_that_is_run_again_from_the_rounded_sum_finds_the_same_bits(gpu):
    x, branch, weight = draw(65, 96)
    x, branch, weight = x.astype(HALVES[0]), branch.astype(HALVES[0]), weight.astype("float32")
    (total, out), _ = add_rmsnorm_forward(x, branch, weight, 1e-5, 0.3, (1, 2))
    assert_same_bits(rmsnorm_forward(total, weight, 1e-5)[0], out)


@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
def test_rows_at_any_address(gpu, dtype):
    x, _, weight = draw(5, 96)
    x, weight = x.astype(dtype), weight.astype("float32")
    (out, _), (out_2, _) = rmsnorm_forward(x, weight, 1e-5), rmsnorm_forward(offset_by_one(x), offset_by_one(weight), 1e-5)
    assert gpu.launched == ["rmsnorm_forward"] * 2
    np.testing.assert_allclose(out.astype("f4"), out_2.astype("f4"), rtol=2e-2 if dtype in HALVES else 1e-6)


@pytest.mark.parametrize("blocks", [1, 3, 16, 17])  # whose sums are added by groups of 16
def test_blocks_that_walk_over_several_rows_each(gpu, monkeypatch, blocks):
    monkeypatch.setattr("numllama.cuda.rmsnorm.BLOCKS", blocks)
    x, dout, weight = (a.astype("float32") for a in draw(277, 96))
    _, cache = rmsnorm_forward(x, weight, 1e-5)
    dx, dweight = rmsnorm_backward(dout, cache)
    expected_dx, expected_dweight = rmsnorm_backward.reference(dout, cache)
    assert_close(dx, expected_dx, rtol=1e-6)
    assert_close(dweight, expected_dweight, rtol=1e-6)


@every_dtype
def test_heads_are_normalised_where_they_lie(dtype):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 5, 3, 16)).swapaxes(1, 2), rng.standard_normal(16)
    dout = rng.standard_normal((2, 5, 3, 16)).astype(dtype).swapaxes(1, 2)
    check_kernels(rmsnorm_forward, rmsnorm_backward, [x, weight, 1e-5], dtype, KERNELS, reals={1}, douts=dout)
    with emulated():
        out, (_, _, rstd) = rmsnorm_forward(x.astype(dtype), weight.astype(real(dtype)), 1e-5)
    assert out.swapaxes(1, 2).flags.c_contiguous and rstd.shape == (2, 3, 5, 1)


@every_dtype
def test_heads_with_gaps_between_times_are_read_where_they_lie(dtype):
    """Queries beside keys and values in the rows of one product, and their gradients beside those."""
    rng = np.random.default_rng(0)
    wide, weight = rng.standard_normal((2, 5, 9, 16)), rng.standard_normal(16).astype(real(dtype))
    x, dout = (wide.astype(dtype)[:, :, heads].swapaxes(1, 2) for heads in (slice(1, 4), slice(5, 8)))
    with emulated() as emulator:
        out, cache = rmsnorm_forward(x, weight, 1e-5)
        dx, dweight = rmsnorm_backward(dout, cache)
        dense, dense_cache = rmsnorm_forward(np.ascontiguousarray(x), weight, 1e-5)
        dense_dx, dense_dweight = rmsnorm_backward(np.ascontiguousarray(dout), dense_cache)
    assert emulator.launched == ["rmsnorm_forward", "rmsnorm_backward"] * 2
    assert_same_bits(np.ascontiguousarray(out), dense)
    assert_same_bits(np.ascontiguousarray(dx), dense_dx)
    assert_close(dweight, dense_dweight, rtol=1e-6)
    assert out.swapaxes(1, 2).flags.c_contiguous and dx.swapaxes(1, 2).flags.c_contiguous


def test_what_the_kernels_do_not_take_runs_as_the_op_says(gpu):
    x, _, weight = draw(4, 6, 8)
    strided = np.stack([x, x], -1)[..., 0]
    assert_same_bits(rmsnorm_forward(strided, weight, 1e-5)[0], rmsnorm_forward.reference(strided, weight, 1e-5)[0])
    assert_same_bits(rmsnorm_forward(x[:0], weight, 1e-5)[0], np.empty((0, 6, 8)))
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^weight has shape \(7,\), but \(8,\) is needed$"):
        rmsnorm_forward(x, weight[:7], 1e-5)
    with pytest.raises(ValueError, match=r"^branch has shape \(4, 6, 7\), but \(4, 6, 8\) is needed$"):
        add_rmsnorm_forward(x, x[..., :7], weight, 1e-5)
    _, cache = add_rmsnorm_forward(x, x, weight, 1e-5)
    with pytest.raises(ValueError, match=r"^dtotal has shape \(4, 6, 7\), but \(4, 6, 8\) is needed$"):
        add_rmsnorm_backward((x[..., :7], x), cache)
