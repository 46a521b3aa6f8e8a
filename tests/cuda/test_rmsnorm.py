import numpy as np
import pytest
from emulator import emulated
from helpers import assert_close, assert_same_bits
from kernel_checks import FLOAT32, HALVES, check_kernels, every_dtype, offset_by_one, real

from numllama.ops import add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward

SHAPES = [(1, 8), (65, 8), (257, 96), (3, 4096), (2, 5, 33), (3, 5), (7, 130), (600, 8)]
KERNELS = (["rmsnorm_forward"], ["rmsnorm_backward", "rmsnorm_dweight"])
ADD_KERNELS = (["add_rmsnorm_forward"], ["add_rmsnorm_backward", "add_rmsnorm_dweight"])


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


@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
def test_rows_at_any_address(gpu, dtype):
    x, _, weight = draw(5, 96)
    x, weight = x.astype(dtype), weight.astype("float32")
    (out, _), (out_2, _) = rmsnorm_forward(x, weight, 1e-5), rmsnorm_forward(offset_by_one(x), offset_by_one(weight), 1e-5)
    assert gpu.launched == ["rmsnorm_forward"] * 2
    np.testing.assert_allclose(out.astype("f4"), out_2.astype("f4"), rtol=2e-2 if dtype in HALVES else 1e-6)


def test_blocks_that_walk_over_several_rows_each(gpu, monkeypatch):
    monkeypatch.setattr("numllama.cuda.rmsnorm.BLOCKS", 3)
    x, dout, weight = (a.astype("float32") for a in draw(77, 96))
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
