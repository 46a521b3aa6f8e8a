import numpy as np
import pytest
from emulator import emulated
from helpers import assert_same_bits
from kernel_checks import every_dtype, offset_by_one

from numllama.ops import dropout_backward, dropout_forward


@every_dtype
@pytest.mark.parametrize("shape", [(1,), (65, 8), (257, 33), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_the_same_bits_as_the_op(shape, p, dtype):
    x = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    for key in [(0, 1, 2), (2**40, 5), (-1,)]:
        out, cache = dropout_forward(x, p, key)
        dx = dropout_backward(x[::-1].copy(), cache)
        with emulated() as emulator:
            out_2, cache_2 = dropout_forward(x, p, key)
            dx_2 = dropout_backward(x[::-1].copy(), cache)
            out_3, _ = dropout_forward(offset_by_one(x), p, key)
        assert emulator.launched == ["dropout"] * 3
        assert cache_2 == cache
        for actual, expected in ((out_2, out), (dx_2, dx), (out_3, out)):
            assert_same_bits(actual, expected)


def test_what_the_kernel_does_not_take_runs_as_the_op_says(gpu):
    x = np.ones((4, 6))[:, ::2]
    assert_same_bits(dropout_forward(x, 0.5, (1,))[0], dropout_forward.reference(x, 0.5, (1,))[0])
    assert gpu.launched == []
    with pytest.raises(ValueError, match=r"^p is 1, but must lie in \[0, 1\)$"):
        dropout_forward(np.ones(3), 1, (1,))
