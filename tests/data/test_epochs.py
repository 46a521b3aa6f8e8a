"""Windows without replacement: each once in an epoch, for any number of ranks and from any place on."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numllama.data.batches import epoch_batch
from numllama.data.epochs import Prefetched, permuted


@given(n=st.integers(1, 2000), seed=st.integers(0, 99))
def test_a_permutation_leads_everywhere_once(n, seed):
    assert sorted(permuted(np.arange(n), n, (seed, 0)).tolist()) == list(range(n))


@given(n=st.integers(1, 2**62), seed=st.integers(0, 99))
def test_of_a_permutation_that_could_never_be_held_some_places_stay_apart(n, seed):
    places = np.unique(np.random.default_rng(seed).integers(0, n, 200))
    found = permuted(places, n, (seed,))
    assert len(np.unique(found)) == len(places)
    assert (found >= 0).all()
    assert (found < n).all()


def test_a_place_leads_to_the_same_window_in_whatever_company_it_is_asked_for():
    whole = permuted(np.arange(1000), 1000, (3, 1))
    assert [int(permuted(np.array([i]), 1000, (3, 1))[0]) for i in (0, 7, 999)] == whole[[0, 7, 999]].tolist()


def test_another_seed_or_epoch_is_another_order():
    orders = [permuted(np.arange(1000), 1000, key).tolist() for key in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    same_place = [sum(a == b for a, b in zip(orders[0], order, strict=True)) for order in orders[1:]]
    assert max(same_place) < 10  # one is expected


@pytest.mark.parametrize("n", [5, 24, 64])
def test_a_place_leads_to_every_window_equally_often(n):
    """Over many epochs: chi-squared of the windows at the first and at the last place, and of what follows what."""
    epochs = 50 * n
    orders = np.array([permuted(np.arange(n), n, (epoch,)) for epoch in range(epochs)])
    for values in (orders[:, 0], orders[:, -1], (orders[:, 1] - orders[:, 0]) % n):
        counts = np.bincount(values, minlength=n).astype(float)
        counts = counts[counts > 0]
        chi2 = ((counts - epochs / len(counts)) ** 2 / (epochs / len(counts))).sum()
        freedom = len(counts) - 1
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


@given(n=st.integers(2, 300), seq_len=st.integers(1, 9), batch=st.integers(1, 17), seed=st.integers(0, 9))
def test_an_epoch_asks_for_every_token_of_every_window_once_and_then_begins_anew(n, seq_len, batch, seed):
    seq_len = min(seq_len, n - 1)
    windows = (n - 1) // seq_len
    starts = []
    for start in range(0, 2 * windows + batch, batch):
        inputs, targets = epoch_batch(np.arange(n), batch, seq_len, seed, start)
        assert inputs.shape == (batch, seq_len)
        assert np.array_equal(targets, inputs + 1)
        assert np.array_equal(inputs, inputs[:, :1] + np.arange(seq_len))
        starts += inputs[:, 0].tolist()
    for epoch in (0, 1):
        assert sorted(starts[epoch * windows : (epoch + 1) * windows]) == [w * seq_len for w in range(windows)]


@given(batch=st.integers(1, 16), ranks=st.integers(1, 5), start=st.integers(0, 500))
def test_ranks_share_a_batch_and_read_nothing_twice(batch, ranks, start):
    tokens = np.arange(1000)
    whole = epoch_batch(tokens, batch, 7, 1, start)[0]
    parts = [slice(batch * r // ranks, batch * (r + 1) // ranks) for r in range(ranks)]
    rows = [epoch_batch(tokens, batch, 7, 1, start, part)[0] for part in parts if part.start < part.stop]
    assert np.array_equal(np.concatenate(rows), whole)


def test_only_the_windows_of_the_batch_are_read():
    class Tokens:
        read = 0

        def __len__(self):
            return 10**12

        def __getitem__(self, part):
            self.read += part.stop - part.start
            return np.arange(part.start, part.stop)

    tokens = Tokens()
    inputs, _ = epoch_batch(tokens, 8, 64, seed=0, start=10**9, rows=slice(2, 4))
    assert inputs.shape == (2, 64)
    assert tokens.read == 2 * 65


# ------------------------------------------------------------------------------------------------ ahead, on a thread


def test_the_next_value_is_made_while_this_one_is_used():
    made, second = [], threading.Event()

    def make(position):
        made.append((position, threading.current_thread() is threading.main_thread()))
        if position == 10:
            second.set()
        return position * 2

    values = Prefetched(make, lambda position: position + 10)
    assert values(0) == 0
    assert second.wait(10)
    assert values(10) == 20
    values.close()
    assert made[:2] == [(0, True), (10, False)]
    assert [position for position, _ in made].count(10) == 1


def test_another_position_than_the_next_is_made_at_once():
    values = Prefetched(lambda position: position, lambda position: position + 1)
    assert [values(i) for i in (0, 1, 5, 6, 2)] == [0, 1, 5, 6, 2]
    values.close()
    assert values(3) == 3  # and closing is not the end
    values.close()


def test_an_error_comes_when_its_value_is_asked_for():
    def make(position):
        if position == 1:
            raise ValueError("no tokens there")
        return position

    values = Prefetched(make, lambda position: position + 1)
    assert values(0) == 0
    with pytest.raises(ValueError, match="no tokens there"):
        values(1)
    assert values(2) == 2
    values.close()
