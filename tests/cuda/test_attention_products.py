"""Attention by cuBLAS and a softmax kernel: what the flash kernels do not take."""

import numpy as np
import pytest
from emulator import emulated
from helpers import assert_same_bits
from kernel_checks import FLOAT32, FLOAT64, HALVES, check_kernels, every_dtype, offset_by_one

from numllama.backend import BFLOAT16
from numllama.cuda import attention_products
from numllama.ops import flash_attention_backward, flash_attention_forward

FORWARD = ["gemm", "attention_softmax_forward", "gemm"]
BACKWARD = ["gemm", "gemm", "attention_softmax_backward", "gemm", "gemm", "gemm"]
VOLTA, TURING, HOPPER = 70, 75, 90


def draw(B=1, H=2, K=1, T=33, S=33, D=64, dtype="float64"):
    """q, k and v as (B, heads, time, D) views of (B, time, heads, D) memory, as a model has them."""
    rng = np.random.default_rng(0)
    return [
        rng.standard_normal((B, n, heads, D)).astype(dtype).swapaxes(1, 2) for heads, n in ((H, T), (K, S), (K, S))
    ]  # fmt: skip


def random_intervals(B, T, S):
    rng = np.random.default_rng(1)
    return rng.integers(-1, S + 1, (B, T)), rng.integers(0, S + 3, (B, T))


def check(args, dtype, capability=HOPPER, tiles=1):
    """All that kernel_checks promises."""

    def summed_in_other_orders(q, k, *args):
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(q.shape[-1])
            _, (_, _, *rest) = flash_attention_forward(q[..., order], k[..., order], *args)
            yield q, k, *rest

    check_kernels(
        flash_attention_forward, flash_attention_backward, args, dtype, (FORWARD * tiles, BACKWARD * tiles),
        other_caches=summed_in_other_orders, capability=capability,
    )  # fmt: skip


def both(*args, **kwargs):
    out, cache = flash_attention_forward(*args, **kwargs)
    dout = np.random.default_rng(2).standard_normal(out.shape).astype(out.dtype)
    return out, *flash_attention_backward(dout, cache)


@pytest.mark.parametrize("dtype", [FLOAT32, *HALVES], ids=str)
@pytest.mark.parametrize(("D", "R"), [(256, 2), (130, 1), (192, 4)], ids=str)
def test_heads_above_128(D, R, dtype):
    T, S = 21, 30
    check([*draw(B=2, H=4, K=4 // R, T=T, S=S, D=D), *random_intervals(2, T, S)], dtype)


@every_dtype
@pytest.mark.parametrize("capability", [VOLTA, TURING])
def test_gpus_before_ampere(capability, dtype):
    check(draw(T=20, S=37), dtype, capability)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 300), (40, 9), (13, 1030)], ids=str)
def test_causal_rows_of_any_length(T, S, dtype):
    check(draw(T=T, S=S, D=48), dtype, TURING)


@pytest.mark.parametrize(("n_bytes", "tiles"), [(1, 20), (4 * 2 * 4 * 33 * 7, 3), (10**6, 1)])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_scores_of_some_queries_at_a_time(n_bytes, tiles, dtype, monkeypatch):
    monkeypatch.setattr(attention_products, "SCORE_BYTES", n_bytes)
    check([*draw(B=2, H=4, K=2, T=20), *random_intervals(2, 20, 33)], dtype, TURING, tiles)


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
def test_scales_of_any_sign_and_float64(scale):
    check([*draw(T=30), *random_intervals(1, 30, 33), scale], FLOAT64)
    if scale <= 0:
        check([*draw(T=30), *random_intervals(1, 30, 33), scale], FLOAT32)


@every_dtype
def test_large_scores_and_intervals_of_every_kind(dtype):
    T, t = 70, np.arange(70)
    windows = np.maximum(0, t - 20), t + 1
    documents = t // 30 * 30, t + 1
    padding = np.full(T, 50), t + 1
    for first, last in (windows, documents, padding):
        check([*draw(H=1, T=T, S=T, D=16), first, last, 5.0], dtype, TURING)


@every_dtype
def test_queries_that_see_nothing(dtype):
    first, last = np.full(40, 3), np.full(40, 3)
    last[17] = 9
    with emulated(capability=TURING) as gpu:
        out, dq, dk, dv = both(*draw(T=40, S=40, dtype=dtype), first, last)
    unseen = np.delete(np.arange(40), 17)
    for array in (out, dq):
        assert not array[:, :, unseen].any()
        assert array[:, :, 17].any()
    for array in (dk, dv):
        assert array[:, :, 3:9].any() and not array[:, :, :3].any() and not array[:, :, 9:].any()
    assert gpu.launched == FORWARD + BACKWARD


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_arrays_of_any_layout_give_the_same_bits(dtype):
    q, k, v = draw(K=2, dtype=dtype)
    spread = [np.stack([x, x], -1)[..., 0] for x in (q, k, v)]                   # gaps between elements
    with emulated(capability=TURING):
        expected = both(q, k, v)
        for args in (spread, [np.ascontiguousarray(x) for x in (q, k, v)], [offset_by_one(x) for x in (q, k, v)]):
            for actual, same in zip(both(*args), expected, strict=True):
                assert_same_bits(actual, same)
