import numpy as np
import pytest
from helpers import assert_same_bits
from kernel_checks import check_kernels, every_dtype

from numllama.ops import softmax_backward, softmax_forward

KERNELS = (["softmax_forward"], ["softmax_backward"])


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1), (65, 7), (2, 3, 257), (5, 96), (3, 4096), (2, 1025)], ids=str)
def test_softmax(shape, dtype):
    x = 3 * np.random.default_rng(0).standard_normal(shape)
    check_kernels(softmax_forward, softmax_backward, [x], dtype, KERNELS)


@every_dtype
def test_rows_with_masked_places(dtype):
    rng = np.random.default_rng(0)
    x = np.where(np.tril(np.ones((65, 65), bool)), rng.standard_normal((65, 65)), -np.inf)
    x[3] = -np.inf
    check_kernels(softmax_forward, softmax_backward, [x], dtype, KERNELS)


def test_a_row_that_is_masked_altogether_is_zero(gpu):
    p, cache = softmax_forward(np.full((3, 40), -np.inf))
    assert_same_bits(p, np.zeros((3, 40)))
    assert not softmax_backward(np.ones((3, 40)), cache).any()
    assert gpu.launched == ["softmax_forward", "softmax_backward"]
