"""An observer runs each op that is called in its block, and no other."""

from threading import Thread

import numpy as np
import pytest

from numllama import ops
from numllama.observing import observing

X, WEIGHT = np.arange(6.0).reshape(2, 3) + 1, np.ones(3)


def watching(seen):
    def observer(op, args, kwargs):
        seen.append(op.__name__)
        with observing(None):
            return op(*args, **kwargs)

    return observer


def test_ops_are_seen_but_not_the_ops_that_they_call():
    seen = []
    with observing(watching(seen)):
        (total, out), cache = ops.add_rmsnorm_forward(X, X, WEIGHT, 1e-5)
        ops.add_rmsnorm_backward((total, out), cache)
    ops.rmsnorm_forward(X, WEIGHT, 1e-5)
    assert seen == ["add_rmsnorm_forward", "add_rmsnorm_backward"]
    assert np.array_equal(out, ops.rmsnorm_forward(2 * X, WEIGHT, 1e-5)[0])


def test_an_observer_may_return_something_else():
    with observing(lambda op, args, kwargs: "mine"):
        assert ops.rmsnorm_forward(X, WEIGHT, 1e-5) == "mine"


def test_the_block_ends_with_an_error_too_and_other_threads_are_not_observed():
    seen = []
    with pytest.raises(ZeroDivisionError), observing(watching(seen)):
        thread = Thread(target=lambda: ops.rmsnorm_forward(X, WEIGHT, 1e-5))
        thread.start()
        thread.join()
        raise ZeroDivisionError
    ops.rmsnorm_forward(X, WEIGHT, 1e-5)
    assert seen == []
