"""The order of merges: the lowest rank first, the leftmost of equal ones, whatever way is taken."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from numllama.tokenizer import merging
from numllama.tokenizer.merging import merge, merge_steps


def one_by_one(ids, ranks, made):
    """The definition: look at all pairs, merge one, start again."""
    ids = list(ids)
    while found := [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]:
        rank, i = min(found)
        ids[i : i + 2] = [made[rank]]
    return ids


@st.composite
def vocabularies(draw):
    """Ranks in any order: a pair with a new token may rank before the one that makes it."""
    pairs = draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), unique=True, max_size=12))
    made = [draw(st.integers(3, 9)) for _ in pairs]
    return {pair: rank for rank, pair in enumerate(pairs)}, made


@given(vocabulary=vocabularies(), ids=st.lists(st.integers(0, 4), max_size=30))
def test_merging_is_what_the_definition_says_with_and_without_a_heap(vocabulary, ids):
    expected = one_by_one(ids, *vocabulary)
    assert merge(list(ids), *vocabulary) == expected
    assert merging._merge_long(list(ids), *vocabulary) == expected


def test_overlapping_pairs_merge_from_the_left():
    assert merge([0] * 5, {(0, 0): 0}, [1]) == [1, 1, 0]


def test_steps_say_where_each_merge_took_place():
    steps = [(i, list(ids)) for i, ids in merge_steps([0, 1, 0, 1], {(0, 1): 0, (2, 2): 1}, [2, 3])]
    assert steps == [(0, [2, 0, 1]), (1, [2, 2]), (0, [3])]


def test_a_long_run_is_merged_with_a_heap(monkeypatch):
    monkeypatch.setattr(merging, "merge_steps", None)  # which would look at all pairs again after each merge
    assert merge([0] * 100_001, {(0, 0): 0, (1, 1): 1}, [1, 2]) == [2] * 25_000 + [0]
