import numpy as np
import pytest
from helpers import assert_same_bits
from kernel_checks import check_kernels, every_dtype

from numllama.ops import gelu_backward, gelu_forward


@every_dtype
@pytest.mark.parametrize("shape", [(1, 8), (65, 96), (257, 7), (2, 4096), (1, 1, 3)], ids=str)
def test_gelu(shape, dtype):
    x = 3 * np.random.default_rng(0).standard_normal(shape)
    check_kernels(gelu_forward, gelu_backward, [x], dtype, (["gelu_forward"], ["gelu_backward"]))


def test_the_exact_form_runs_as_the_op_says(gpu):
    x = np.random.default_rng(0).standard_normal((3, 4))
    out, cache = gelu_forward(x, "none")
    assert_same_bits(out, gelu_forward.reference(x, "none")[0])
    assert_same_bits(gelu_backward(x, cache), gelu_backward.reference(x, cache))
    assert gpu.launched == []
