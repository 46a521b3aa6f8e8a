"""Every op on CuPy's arrays, whether a kernel or CuPy itself runs it, against the op in float64 on NumPy's."""

import cupy
import numpy as np
import pytest
from helpers import leaves
from kernel_checks import HALVES, every_dtype, real

from numllama import ops
from numllama.backend import to_numpy

B, T, H, K, D, C, F, V = 2, 9, 4, 2, 64, 40, 24, 31


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def heads(n, t=T):
    return normal(B, n, t, D)


POSITIONS = np.arange(T)
COS, SIN = ops.rope_table(POSITIONS, D, 10000.0)
TOKENS = np.random.default_rng(0).integers(0, V, (B, T))
TARGETS = np.where(np.arange(T) % 4 == 3, ops.IGNORE, TOKENS)
FIRST, LAST = np.maximum(0, POSITIONS - 3), POSITIONS + 1
OPS = {  # name -> arguments; those in REALS keep the dtype of statistics
    "linear": ((normal(B, T, C), normal(F, C)), {}),
    "linear with a bias": ((normal(B, T, C), normal(F, C), normal(F)), {}),
    "embedding": ((TOKENS, normal(V, C)), {}),
    "rmsnorm": ((normal(B, T, C), normal(C), 1e-5), {}),
    "layernorm": ((normal(B, T, C), normal(C), normal(C), 1e-5), {}),
    "add_rmsnorm": ((normal(B, T, C), normal(B, T, C, seed=1), normal(C), 1e-5), {}),
    "rope": ((heads(H), COS, SIN), {}),
    "rope, interleaved": ((heads(H), COS, SIN, "interleaved"), {}),
    "attention": ((heads(H), heads(K), heads(K) + 1), {}),
    "attention of a window": ((heads(H), heads(K), heads(K) + 1, FIRST, LAST), {}),
    "flash_attention": ((heads(H), heads(K), heads(K) + 1), {}),
    "flash_attention of a window": ((heads(H), heads(K), heads(K) + 1, FIRST, LAST), {}),
    "flash_attention of small heads": ((heads(H)[..., :24], heads(K)[..., :24], heads(K)[..., 24:48]), {}),
    "swiglu": ((normal(B, T, F), normal(B, T, F, seed=1)), {}),
    "gelu": ((normal(B, T, F),), {}),
    "gelu, exact": ((normal(B, T, F), "none"), {}),
    "cross_entropy": ((normal(B * T, V), TARGETS.ravel()), {}),
    "softmax": ((normal(B, T, V),), {}),
    "dropout": ((normal(B, T, C), 0.3, (1, 2)), {}),
    "lora": ((normal(B, T, C), normal(4, C), normal(F, 4), 0.5), {}),
}
REALS = {"rmsnorm", "layernorm", "add_rmsnorm"}


def placed(value, how):
    """An array on the GPU, C-contiguous or as every second column of a wider one."""
    if not isinstance(value, np.ndarray) or value.ndim == 0:
        return value
    if how == "strided" and value.dtype.kind not in "iu" and value.ndim > 1:
        wide = np.zeros((*value.shape[:-1], 2 * value.shape[-1]), value.dtype)
        wide[..., ::2] = value
        return cupy.asarray(wide)[..., ::2]
    return cupy.asarray(value)


def wide(value):
    if isinstance(value, tuple):
        return tuple(map(wide, value))
    return to_numpy(value).astype(np.float64) if getattr(value, "dtype", np.dtype(int)).kind not in "iub" else to_numpy(value)


@every_dtype
@pytest.mark.parametrize("how", ["contiguous", "strided"])
@pytest.mark.parametrize("case", OPS)
def test_an_op_on_the_gpu(gpu, case, how, dtype):
    name, (args, options) = case.split(",")[0].split(" ")[0], OPS[case]
    forward, backward = getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")
    is_real = [(name in REALS and np.ndim(a) == 1) or (name == "rope" and i > 0) for i, a in enumerate(args)]
    args = [
        a.astype(real(dtype) if is_one else dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a, is_one in zip(args, is_real, strict=True)
    ]
    out, cache = forward(*(placed(a, how) for a in args), **options)
    exact = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind not in "iu" else a for a in args]
    expected, expected_cache = forward.reference(*exact, **options)
    rtol = 3e-2 if dtype in HALVES else 1e-12 if dtype == np.float64 else 2e-5
    assert_near(out, expected, rtol)
    dout = tuple(normal(*np.shape(e), seed=5).astype(o.dtype) for o, e in zip(leaves(out), leaves(expected), strict=True))
    dout = dout if isinstance(out, tuple) else dout[0]
    if name == "cross_entropy":
        dout = 1.0
    on_gpu = tuple(placed(d, how) for d in dout) if isinstance(dout, tuple) else placed(dout, how)
    grads = backward(on_gpu, cache)
    assert_near(grads, backward.reference(wide(dout) if name != "cross_entropy" else dout, expected_cache), rtol)


def assert_near(actual, expected, rtol):
    """By the largest number of each array: sums of numbers in two bytes may cancel."""
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        assert a.shape == e.shape
        if hasattr(a, "dtype"):
            assert isinstance(a, cupy.ndarray)
        assert np.max(np.abs(wide(a) - e)) <= rtol * np.max(np.abs(e))
