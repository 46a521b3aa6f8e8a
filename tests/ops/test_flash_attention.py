import tracemalloc

import numpy as np
import pytest
from helpers import (
    RNGS,
    SIZES,
    assert_close,
    assert_same_bits,
    check_dtype,
    check_inputs_stay,
    check_strides,
    normal,
    random_like,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from numllama import blocks
from numllama.cpu import flash_attention as on_cpu
from numllama.gradcheck import gradcheck
from numllama.ops import attention_backward, attention_forward, flash_attention_backward, flash_attention_forward

SETTINGS = [(on_cpu, name) for name in ("QUERY_TILE", "KEY_TILE", "TILE_ELEMENTS", "SMALL_SCORE", "QUERY_ROWS")]


@pytest.fixture(autouse=True)
def sizes():
    """Put the settings back."""
    before, tile = [getattr(*setting) for setting in SETTINGS], blocks.TILE
    yield
    use_tiles(*before)
    blocks.TILE = tile


def use_tiles(*values):
    blocks.TILE = values[0]  # the op's own lines have tiles of one size
    for setting, value in zip(SETTINGS, values, strict=False):
        setattr(*setting, value)


def example(xp, B=2, H=4, K=2, T=5, S=7, D=4):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, B, H, T, D), normal(xp, rng, B, K, S, D), normal(xp, rng, B, K, S, D)]


@st.composite
def cases(draw):
    """All arguments, in NumPy, and tile sizes: intervals may be empty or reach beyond the keys, T may exceed S."""
    B, K, R, D = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4, 8])), draw(SIZES)
    T, S, rng = draw(st.integers(1, 11)), draw(st.integers(1, 11)), draw(RNGS)
    q, k, v = (rng.standard_normal(shape) for shape in [(B, K * R, T, D), (B, K, S, D), (B, K, S, D)])
    bounds = st.sampled_from([None, (T,), (B, T)])
    first, last = draw(bounds), draw(bounds)
    return [
        q, k, v,
        None if first is None else rng.integers(-1, S + 1, first),
        None if last is None else rng.integers(0, S + 3, last),
        draw(st.sampled_from([None, 0.3, 1.0])),
    ], (
        draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 20, 200, 2000])),
        draw(st.sampled_from([0.0, 60.0])),  # 0: always with a maximum
        draw(st.sampled_from([1, 5, 128])),
    )  # fmt: skip


def on(xp, case):
    return [xp.asarray(value) if isinstance(value, np.ndarray) else value for value in case]


@settings(max_examples=150)
@given(cases())
def test_gradients(xp, case):
    args, tiles = case
    use_tiles(*tiles)
    gradcheck(flash_attention_forward, flash_attention_backward, on(xp, args), directions=1)


@settings(max_examples=200)
@given(cases())
def test_it_is_attention(xp, case):
    args, tiles = case
    use_tiles(*tiles)
    q, k, v, first, last, scale = on(xp, args)
    out, cache = flash_attention_forward(q, k, v, first, last, scale)
    expected, dense = attention_forward(q, k, v, first, last, scale=scale)
    dout = random_like(out)
    assert_close(out, expected)
    for actual, wanted in zip(flash_attention_backward(dout, cache), attention_backward(dout, dense), strict=True):
        error = xp.linalg.norm(actual - wanted)  # where a single key is seen, dq and dk are 0 but for rounding
        assert error <= 1e-12 * (xp.linalg.norm(wanted) + xp.linalg.norm(dout))


def test_long_sequences_in_the_tiles_that_are_really_used(xp):
    q, k, v = example(xp, B=1, H=4, K=2, T=301, S=333, D=8)
    out, cache = flash_attention_forward(q, k, v)
    expected, dense = attention_forward(q, k, v)
    dout = random_like(out)
    assert_close(out, expected)
    for actual, wanted in zip(flash_attention_backward(dout, cache), attention_backward(dout, dense), strict=True):
        assert_close(actual, wanted)


def test_what_is_kept_of_the_scores_is_their_log_sum_exp(xp):
    q, k, v = example(xp)
    use_tiles(2, 3, 10)
    lse, first, last, scale = flash_attention_forward(q, k, v)[1][-4:]
    p = attention_forward(q, k, v)[1].p
    scores = (q.reshape(2, 2, 10, 4) @ k.swapaxes(-1, -2) * scale).reshape(2, 4, 5, 7)
    shown = (p > 0).all(axis=(0, 1))
    assert_close(xp.exp(scores - lse[..., None])[..., shown], p[..., shown])
    assert (first.shape, last.shape) == ((1, 5), (1, 5))


def test_a_query_that_sees_nothing_gives_zero_and_gets_zero(xp):
    q, k, v = example(xp)
    last = xp.asarray([0, 7, 0, 3, 0])
    use_tiles(2, 3, 10)
    out, cache = flash_attention_forward(q, k, v, last=last)
    dq = flash_attention_backward(random_like(out), cache)[0]
    assert not out[:, :, last == 0].any() and not dq[:, :, last == 0].any()
    assert out[:, :, last > 0].all() and dq[:, :, last > 0].all()


def test_future_keys_have_no_influence_at_all(xp):
    q, k, v = example(xp, T=7)
    use_tiles(2, 3, 10)
    before, _ = flash_attention_forward(q, k, v)
    k[:, :, 4:], v[:, :, 4:] = -2 * k[:, :, 4:], -1e30
    after, _ = flash_attention_forward(q, k, v)
    assert_same_bits(after[:, :, :4], before[:, :, :4])


def test_future_keys_however_large_change_only_the_way_of_summing(xp):
    q, k, v = example(xp, T=7)
    use_tiles(2, 3, 10)
    before, _ = flash_attention_forward(q, k, v)
    k[:, :, 4:], v[:, :, 4:] = 1e30, -1e30
    after, _ = flash_attention_forward(q, k, v)
    assert_close(after[:, :, :4], before[:, :, :4])


def test_very_large_scores_do_not_overflow(xp):
    q, k, v = example(xp)
    use_tiles(2, 2, 10)
    out, cache = flash_attention_forward(1e4 * q, 1e4 * k, v)
    assert xp.isfinite(out).all()
    assert all(xp.isfinite(gradient).all() for gradient in flash_attention_backward(random_like(out), cache))


def test_tiles_that_no_query_sees_are_skipped():
    T = 256
    use_tiles(64, 64, 64 * 64)
    q = np.zeros((1, 1, T, 4))
    t = np.arange(T)
    causal = list(on_cpu.tiles(q, q, np.zeros((1, T), int), (t + 1)[None]))
    assert [len(pieces) for _, _, pieces in causal] == [1, 2, 3, 4]
    assert [[hidden is not None for _, hidden in pieces] for _, _, pieces in causal][3] == [False, False, False, True]
    window = list(on_cpu.tiles(q, q, np.maximum(t - 31, 0)[None], (t + 1)[None]))
    assert sum(keys.stop - keys.start for _, _, pieces in window for keys, _ in pieces) <= T + 3 * 32


def test_memory_grows_with_t_and_not_with_its_square():
    def peak(T):
        q, k, v = (np.zeros((1, 2, T, 8), "float32") for _ in range(3))
        tracemalloc.start()
        out, cache = flash_attention_forward(q, k, v)
        flash_attention_backward(out, cache)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    short, long = peak(1024), peak(4096)
    assert long < 4 * short
    assert long < 4096 * 4096  # a single (T, S) array of float32 has four times as many bytes, for each head


def test_inputs_stay(xp):
    check_inputs_stay(flash_attention_forward, flash_attention_backward, example(xp))


def test_takes_any_strides(xp):
    check_strides(flash_attention_forward, flash_attention_backward, example(xp))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(flash_attention_forward, flash_attention_backward, example(xp), dtype)


def test_shapes_that_do_not_belong_together(xp):
    q, k, v = example(xp)
    with pytest.raises(ValueError, match=r"^v has shape"):
        flash_attention_forward(q, k, v[:, :, :3])
    with pytest.raises(ValueError, match=r"^q has 3 heads and k has 2"):
        flash_attention_forward(q[:, :3], k, v)
    with pytest.raises(ValueError, match=r"^last has shape"):
        flash_attention_forward(q, k, v, last=xp.arange(4))
    _, cache = flash_attention_forward(q, k, v)
    with pytest.raises(ValueError, match=r"^dout has shape"):
        flash_attention_backward(q[:, :, :2], cache)
