import math

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

from numllama.backend import to_numpy
from numllama.gradcheck import gradcheck
from numllama.ops import attention_backward, attention_forward

REPEATS = st.sampled_from([1, 2, 4, 8])  # R, the query heads of one key head


def example(xp, B=2, H=4, K=2, T=3, S=5, D=4):
    rng = np.random.default_rng(0)
    return [normal(xp, rng, B, H, T, D), normal(xp, rng, B, K, S, D), normal(xp, rng, B, K, S, D)]


@st.composite
def cases(draw):
    """All arguments, in NumPy. Intervals may be empty, or reach beyond the keys; T may exceed S."""
    B, K, R, D = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3])), draw(REPEATS), draw(SIZES)
    T, S, rng = draw(SIZES), draw(SIZES), draw(RNGS)
    q, k, v = (rng.standard_normal(shape) for shape in [(B, K * R, T, D), (B, K, S, D), (B, K, S, D)])
    bounds = st.sampled_from([None, (T,), (B, T)])
    masks = st.sampled_from([None, (S,), (T, S), (B, 1, T, S), (B, K * R, T, S)])
    first, last, mask = draw(bounds), draw(bounds), draw(masks)
    return [
        q, k, v,
        None if first is None else rng.integers(-1, S + 1, first),
        None if last is None else rng.integers(0, S + 3, last),
        None if mask is None else rng.random(mask) < 0.7,
        draw(st.sampled_from([None, 0.3, 1.0])),
    ]


def on(xp, case):
    return [xp.asarray(value) if isinstance(value, np.ndarray) else value for value in case]


def keys_of(case, b, h, t):
    """Which keys a query sees, written out."""
    q, k, _, first, last, mask, _ = case
    (B, H, T, _), S = q.shape, k.shape[2]
    first = np.zeros((B, T)) if first is None else np.broadcast_to(first, (B, T))
    last = np.broadcast_to(S - T + np.arange(T) + 1 if last is None else last, (B, T))
    mask = np.broadcast_to(True if mask is None else mask, (B, H, T, S))
    return [s for s in range(S) if first[b, t] <= s < last[b, t] and mask[b, h, t, s]]


def attend_by_scalars(case, capped=lambda score: score):
    q, k, v, *_, scale = case
    B, H, T, D = q.shape
    out = np.zeros_like(q)
    for b, h, t in np.ndindex(B, H, T):
        g = h // (H // k.shape[1])
        weights = {
            s: math.exp(capped(sum(q[b, h, t, d] * k[b, g, s, d] for d in range(D)) * (scale or 1 / math.sqrt(D))))
            for s in keys_of(case, b, h, t)
        }
        for s, weight in weights.items():
            out[b, h, t] += weight / sum(weights.values()) * v[b, g, s]
    return out


@settings(max_examples=150)  # many ways to combine
@given(cases())
def test_gradients(xp, case):
    gradcheck(attention_forward, attention_backward, on(xp, case))


CAPS = st.sampled_from([0.3, 2.0, 50.0])


@settings(max_examples=60)
@given(cases(), CAPS)
def test_gradients_with_a_soft_cap(xp, case, cap):
    gradcheck(attention_forward, attention_backward, [*on(xp, case), cap])


@settings(max_examples=60)
@given(cases(), CAPS)
def test_forward_by_scalars_with_a_soft_cap(xp, case, cap):
    assert_close(attention_forward(*on(xp, case), cap)[0], attend_by_scalars(case, lambda score: cap * math.tanh(score / cap)))


@settings(max_examples=150)
@given(cases())
def test_forward_by_scalars(xp, case):
    assert_close(attention_forward(*on(xp, case))[0], attend_by_scalars(case))


@given(cases())
def test_a_query_that_sees_nothing_gives_zero_and_gets_zero(xp, case):
    out, cache = attention_forward(*on(xp, case))
    dq = attention_backward(random_like(out), cache)[0]
    for b, h, t in np.ndindex(*out.shape[:3]):
        if not keys_of(case, b, h, t):
            assert not out[b, h, t].any() and not dq[b, h, t].any()


@given(cases())
def test_a_key_that_nobody_sees_gets_zero(xp, case):
    out, cache = attention_forward(*on(xp, case))
    _, dk, dv = attention_backward(random_like(out), cache)
    H, T = out.shape[1:3]
    R = H // dk.shape[1]
    for b, g in np.ndindex(*dk.shape[:2]):
        seen = {s for h in range(g * R, g * R + R) for t in range(T) for s in keys_of(case, b, h, t)}
        for s in set(range(dk.shape[2])) - seen:
            assert not dk[b, g, s].any() and not dv[b, g, s].any()


def test_when_no_query_sees_anything_all_is_zero(xp):
    q, k, v = example(xp)
    out, cache = attention_forward(q, k, v, last=xp.zeros(3, dtype=int))
    assert not out.any()
    assert not any(gradient.any() for gradient in attention_backward(random_like(out), cache))


@pytest.mark.parametrize(("T", "S"), [(1, 1), (4, 4), (1, 6), (3, 6), (5, 2)])
def test_by_default_the_queries_stand_at_the_end_of_the_keys(xp, T, S):
    q, k, v = example(xp, T=T, S=S)
    first, last = xp.zeros(T, dtype=int), xp.asarray([S - T + t + 1 for t in range(T)])
    assert_same_bits(attention_forward(q, k, v)[0], attention_forward(q, k, v, first, last)[0])


def test_future_keys_have_no_influence_at_all(xp):
    q, k, v = example(xp, T=5, S=5)
    out, cache = attention_forward(q, k, v)
    dq = attention_backward(random_like(out), cache)[0]
    for t in range(4):
        k_2, v_2 = k.copy(), v.copy()
        k_2[:, :, t + 1 :] = 1e100
        v_2[:, :, t + 1 :] = -1e100
        out_2, cache_2 = attention_forward(q, k_2, v_2)
        dout = random_like(out)
        dout[:, :, t + 1 :] = 0
        assert_same_bits(out_2[:, :, : t + 1], out[:, :, : t + 1])
        assert_same_bits(attention_backward(dout, cache_2)[0][:, :, : t + 1], dq[:, :, : t + 1])


@given(cases())
def test_a_boolean_mask_and_an_interval_say_the_same(xp, case):
    q, k, v, first, last, _, scale = case
    B, T, S = len(q), q.shape[2], k.shape[2]
    mask = np.zeros((B, 1, T, S), dtype=bool)
    for b, t in np.ndindex(B, T):
        mask[b, 0, t, keys_of([q, k, v, first, last, None, scale], b, 0, t)] = True
    everything = np.full(T, S)
    by_interval = attention_forward(*on(xp, [q, k, v, first, last, None, scale]))[0]
    assert_same_bits(attention_forward(*on(xp, [q, k, v, None, everything, mask, scale]))[0], by_interval)


@given(cases())
def test_grouped_queries_are_repeated_keys_and_values(xp, case):
    q, k, v, *rest = case
    R = q.shape[1] // k.shape[1]
    out, cache = attention_forward(*on(xp, case))
    dq, dk, dv = attention_backward(random_like(out), cache)
    out_2, cache_2 = attention_forward(*on(xp, [q, k.repeat(R, axis=1), v.repeat(R, axis=1), *rest]))
    dq_2, dk_2, dv_2 = attention_backward(random_like(out_2), cache_2)
    assert_close(out, out_2)
    assert abs(dq - dq_2).max() < 1e-12  # zero up to rounding where each query sees one key
    assert abs(dk - dk_2.reshape(*k.shape[:2], R, *k.shape[2:]).sum(2)).max() < 1e-12
    assert_close(dv, dv_2.reshape(*v.shape[:2], R, *v.shape[2:]).sum(2))


def test_equal_keys_average_the_values(xp):
    q, _, v = example(xp)
    out = attention_forward(q, xp.ones_like(v), v, last=xp.full(3, 5))[0]
    assert_close(out, np.broadcast_to(to_numpy(v).mean(2, keepdims=True).repeat(2, axis=1), q.shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_very_large_scores_pick_the_best_key_without_overflow(xp, dtype):
    q, k, v = (array.astype(dtype) for array in example(xp, B=1, H=1, K=1, T=1))
    k[:] = -1
    k[0, 0, 3] = 1
    out, cache = attention_forward(xp.full_like(q, 1e4), k, v)
    assert_same_bits(out[0, 0, 0], v[0, 0, 3])
    assert all(xp.isfinite(gradient).all() for gradient in attention_backward(random_like(out), cache))


def test_adding_the_same_vector_to_all_keys_changes_nothing(xp):
    q, k, v = example(xp)
    assert_close(attention_forward(q, k + 3, v)[0], attention_forward(q, k, v)[0])


def test_a_left_padded_sequence_is_the_sequence(xp):
    q, k, v = example(xp, H=2, T=5, S=5)
    pads = xp.asarray([[0] * 5, [2] * 5])  # the second sequence starts at position 2
    padded = attention_forward(q, k, v, first=pads)[0]
    alone = attention_forward(q[1:, :, 2:], k[1:, :, 2:], v[1:, :, 2:])[0]
    assert_close(padded[1:, :, 2:], alone)
    assert not padded[1, :, :2].any()


def masked_example(xp):
    mask = xp.asarray(np.random.default_rng(1).random((3, 5)) < 0.7)
    return [*example(xp), xp.asarray([0, 1, 2]), xp.asarray([[5, 4, 3], [5, 0, 5]]), mask]


def test_writes_to_no_input(xp):
    check_inputs_stay(attention_forward, attention_backward, masked_example(xp))


def test_takes_any_strides(xp):
    check_strides(attention_forward, attention_backward, masked_example(xp))


def test_takes_heads_that_are_a_view_of_a_projection(xp):
    q, k, v = example(xp)
    views = [xp.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2) for x in (q, k, v)]  # (B, T, H, D) in memory
    assert_close(attention_forward(*views)[0], attention_forward(q, k, v)[0], rtol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_keeps_the_dtype(xp, dtype):
    check_dtype(attention_forward, attention_backward, masked_example(xp), dtype)


@pytest.mark.parametrize("name", ["first", "last"])
def test_intervals_may_be_lists(xp, name):
    q, k, v = example(xp)
    by_list = attention_forward(q, k, v, **{name: [1, 2, 3]})[0]
    assert_same_bits(by_list, attention_forward(q, k, v, **{name: xp.asarray([1, 2, 3])})[0])


@pytest.mark.parametrize("shape", [(1, 2, 5, 4), (2, 2, 5, 3), (2, 5, 4)])
def test_keys_of_another_batch_or_head_size(xp, shape):
    q, _, _ = example(xp)
    with pytest.raises(ValueError, match=r"^k has shape .*, but \(2, any, any, 4\) is needed$"):
        attention_forward(q, xp.ones(shape), xp.ones(shape))


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 2, 4, 4), (2, 2, 5, 3)])
def test_values_unlike_the_keys(xp, shape):
    q, k, _ = example(xp)
    with pytest.raises(ValueError, match=r"^v has shape .*, but \(2, 2, 5, 4\) is needed$"):
        attention_forward(q, k, xp.ones(shape))


@pytest.mark.parametrize("K", [0, 3, 8])
def test_heads_that_do_not_divide(xp, K):
    q, _, _ = example(xp)
    k = xp.ones((2, K, 5, 4))
    with pytest.raises(ValueError, match=rf"^q has 4 heads and k has {K}, but the first must be a multiple of the second$"):
        attention_forward(q, k, k)


@pytest.mark.parametrize("name", ["first", "last"])
@pytest.mark.parametrize("shape", [(), (5,), (1,), (1, 3), (3, 2), (2, 1, 3)])
def test_intervals_of_another_shape(xp, name, shape):
    q, k, v = example(xp)
    with pytest.raises(ValueError, match=rf"^{name} has shape .*, but .* is needed$"):
        attention_forward(q, k, v, **{name: xp.zeros(shape, dtype=int)})


def test_dout_of_another_shape(xp):
    _, cache = attention_forward(*example(xp))
    with pytest.raises(ValueError, match=r"^dout has shape \(2, 3, 4, 4\), but \(2, 4, 3, 4\) is needed$"):
        attention_backward(xp.ones((2, 3, 4, 4)), cache)
