"""Turns: shards add to each tensor in their order, whatever the order in which they come to it."""

import threading

import numpy as np
import pytest
from helpers import assert_same_bits

from numllama.model import ModelConfig, Transformer
from numllama.parallel.turns import Stopped, Turns


@pytest.fixture
def total():
    """A buffer with something in it that must be forgotten."""
    params = Transformer(ModelConfig(5, 4, 1, 1, max_seq_len=3)).params.zeros_like()
    params.flat[:] = 7
    return params


def test_the_first_shard_writes_and_the_others_add(total):
    turns = Turns(total)
    for index in range(3):
        with turns.shard(index) as grads:
            for name in total:
                grads[name] += np.full(total[name].shape, 10.0**index, "float32")
    assert (total.flat == 111).all()


def test_rows_can_be_added_to(total):
    turns = Turns(total)
    for index in range(2):
        with turns.shard(index) as grads:
            grads["embed"][np.array([1, 3])] += np.ones((2, 4), "float32")
    assert total["embed"].sum(1).tolist() == [0, 8, 0, 8, 0]


def test_a_block_names_its_own_tensors(total):
    turns = Turns(total)
    with turns.shard(0) as grads:
        grads.blocks[0]["wq"] += np.ones((4, 4), "float32")
    assert (total["blocks.0.wq"] == 1).all()


def test_what_no_shard_adds_to_is_zero(total):
    turns = Turns(total)
    for index in range(2):
        with turns.shard(index):
            assert total.flat.any() == (index == 0)  # the first one clears when it ends
    assert not total.flat.any()


def test_a_later_shard_waits_for_the_one_before(total):
    turns, order = Turns(total), []

    def run(index):
        with turns.shard(index) as grads:
            if index == 0:
                assert started.wait(5)
            else:
                started.set()
            grads["head"] += np.full((5, 4), 0.1 if index else 1e8, "float32")
            order.append(index)

    started = threading.Event()
    threads = [threading.Thread(target=run, args=(index,)) for index in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order == [0, 1]
    assert_same_bits(total["head"], np.full((5, 4), np.float32(1e8) + np.float32(0.1)))


def test_a_second_sum_into_one_tensor_is_refused(total):
    turns = Turns(total)
    with pytest.raises(ValueError, match="shard 0 adds to norm for a second time"), turns.shard(0) as grads:
        grads["norm"] += np.ones(4, "float32")
        grads["norm"] += np.ones(4, "float32")


def test_gradients_cannot_be_replaced(total):
    with pytest.raises(TypeError, match="the gradient of norm can only be added to"), Turns(total).shard(0) as grads:
        grads["norm"] = np.ones(4, "float32")


def test_an_error_ends_the_shards_that_wait(total):
    turns = Turns(total)
    with pytest.raises(ArithmeticError), turns.shard(0):
        raise ArithmeticError
    with pytest.raises(Stopped, match="another shard has failed"), turns.shard(1) as grads:
        grads["norm"] += np.ones(4, "float32")


def test_a_step_after_an_error_starts_anew(total):
    turns = Turns(total)
    with pytest.raises(ArithmeticError), turns.shard(0):
        raise ArithmeticError
    turns.start()
    for index in range(2):
        with turns.shard(index) as grads:
            grads["norm"] += np.ones(4, "float32")
    assert total["norm"].tolist() == [2, 2, 2, 2]
    assert not total["head"].any()


def test_a_worker_that_waits_may_be_told_to_end(total):
    def stop():
        raise SystemExit

    with pytest.raises(SystemExit), Turns(total, stop=stop).shard(1) as grads:
        grads["norm"] += np.ones(4, "float32")
