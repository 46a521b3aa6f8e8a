import numpy as np
import pytest
from kernel_checks import check_kernels, every_dtype, offset_by_one

from numllama.cuda import launch
from numllama.ops import swiglu_backward, swiglu_forward


@every_dtype
@pytest.mark.parametrize("shape", [(1, 8), (65, 96), (257, 7), (2, 4096), (1, 1, 3)], ids=str)
def test_swiglu(shape, dtype):
    rng = np.random.default_rng(0)
    gate, up = 3 * rng.standard_normal(shape), rng.standard_normal(shape)
    check_kernels(swiglu_forward, swiglu_backward, [gate, up], dtype, (["swiglu_forward"], ["swiglu_backward"]))


def test_gates_far_from_zero_neither_overflow_nor_vanish(gpu):
    gate = np.array([-1e30, -200, -100, -80, 80, 100, 200, 1e30], "float32")
    out, cache = swiglu_forward(gate, np.ones(8, "float32"))
    dgate, dup = swiglu_backward(np.ones(8, "float32"), cache)
    assert out.tolist()[4:] == gate.tolist()[4:] and dgate.tolist() == [0, 0, 0, dgate[3], 1, 1, 1, 1]
    assert (abs(out[:4]) < 1e-30).all() and (abs(dgate[:4]) < 1e-30).all() and (dup == out).all()


def test_any_address(gpu):
    rng = np.random.default_rng(0)
    gate, up = rng.standard_normal((2, 5, 64)).astype("float32")
    (out, _), (out_2, _) = swiglu_forward(gate, up), swiglu_forward(offset_by_one(gate), up)
    assert (out == out_2).all()
    assert len(gpu.launched) == 2


@every_dtype
@pytest.mark.parametrize("F", [7, 64, 2056])
def test_halves_of_one_products_rows_and_gradients_side_by_side(gpu, F, dtype):
    rows = np.random.default_rng(0).standard_normal((3, 2, 2 * F)).astype(dtype)
    dout = np.random.default_rng(1).standard_normal((3, 2, F)).astype(dtype)
    gate, up = rows[..., :F], rows[..., F:]
    (out, cache), (apart, apart_cache) = swiglu_forward(gate, up), swiglu_forward(gate.copy(), up.copy())
    assert out.tobytes() == apart.tobytes() and out.flags.c_contiguous
    gradients, expected = swiglu_backward(dout, cache), swiglu_backward(dout, apart_cache)
    for gradient, other in zip(gradients, expected, strict=True):
        assert gradient.tobytes() == other.tobytes()
    assert launch.adjacent(gradients, -1).shape == (3, 2, 2 * F)
    assert len(gpu.launched) == 4
