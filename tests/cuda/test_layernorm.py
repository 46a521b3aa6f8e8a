import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from kernel_checks import check_kernels, every_dtype, offset_by_one

from numllama.ops import layernorm_backward, layernorm_forward

KERNELS = (["layernorm_forward"], ["layernorm_backward"])


def draw(*shape):
    rng = np.random.default_rng(0)
    return 2 + rng.standard_normal(shape), rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])


@every_dtype
@pytest.mark.parametrize("shape", [(1, 8), (65, 8), (257, 96), (3, 4096), (2, 5, 33), (3, 5), (7, 130), (600, 8)], ids=str)
def test_layernorm(shape, dtype):
    check_kernels(layernorm_forward, layernorm_backward, [*draw(*shape), 1e-5], dtype, KERNELS, reals={1, 2})


def test_rows_at_any_address(gpu):
    x, weight, bias = (a.astype("float32") for a in draw(5, 96))
    out, _ = layernorm_forward(x, weight, bias, 1e-5)
    assert_close(layernorm_forward(offset_by_one(x), weight, offset_by_one(bias), 1e-5)[0], out, rtol=1e-6)
    assert gpu.launched == ["layernorm_forward"] * 2


def test_blocks_that_walk_over_several_rows_each(gpu, monkeypatch):
    monkeypatch.setattr("numllama.cuda.layernorm.BLOCKS", 3)
    x, weight, bias = (a.astype("float32") for a in draw(77, 96))
    _, cache = layernorm_forward(x, weight, bias, 1e-5)
    for actual, expected in zip(layernorm_backward(x, cache), layernorm_backward.reference(x, cache), strict=True):
        assert_close(actual, expected, rtol=1e-6)


def test_what_the_kernels_do_not_take_runs_as_the_op_says(gpu):
    x, weight, bias = draw(4, 6, 8)
    strided = np.stack([x, x], -1)[..., 0]
    reference = layernorm_forward.reference(strided, weight, bias, 1e-5)[0]
    assert_same_bits(layernorm_forward(strided, weight, bias, 1e-5)[0], reference)
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^bias has shape \(7,\), but \(8,\) is needed$"):
        layernorm_forward(x, weight, bias[:7], 1e-5)
