"""LoRA's products against the op in float64; in two bytes its gradients are float32."""

import numpy as np
import pytest
from helpers import assert_close

from numllama.backend import BFLOAT16
from numllama.ops import lora_backward, lora_forward


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


@pytest.mark.parametrize("dtype", ["float32", "float64", BFLOAT16, "float16"], ids=str)
@pytest.mark.parametrize("adds", [False, True])
def test_the_update_and_its_gradients(gpu, dtype, adds):
    arrays = [normal(3, 5, 24), normal(4, 24), normal(16, 4)]
    x, a, b = (array.astype(dtype) for array in arrays)
    dout = normal(3, 5, 16).astype(dtype)
    real = np.float64 if dtype == "float64" else np.float32
    rtol = {"float32": 1e-5, "float64": 1e-12}.get(dtype, 2e-2)
    out, cache = lora_forward(x, a, b, 0.5)
    wide = [value.astype(np.float64) for value in (x, a, b)]
    expected, expected_cache = lora_forward.reference(*wide, 0.5)
    assert out.dtype == x.dtype
    assert_close(out.astype(np.float64), expected, rtol=rtol)
    dx = normal(3, 5, 24).astype(dtype) if adds else None
    wide_dx = None if dx is None else dx.astype(np.float64)
    grads = lora_backward(dout, cache, dx=dx)
    expected = lora_backward.reference(dout.astype(np.float64), expected_cache, dx=wide_dx)
    for name, grad, expected_grad in zip(("dx", "da", "db"), grads, expected, strict=True):
        assert grad.dtype == (x.dtype if name == "dx" else real)
        assert_close(grad.astype(np.float64), expected_grad, rtol=rtol)
    assert grads[0] is dx or not adds
    assert gpu.launched == ["gemm"] * 6
