"""BLAS has one thread where that is faster, for as long as that is so, and nobody notices anything else of it."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

import numllama as nl
from numllama.system import blas

SMALL = dict(vocab_size=65, dim=32, n_layers=1, n_heads=2, max_seq_len=64)


def threads():
    """How many BLAS has now."""
    return {pool["num_threads"] for pool in blas.blas().info()}


@pytest.fixture
def two_threads():
    """As on a machine with two cores."""
    with blas.blas().limit(limits=2):
        if threads() != {2}:
            pytest.skip("this BLAS cannot change its number of threads")
        yield
        assert threads() == {2}


def model_and_batch(B=4, T=64, **changes):
    model = nl.Transformer(nl.ModelConfig(**SMALL | changes))
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (B, T + 1))
    return model, tokens[:, :-1], tokens[:, 1:]


@pytest.fixture
def seen(monkeypatch):
    """The threads of BLAS and Python's switch interval, each time a model's last norm is computed."""
    found, norm = [], nl.Transformer._norm

    def watched(self, *args):
        found.append((threads(), sys.getswitchinterval()))
        return norm(self, *args)

    monkeypatch.setattr(nl.Transformer, "_norm", watched)
    return found


CALLS = {
    "loss_and_grads": lambda model, tokens, targets: model.loss_and_grads(tokens, targets),
    "lists": lambda model, tokens, targets: model.loss_and_grads(tokens.tolist(), targets.tolist()),
    "loss": lambda model, tokens, targets: model.loss(tokens, targets),
    "by name": lambda model, tokens, targets: model.loss(targets=targets, tokens=tokens),
    "forward": lambda model, tokens, targets: model.forward(tokens),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_small_model_in_anybodys_loop_has_one_thread(two_threads, seen, call):
    before = sys.getswitchinterval()
    call(*model_and_batch())
    assert seen == [({1}, before)]
    assert threads() == {2}


@pytest.mark.parametrize("changes", [
    dict(dim=1024, n_heads=8, B=1, T=8), dict(vocab_size=100_000, B=1, T=32), dict(dim=256, T=256, max_seq_len=256, B=8),
    dict(B=1, T=4),
], ids=["much to read", "a wide head", "large products", "products that are not shared out"])  # fmt: skip
def test_all_other_models_have_the_threads_that_there_are(two_threads, seen, changes):
    model, tokens, targets = model_and_batch(**changes)
    model.loss(tokens, targets)
    assert seen == [({2}, sys.getswitchinterval())]


def test_generation_sees_to_its_threads_itself(two_threads, seen):
    model, tokens, _ = model_and_batch()
    model.forward(tokens, kv_cache=nl.KVCache(model, batch_size=4, capacity=64))
    assert seen[0][0] == {2}


def test_threads_are_put_back_after_an_error(two_threads):
    model, tokens, targets = model_and_batch()
    with pytest.raises(ValueError, match="targets"):
        model.loss_and_grads(tokens, targets + 1000)
    assert threads() == {2}


def test_what_somebody_has_chosen_stays_chosen():
    model, tokens, targets = model_and_batch()
    for n in (1, 2):
        with blas.blas().limit(limits=n):
            before = threads()
            model.loss_and_grads(tokens, targets)
            assert threads() == before


def test_models_in_several_threads_share_the_setting(two_threads, monkeypatch):
    """The last of them puts it back, not the first."""
    barrier, found, norm = Barrier(3), [], nl.Transformer._norm

    def watched(self, *args):
        barrier.wait(20)
        found.append(threads())
        return norm(self, *args)

    monkeypatch.setattr(nl.Transformer, "_norm", watched)
    models = [model_and_batch(dim=dim) for dim in (16, 32, 64)]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(5):
            list(pool.map(lambda parts: parts[0].loss_and_grads(*parts[1:]), models))
    assert found == [{1}] * 15


def test_a_thread_may_ask_for_what_another_puts_back(two_threads):
    """As a server's engine does, whose threads are not the one that has set anything first."""
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        for one, other in ((first, second), (second, first)):
            held = blas.one_blas_thread()
            one.submit(held.__enter__).result()
            assert threads() == {1}
            other.submit(held.__exit__, None, None, None).result()
            assert threads() == {2}


def test_whoever_sets_threads_elsewhere_is_heard_again(two_threads):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: model_and_batch()[0].loss(*model_and_batch()[1:])).result()
        with blas.blas().limit(limits=1):
            assert threads() == {1}
        assert threads() == {2}


def test_a_training_beside_somebodys_loop_keeps_its_thread(two_threads):
    model, tokens, _ = model_and_batch()
    own, training = blas.few_threads(model, tokens), blas.one_blas_thread()
    own.__enter__()
    training.__enter__()
    own.__exit__(None, None, None)
    assert threads() == {1}
    training.__exit__(None, None, None)
    assert threads() == {2}


def test_losses_and_gradients_are_those_of_one_thread(two_threads, monkeypatch):
    model, tokens, targets = model_and_batch()
    loss, grads = model.loss_and_grads(tokens, targets)
    monkeypatch.setattr(blas, "SMALL_MODEL", 0)
    with blas.one_blas_thread():
        expected, by_hand = model.loss_and_grads(tokens, targets)
    assert loss == expected
    assert grads.flat.tobytes() == by_hand.flat.tobytes()


def test_blas_has_its_threads_again_when_the_last_of_several_is_done():
    """One leaves before the other: each by itself would put back what it found."""
    threads = lambda: [pool["num_threads"] for pool in blas.blas().info()]  # noqa: E731
    before = threads()
    with blas.blas().limit(limits=2):
        first, second = blas.one_blas_thread(), blas.one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(threads()) == {1}
        second.__exit__(None, None, None)
        assert set(threads()) == {2}
    assert threads() == before
