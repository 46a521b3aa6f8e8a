"""OrderedSum: shards add to each tensor in their order, whatever the order in which they come to it."""

import threading

import numpy as np
import pytest
from helpers import assert_same_bits

from numllama.model import ModelConfig, Transformer
from numllama.model.parameters import LayerGradients
from numllama.parallel.ordered_sum import OrderedSum, ShardFailed


@pytest.fixture
def total():
    """A buffer with something in it that must be forgotten."""
    params = Transformer(ModelConfig(5, 4, 1, 1, max_seq_len=3)).params.zeros_like()
    params.flat[:] = 7
    return params


def test_the_first_shard_writes_and_the_others_add(total):
    ordered = OrderedSum(total)
    for index in range(3):
        with ordered.shard(index) as grads:
            for name in total:
                grads.add(name, np.full(total[name].shape, 10.0**index, "float32"))
    assert (total.flat == 111).all()


def test_rows_can_be_added_to(total):
    ordered = OrderedSum(total)
    for index in range(2):
        with ordered.shard(index) as grads, grads.adding_to("embed") as embed:
            embed[np.array([1, 3])] += np.ones((2, 4), "float32")
    assert total["embed"].sum(1).tolist() == [0, 8, 0, 8, 0]


def test_a_block_names_its_own_tensors(total):
    ordered = OrderedSum(total)
    with ordered.shard(0) as grads:
        LayerGradients(grads, 0).add("wq", np.ones((4, 4), "float32"))
    assert (total["blocks.0.wq"] == 1).all()


def test_what_no_shard_adds_to_is_zero(total):
    ordered = OrderedSum(total)
    for index in range(2):
        with ordered.shard(index):
            assert total.flat.any() == (index == 0)  # the first one clears when it ends
    assert not total.flat.any()


def test_a_later_shard_waits_for_the_one_before(total):
    ordered, order = OrderedSum(total), []

    def run(index):
        with ordered.shard(index) as grads:
            if index == 0:
                assert started.wait(5)
            else:
                started.set()
            grads.add("head", np.full((5, 4), 0.1 if index else 1e8, "float32"))
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
    ordered = OrderedSum(total)
    with pytest.raises(ValueError, match="shard 0 adds to norm for a second time"), ordered.shard(0) as grads:
        grads.add("norm", np.ones(4, "float32"))
        grads.add("norm", np.ones(4, "float32"))


def test_gradients_cannot_be_replaced(total):
    with pytest.raises(TypeError, match="item assignment"), OrderedSum(total).shard(0) as grads:
        grads["norm"] = np.ones(4, "float32")


def test_an_error_ends_the_shards_that_wait(total):
    ordered = OrderedSum(total)
    with pytest.raises(ArithmeticError), ordered.shard(0):
        raise ArithmeticError
    with pytest.raises(ShardFailed, match="another shard has failed"), ordered.shard(1) as grads:
        grads.add("norm", np.ones(4, "float32"))


def test_a_step_after_an_error_starts_anew(total):
    ordered = OrderedSum(total)
    with pytest.raises(ArithmeticError), ordered.shard(0):
        raise ArithmeticError
    ordered.start()
    for index in range(2):
        with ordered.shard(index) as grads:
            grads.add("norm", np.ones(4, "float32"))
    assert total["norm"].tolist() == [2, 2, 2, 2]
    assert not total["head"].any()


def test_a_worker_that_waits_may_be_told_to_end(total):
    def stop():
        raise SystemExit

    with pytest.raises(SystemExit), OrderedSum(total, stop=stop).shard(1) as grads:
        grads.add("norm", np.ones(4, "float32"))
