"""Scores of heads: of attention that is known, of a model that is built to copy, and of models of any family."""

import numpy as np
import pytest
from helpers import assert_close
from learn.families import FAMILIES, a_model

from numllama.generation.attention_maps import attention_weights
from numllama.learn.heads import (
    attention_of_heads,
    first_token_scores,
    head_scores,
    induction_scores,
    previous_token_scores,
    repeated_tokens,
)

IDS = np.array([7, 50, 7, 3, 9, 11])


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_that_of_each_layer(family):
    model = a_model(**FAMILIES[family])
    maps = attention_of_heads(model, IDS)
    assert maps.shape == (2, 4, len(IDS), len(IDS))
    for layer in range(2):
        assert_close(maps[layer], attention_weights(model, IDS, layer).astype("float64"), rtol=1e-6)
    assert_close(attention_of_heads(model, IDS[None])[:, 0], maps)


def looking_at(T, place):
    """A head whose query t attends to `place(t)` alone, or to itself."""
    attention = np.zeros((T, T))
    for t in range(T):
        attention[t, place(t) if 0 <= place(t) <= t else t] = 1
    return attention


def test_a_head_with_one_habit_has_one_score():
    n = 5
    T = 2 * n
    habits = [looking_at(T, lambda t: t - 1), looking_at(T, lambda t: 0), looking_at(T, lambda t: t - n + 1)]
    attention = np.stack(habits)
    assert previous_token_scores(attention).tolist() == [1, 1 / 9, 0]
    assert first_token_scores(attention).tolist() == pytest.approx([1 / 9, 1, 1 / 9])  # its second token follows the first one
    assert induction_scores(attention, n).tolist() == [0, 0, 1]
    same_token = looking_at(T, lambda t: t - n)
    assert induction_scores(same_token, n) == 0


def test_tokens_in_front_are_not_scored():
    n, attention = 4, looking_at(11, lambda t: t - 3)
    assert induction_scores(attention, n) == 1
    attention[:7] = 0
    assert induction_scores(attention, n) == 1
    with pytest.raises(ValueError, match=r"period is 6, but must lie in 2\.\.5 for 11 tokens"):
        induction_scores(attention, 6)


def test_repeated_tokens_are_two_equal_halves_without_repetition():
    rows = repeated_tokens(40, 16, batch=3, seed=1)
    assert rows.shape == (3, 32) and np.array_equal(rows[:, :16], rows[:, 16:])
    assert all(len(set(row[:16])) == 16 for row in rows.tolist()) and len({tuple(row) for row in rows.tolist()}) == 3
    with pytest.raises(ValueError, match=r"n is 41, but must lie in 2\.\.40"):
        repeated_tokens(40, 41)


def test_the_scores_of_a_model_are_the_means_over_its_rows():
    model = a_model(vocab_size=20, max_seq_len=24)
    scores, rows = head_scores(model, n=32, batch=3, seed=2), repeated_tokens(20, 12, 3, 2)
    each = np.stack([attention_of_heads(model, row) for row in rows])                          # (B, L, H, T, T)
    assert_close(scores.induction, induction_scores(each, 12).mean(0))
    assert_close(scores.previous, previous_token_scores(each).mean(0))
    assert_close(scores.first, first_token_scores(each).mean(0))
    assert scores.induction.shape == (2, 4)


def test_a_head_that_is_built_to_look_back_is_found():
    """Learned positions that rotate by a step: head 0 of layer 1 matches each position's query to the one before."""
    model = a_model(positions="learned", n_heads=2, head_dim=16, dim=32, max_seq_len=32)
    angles = 2 * np.pi * np.outer(np.arange(32), np.arange(1, 9)) / 32                         # (positions, 8)
    model.params["pos_embed"][...] = 5 * np.concatenate((np.cos(angles), np.sin(angles), 0 * angles, 0 * angles), 1)
    for w in ("wo", "w_down"):
        model.params[f"blocks.0.{w}"][...] = 0
    step = angles[1]
    back, keys = np.zeros((16, 32)), np.zeros((16, 32))
    for j in range(8):                                                                         # cos(a − s), sin(a − s)
        back[j, [j, 8 + j]], back[8 + j, [j, 8 + j]] = (np.cos(step[j]), np.sin(step[j])), (-np.sin(step[j]), np.cos(step[j]))
        keys[j, j] = keys[8 + j, 8 + j] = 1
    model.params["blocks.1.wq"][:16], model.params["blocks.1.wk"][:16] = 3 * back, 3 * keys
    scores = head_scores(model, n=16)
    assert scores.previous[1, 0] > 0.9 and scores.previous[1, 1] < 0.5 and scores.induction[1, 0] < 0.1
