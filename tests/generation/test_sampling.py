"""The filters against their definitions, the draw against chance, and what cannot be asked for."""

import math

import numpy as np
import pytest
from helpers import assert_same_bits, unmodified
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from numllama import SamplingConfig
from numllama.backend import to_numpy
from numllama.generation.sampling import (
    draw,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_softmax,
    next_tokens,
    penalise_repetition,
)

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 12))
LOGITS = st.one_of(
    arrays("float64", SHAPES, elements=st.floats(-20, 20)),
    arrays("float64", SHAPES, elements=st.sampled_from([-2.0, 0.0, 1.0, 1.5])),  # ties
)


def probabilities(row):
    """By scalars."""
    p = [math.exp(x - max(row)) for x in row]
    return [x / sum(p) for x in p]


@given(LOGITS, st.data())
def test_top_k_keeps_the_k_largest_and_their_equals(logits, data):
    k = data.draw(st.integers(1, logits.shape[1]))
    for row, kept in zip(logits, keep_top_k(logits, k), strict=True):
        least = sorted(row)[-k]
        assert kept.tolist() == [x if x >= least else -math.inf for x in row]


@given(LOGITS, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_likeliest_that_sum_to_p(logits, p):
    for row, kept in zip(logits, keep_top_p(logits, p), strict=True):
        inside = np.isfinite(kept)
        assert (kept[inside] == row[inside]).all()
        assert inside.any()
        chances = np.array(probabilities(row))
        assert chances[inside].sum() >= p - 1e-12
        assert chances[inside].sum() - chances[inside].min() <= p + 1e-12  # with one less it would not do
        assert not (~inside).any() or chances[~inside].max() <= chances[inside].min()


@given(LOGITS, st.floats(0, 1))
def test_min_p_keeps_what_is_not_too_far_below_the_likeliest(logits, p):
    for row, kept in zip(logits, keep_min_p(logits, p), strict=True):
        chances = probabilities(row)
        for x, result, chance in zip(row, kept, chances, strict=True):
            if abs(chance - p * max(chances)) > 1e-12:
                assert result == (x if chance > p * max(chances) else -math.inf)
        assert kept.max() == row.max()


@given(LOGITS, st.floats(0.1, 10), st.data())
def test_the_repetition_penalty_by_scalars(logits, penalty, data):
    seen = data.draw(arrays(bool, logits.shape))
    expected = [[x if not s else x * penalty if x < 0 else x / penalty for x, s in zip(*rows, strict=True)]
                for rows in zip(logits.tolist(), seen, strict=True)]  # fmt: skip
    assert penalise_repetition(logits, seen, penalty).tolist() == expected


@given(LOGITS)
def test_the_filters_are_pure(logits):
    seen = np.ones(logits.shape, bool)
    calls = [lambda: keep_top_k(logits, 1), lambda: keep_top_p(logits, 0.4), lambda: keep_min_p(logits, 0.3),
             lambda: penalise_repetition(logits, seen, 2.0), lambda: log_softmax(logits)]  # fmt: skip
    for call in calls:
        with unmodified(logits, seen):
            first = call()
            assert_same_bits(call(), first)


def test_filters_keep_the_dtype():
    logits = np.random.default_rng(0).standard_normal((2, 9), dtype="float32")
    config = SamplingConfig(temperature=0.7, top_k=5, top_p=0.9, min_p=0.01)
    assert filtered(logits, config).dtype == np.float32
    assert penalise_repetition(logits, logits > 0, 1.3).dtype == np.float32


def test_temperature_comes_before_the_nucleus_and_top_k_before_top_p():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05]]))
    assert np.isfinite(filtered(logits, SamplingConfig(top_p=0.7))).tolist() == [[True, True, False, False]]
    assert np.isfinite(filtered(logits, SamplingConfig(top_p=0.7, temperature=3.0))).tolist() == [[True, True, True, False]]
    # of the two that top-k leaves, 0.5 / 0.8 is not enough for 0.62 but for 0.6; of all four, 0.5 alone is not enough for either
    assert np.isfinite(filtered(logits, SamplingConfig(top_k=2, top_p=0.62))).tolist() == [[True, False, False, False]]
    assert np.isfinite(filtered(logits, SamplingConfig(top_p=0.62))).tolist() == [[True, True, False, False]]
    # of what top-p leaves, min-p asks the likeliest
    both = filtered(logits, SamplingConfig(top_p=0.9, min_p=0.4))
    assert np.isfinite(both).tolist() == [[True, True, False, False]]


def test_the_penalty_comes_before_greed():
    logits, seen = np.array([[2.0, 1.5, -1.0]]), np.array([[True, False, False]])
    config = SamplingConfig(temperature=0, repetition_penalty=2.0)
    assert next_tokens(logits, config, [None], seen).tolist() == [1]


def test_of_equals_greed_takes_the_first():
    assert next_tokens(np.array([[1.0, 3.0, 3.0]]), SamplingConfig(temperature=0), [None], None).tolist() == [1]


@pytest.mark.parametrize(("settings", "V"), [
    (dict(), 40),
    *(pytest.param(*each, marks=pytest.mark.thorough) for each in (
        (dict(temperature=0.6, top_k=8), 40), (dict(temperature=1.7, top_p=0.5), 8), (dict(min_p=0.2), 8),
    )),
    (dict(temperature=2.0, top_k=30, top_p=0.8, min_p=0.05, repetition_penalty=1.5), 40),
])  # fmt: skip
def test_200_000_samples_follow_the_distribution(settings, V):
    rng = np.random.default_rng(3)
    logits, seen = rng.standard_normal((1, V), dtype="float32") * 1.5, rng.random((1, V)) < 0.5
    config = SamplingConfig(**settings)
    raw = penalise_repetition(logits, seen, config.repetition_penalty).astype("float64")
    p = np.exp(log_softmax(filtered(raw, config)))[0]
    n, rows = 200_000, 2000
    u = np.random.default_rng(0)
    counts = np.zeros(V)
    for _ in range(n // rows):
        tokens = next_tokens(np.repeat(logits, rows, axis=0), config, [u] * rows, np.repeat(seen, rows, axis=0))
        counts += np.bincount(tokens, minlength=V)
    inside = p > 0
    assert counts[~inside].sum() == 0
    chi_squared = ((counts - n * p)[inside] ** 2 / (n * p[inside])).sum()
    assert chi_squared < quantile(inside.sum() - 1)


def quantile(k):
    """Of chi-squared with k degrees of freedom: more comes by chance once in ten thousand times (Wilson & Hilferty 1931)."""
    return k * (1 - 2 / (9 * k) + 3.719 * math.sqrt(2 / (9 * k))) ** 3


SOME = st.sampled_from([0.0, 1e-30, 0.1, 1.0, 3.0]).map(np.float32)


@given(arrays("float32", st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=SOME), st.floats(0, 1, exclude_max=True))
def test_what_has_no_weight_is_never_drawn(weights, u):
    weights[:, -1] += weights.sum(-1) == 0
    for row, token in zip(weights, draw(weights, [u] * len(weights)), strict=True):
        assert row[token] > 0


def test_a_token_is_drawn_where_its_share_of_the_line_lies():
    weights = np.array([[1.0, 0.0, 2.0, 1.0]])
    assert [int(draw(weights, [u])[0]) for u in (0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53)] == [0, 0, 2, 2, 3, 3]


def test_draws_on_every_device(device, xp):
    logits = np.random.default_rng(0).standard_normal((4, 30))
    seen = logits > 0.5
    config = SamplingConfig(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=0)
    there = next_tokens(xp.asarray(logits), config, config.generators(4), xp.asarray(seen))
    assert to_numpy(there).tolist() == next_tokens(logits, config, config.generators(4), seen).tolist()


def test_each_row_has_its_own_numbers_and_a_seed_of_its_own():
    numbers = [rng.random() for rng in SamplingConfig(seed=7).generators(3)]
    assert numbers == [np.random.default_rng(7 + row).random() for row in range(3)]
    assert [rng.random() for rng in SamplingConfig(seed=[9, 7]).generators(2)] == [np.random.default_rng(9).random(), numbers[0]]
    assert len({rng.random() for rng in SamplingConfig().generators(5)}) == 5


IMPOSSIBLE = [
    (dict(temperature=-0.1), "temperature is -0.1, but must be a number that is not negative"),
    (dict(temperature=math.nan), "temperature is nan"),
    (dict(temperature=math.inf), "temperature is inf"),
    (dict(temperature="hot"), "temperature is 'hot'"),
    (dict(temperature=None), "temperature is None"),
    (dict(top_k=-2), "top_k is -2, but must be a whole number of at least 1, or 0 or -1 for all"),
    (dict(top_k=2.5), "top_k is 2.5"),
    (dict(top_k=True), "top_k is True"),
    (dict(top_p=-0.1), r"top_p is -0.1, but must be a number in \[0, 1\]"),
    (dict(top_p=2), "top_p is 2"),
    (dict(top_p=math.nan), "top_p is nan"),
    (dict(min_p=-0.1), r"min_p is -0.1, but must be a number in \[0, 1\]"),
    (dict(min_p=1.1), "min_p is 1.1"),
    (dict(repetition_penalty=0), "repetition_penalty is 0, but must be a positive number"),
    (dict(seed=-1), "seed is -1, but must be a whole number that is not negative, or one for each row"),
    (dict(seed=1.5), "seed is 1.5"),
    (dict(seed=[1, -2]), r"seed is \[1, -2\]"),
    (dict(stop_ids="end"), "stop_ids is 'end', but must be token ids"),
    (dict(stop_ids=None), "stop_ids is None"),
    (dict(temperature=10**400), "temperature is 1000"),
    *[({name: True}, f"{name} is True, but must be") for name in (
        "temperature", "top_p", "min_p", "repetition_penalty", "seed", "stop_ids",
    )],
    (dict(seed=[1, True]), r"seed is \[1, True\]"),
    (dict(stop_ids=[True]), r"stop_ids is \[True\]"),
]


@pytest.mark.parametrize(("wrong", "sentence"), IMPOSSIBLE)
def test_an_impossible_setting_is_named_when_it_is_made(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        SamplingConfig(**wrong)


def test_settings_that_numpy_computed_are_as_good():
    config = SamplingConfig(temperature=np.float32(0.5), top_k=np.int64(3), seed=np.int64(4), stop_ids=np.array([1, 2]))
    assert config.stop_ids == (1, 2)
    assert config.seed == 4
    assert SamplingConfig(stop_ids=5).stop_ids == (5,)


def test_what_the_vocabulary_has_no_room_for_is_named():
    with pytest.raises(ValueError, match=r"stop_ids holds 5, but must lie in 0\.\.4"):
        SamplingConfig(stop_ids=[1, 5]).check(5)
    with pytest.raises(ValueError, match=r"k is 0, but must be a whole number of at least 1"):
        keep_top_k(np.zeros((1, 5)), 0)


@pytest.mark.parametrize("settings", [dict(top_k=0), dict(top_k=-1), dict(top_k=6), dict(top_k=10**9), dict(top_k=None)])
def test_a_top_k_of_all_leaves_all(settings):
    logits = np.random.default_rng(0).standard_normal((2, 5))
    assert_same_bits(filtered(logits, SamplingConfig(**settings)), logits)


def test_a_top_p_of_nothing_leaves_the_likeliest():
    logits = np.array([[0.5, 2.0, -1.0], [3.0, 0.0, 1.0]])
    assert np.isfinite(filtered(logits, SamplingConfig(top_p=0))).tolist() == [[False, True, False], [True, False, False]]


def test_a_numpy_scalar_does_not_widen_the_logits():
    logits = np.random.default_rng(0).standard_normal((1, 9), dtype="float32")
    assert filtered(logits, SamplingConfig(temperature=np.float64(0.7), top_p=np.float64(0.9))).dtype == np.float32


def test_as_many_seeds_as_rows():
    with pytest.raises(ValueError, match="seed has 2 numbers, but there are 3 rows to draw"):
        SamplingConfig(seed=[1, 2]).generators(3)
