"""examples/experts.py: shares that are counted, and a loss that evens them out."""

import numpy as np
import pytest
from helpers import example

from numllama import ops


@pytest.fixture(scope="module")
def experts():
    return example("experts")


@pytest.fixture(scope="module")
def runs(experts):
    before = ops.mixture_of_experts_forward, ops.load_balancing_forward
    found = [experts.train(factor, steps=20) for factor in (0.0, 1.0)]
    assert (ops.mixture_of_experts_forward, ops.load_balancing_forward) == before
    return found


def test_the_load_balancing_loss_evens_the_shares_out(runs):
    without, balanced = (run.busiest().max() for run in runs)
    assert without > 1.8 > 1.5 > balanced


def test_the_losses_of_all_factors_are_of_the_same_thing(runs):
    without, balanced = runs
    np.testing.assert_allclose(without.losses[0], balanced.losses[0], rtol=1e-6)    # nothing has been learned yet
    np.testing.assert_array_equal(without.shares[0], balanced.shares[0])


def test_the_shares_of_each_layer_are_of_all_tokens(experts, runs):
    for run in runs:
        assert run.shares.shape == (20, experts.LAYERS, experts.EXPERTS)
        np.testing.assert_allclose(run.shares.sum(-1), 1)


def test_idle_experts_are_counted(experts):
    shares = np.tile([[0.5, 0.44, 0.03, 0.03, 0, 0, 0, 0], [0.125] * 8], (3, 1, 1))
    run = experts.Run(0.5, np.array([3.0, 2.0, 1.0]), shares)
    assert run.idle().tolist() == [6, 0]
    assert run.busiest().tolist() == [4, 1]
    assert experts.table([run]).splitlines()[-1] == "| 0.5 | 2.00 | 4.0 and 1.0 | 6 and 0 of 8 |"
