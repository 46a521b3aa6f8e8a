import numpy as np
import pytest
from helpers import assert_same_bits
from kernel_checks import FLOAT32, HALVES, check_kernels, every_dtype, offset_by_one

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
