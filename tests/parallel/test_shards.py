"""Shards and threads: the same bits for any number of workers, the same sums as one batch, and no way to hang."""

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from parallel.whole_batch import loss_and_grads
from threadpoolctl import threadpool_info, threadpool_limits

import numllama
from numllama.data.batches import all_windows, counted
from numllama.model import ModelConfig, Transformer
from numllama.model.parameters import FlatTensors
from numllama.ops import IGNORE
from numllama.parallel.shards import ShardPlan, Workers, shard_count
from numllama.system import machine
from numllama.system.machine import training_settings

VOCAB, ROWS, T = 13, 7, 8  # seven rows: no number of shards divides them evenly
COUNTS = np.array([8, 1, 0, 5, 8, 2, 3])  # of targets that count in each row


def build(dtype="float32", dropout=0.0) -> Transformer:
    return Transformer(ModelConfig(VOCAB, 16, 2, 2, max_seq_len=T, dropout=dropout, init_std=0.2), seed=1, dtype=dtype)


def batch(step=0) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.random.default_rng(step).integers(0, VOCAB, (2, ROWS, T))
    return tokens, np.where(np.arange(T) < COUNTS[:, None], targets, IGNORE)


@contextmanager
def working(model, workers):
    """Workers whose threads end with the test."""
    pool = Workers(model, workers)
    try:
        yield pool
    finally:
        pool.close()


def run_steps(pool, shards, steps=4) -> list[tuple[float, str]]:
    """Loss, and a digest of all gradients' bits, of some batches."""
    results = []
    for step in range(steps):
        loss, grads = loss_and_grads(pool, *batch(step), shards, key=(0, step))
        results.append((loss, hashlib.sha256(grads.flat).hexdigest()))
    return results


def slow_down(model, seconds, monkeypatch):
    """Let shard i take `seconds[i]` longer; its index ends the dropout key."""
    plain = model.loss_and_grads

    def slow(*args, key, **kwargs):
        result = plain(*args, key=key, **kwargs)
        time.sleep(seconds[key[-1]])
        return result

    monkeypatch.setattr(model, "loss_and_grads", slow)


# ------------------------------------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("shards", [2, 3, 5, 7])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_any_number_of_workers_gives_the_same_bits(workers, shards):
    model = build(dropout=0.3)
    with working(model, 1) as one, working(model, workers) as many:
        assert run_steps(many, shards) == run_steps(one, shards)


@pytest.mark.parametrize("seconds", [[0.05, 0.03, 0, 0.02, 0], [0, 0, 0.05, 0, 0.02], [0, 0.05, 0, 0, 0]])
@pytest.mark.parametrize("workers", [2, 3, 8])
def test_shards_add_in_index_order_however_long_each_takes(monkeypatch, workers, seconds):
    model = build(dropout=0.3)
    with working(model, 1) as one, working(model, workers) as many:
        expected = loss_and_grads(one, *batch(), 5, key=(0, 0))
        slow_down(model, seconds, monkeypatch)
        actual = loss_and_grads(many, *batch(), 5, key=(0, 0))
    assert actual[0] == expected[0]
    assert_same_bits(actual[1].flat, expected[1].flat)


def test_recompute_changes_no_bit():
    model = build(dropout=0.3)
    with working(model, 2) as pool, working(model, 2) as other:
        loss, grads = loss_and_grads(pool, *batch(), 3, key=(0, 0))
        again, grads_again = loss_and_grads(other, *batch(), 3, key=(0, 0), recompute=True)
    assert loss == again
    assert_same_bits(grads_again.flat, grads.flat)


def test_each_shard_drops_other_elements():
    model = build(dropout=0.5)
    tokens, targets = (np.repeat(part[:1], 2, axis=0) for part in batch())
    plain, keys = model.loss_and_grads, []
    model.loss_and_grads = lambda *args, key, **kwargs: (keys.append(key), plain(*args, key=key, **kwargs))[1]
    with working(model, 1) as pool:
        loss_and_grads(pool, tokens, targets, 2, key=(7, 3))
    assert keys == [(7, 3, 0), (7, 3, 1)]


# ------------------------------------------------------------------------------------------------ the same sums


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-6)])
def test_shards_give_what_one_batch_gives(shards, workers, dtype, rtol):
    model = build(dtype)
    loss, grads = model.loss_and_grads(*batch())
    with working(model, workers) as pool:
        actual_loss, actual = loss_and_grads(pool, *batch(), shards)
    assert actual_loss == pytest.approx(float(loss), rel=rtol)
    for name in grads:
        assert_close(actual[name], grads[name], rtol)


def test_nothing_of_one_batch_is_left_in_the_gradients_of_the_next():
    model = build("float64")
    with working(model, 3) as pool:
        for step in (5, 6, 7):
            _, grads = loss_and_grads(pool, *batch(step), 7)
            assert_close(grads.flat, model.loss_and_grads(*batch(step))[1].flat)


def test_a_batch_without_targets_has_loss_and_gradient_zero():
    tokens, targets = batch()
    with working(build(), 2) as pool:
        loss, grads = loss_and_grads(pool, tokens, np.full_like(targets, IGNORE), 3)
    assert loss == 0
    assert not grads.flat.any()


# ------------------------------------------------------------------------------------------------ buffers


@pytest.mark.parametrize(("workers", "shards"), [(1, 7), (2, 7), (8, 3)])
def test_one_gradient_buffer_is_enough_for_any_number_of_workers(monkeypatch, workers, shards):
    made = []
    zeros_like = FlatTensors.zeros_like
    monkeypatch.setattr(FlatTensors, "zeros_like", lambda self: (made.append(1), zeros_like(self))[1])
    with working(build(), workers) as pool:
        for step in range(4):
            loss_and_grads(pool, *batch(step), shards)
    assert len(made) == 1


def test_the_next_call_fills_the_same_buffer_again():
    with working(build(), 2) as pool:
        _, first = loss_and_grads(pool, *batch(0), 3)
        _, second = loss_and_grads(pool, *batch(1), 3)
    assert second is first


# ------------------------------------------------------------------------------------------------ errors


class ShardError(Exception):
    """What a shard of these tests ends with."""


PROBE = """
from numllama.data.batches import counted
from numllama.model import ModelConfig, Transformer
from numllama.parallel.shards import ShardPlan
from numllama.parallel.shards import Workers
import numpy as np

model = Transformer(ModelConfig(3, 4, 1, 1, max_seq_len=2))
plain, tokens = model.loss_and_grads, np.zeros((6, 2), int)
for workers in (2, 3):
    for failing in range(6):
        pool = Workers(model, workers)
        def broken(*args, key, **kwargs):
            if key == (failing,):
                raise ArithmeticError
            return plain(*args, key=key, **kwargs)
        model.loss_and_grads = broken
        try:
            pool.loss_and_grads(counted(tokens, tokens), ShardPlan(6, 6), key=())
        except Exception:
            pool.close()
"""


@pytest.fixture(scope="module")
def nothing_hangs():
    """Whatever shard raises, the call ends: tried in a process that can be killed, for threads cannot."""
    project = Path(numllama.__file__).parents[1]
    try:
        subprocess.run([sys.executable, "-c", PROBE], cwd=project, check=True, timeout=30)
    except subprocess.TimeoutExpired:
        pytest.fail("a call waits for ever for a shard that has raised")


def failing_at(model, failing, monkeypatch):
    """Let the shards `failing` raise; the function that is returned mends them."""
    plain = model.loss_and_grads

    def broken(*args, key, **kwargs):
        if key[-1] in failing:
            raise ShardError(key[-1])
        return plain(*args, key=key, **kwargs)

    monkeypatch.setattr(model, "loss_and_grads", broken)
    return lambda: monkeypatch.setattr(model, "loss_and_grads", plain)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
@pytest.mark.parametrize("failing", [{0}, {1}, {3}, {6}, {2, 5}, set(range(7))], ids=str)
def test_a_shard_that_raises_ends_the_call_with_its_error(monkeypatch, nothing_hangs, workers, failing):
    model = build(dropout=0.3)
    with working(model, 1) as fresh:
        expected = run_steps(fresh, 7, steps=2)
    with working(model, workers) as pool:
        mend = failing_at(model, failing, monkeypatch)
        for _ in range(8):
            with pytest.raises(ShardError) as caught:
                loss_and_grads(pool, *batch(), 7, key=(0, 0))
            assert caught.value.args[0] in failing
        mend()
        assert run_steps(pool, 7, steps=2) == expected


def test_no_shard_still_runs_when_the_call_has_ended_with_an_error(monkeypatch, nothing_hangs):
    model = build()
    running = []

    def broken(*args, key, **kwargs):
        if key[-1] == 0:
            time.sleep(0.02)
            raise ShardError(0)
        running.append(key)
        time.sleep(0.2)
        running.remove(key)
        return 0.0, None

    monkeypatch.setattr(model, "loss_and_grads", broken)
    with working(model, 2) as pool:
        with pytest.raises(ShardError):
            loss_and_grads(pool, *batch(), 2, key=(0, 0))
        assert running == []


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals between threads")
def test_a_call_after_ctrl_c_is_not_disturbed_by_shards_of_the_call_before(monkeypatch):
    model = build()
    with working(model, 2) as pool:
        _, expected = loss_and_grads(pool, *batch(), 2, key=(0, 0))
        expected = expected.flat.copy()
        plain, interrupted = model.loss_and_grads, []

        def interrupting(*args, key, **kwargs):
            if key[-1] == 0 and not interrupted:
                interrupted.append(True)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                time.sleep(0.2)  # and this shard goes on: it holds the total
            return plain(*args, key=key, **kwargs)

        monkeypatch.setattr(model, "loss_and_grads", interrupting)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a background job it may be ignored
        try:
            with pytest.raises(KeyboardInterrupt):
                loss_and_grads(pool, *batch(), 2, key=(0, 0))
        finally:
            signal.signal(signal.SIGINT, before)
        _, grads = loss_and_grads(pool, *batch(), 2, key=(0, 0))
        time.sleep(0.3)
        assert_same_bits(grads.flat, expected)


def test_threads_end_when_the_workers_are_closed():
    before = set(threading.enumerate())
    with working(build(), 3) as pool:
        loss_and_grads(pool, *batch(), 3)
        started = set(threading.enumerate()) - before
        assert started
    assert not any(thread.is_alive() for thread in started)


def test_no_workers_at_all_are_refused():
    with pytest.raises(ValueError, match="workers is 0, but must be at least 1"):
        Workers(build(), 0)


# ------------------------------------------------------------------------------------------------ how a batch is cut


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "shards"),
    [(12, 64, 2), (64, 256, 8), (16, 256, 4), (256, 1024, 8), (2, 4096, 2), (1, 4096, 1), (1, 1, 1), (3, 1000, 2), (12, 256, 3)],
)
def test_the_number_of_shards_of_a_shape_stays_what_it_is(batch_size, seq_len, shards):
    assert shard_count(batch_size, seq_len) == shards


def test_the_number_of_shards_does_not_depend_on_the_machine(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert [shard_count(12, 64), shard_count(64, 256)] == [2, 8]


@given(rows=st.integers(1, 50), shards=st.integers(1, 12))
def test_a_cut_keeps_every_row_once_and_in_order(rows, shards):
    parts = [np.arange(2 * rows).reshape(rows, 2)[part] for part in ShardPlan(rows, shards).slices()]
    assert len(parts) == min(rows, shards)
    assert np.concatenate(parts).tolist() == np.arange(2 * rows).reshape(rows, 2).tolist()
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


# ------------------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("workers", [1, 3])
def test_the_mean_loss_is_the_plain_mean_over_all_targets(workers):
    model = build("float64")
    windows = [[part[:rows, :t] for part in batch(step)] for step, (rows, t) in enumerate([(7, 8), (1, 3), (4, 5)])]
    losses = []
    for tokens, targets in windows:
        logits = model.forward(tokens)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses += [-log_p[b, t, targets[b, t]] for b, t in np.argwhere(targets != IGNORE)]
    with working(model, workers) as pool:
        assert pool.mean_loss([counted(*window) for window in windows]) == pytest.approx(np.mean(losses), rel=1e-12)


def test_the_mean_loss_is_the_same_bits_for_any_number_of_workers():
    model, tokens = build(), np.random.default_rng(0).integers(0, VOCAB, 500)
    with working(model, 1) as one, working(model, 3) as three:
        losses = [group.mean_loss(counted(*window) for window in all_windows(tokens, 3, T)) for group in (one, three)]
    assert losses[0] == losses[1]


def test_the_mean_loss_leaves_dropout_out():
    plain, dropping = build(), build(dropout=0.5)
    with working(plain, 1) as one, working(dropping, 1) as other:
        assert other.mean_loss([counted(*batch())]) == one.mean_loss([counted(*batch())])


def test_the_mean_loss_holds_few_windows_at_a_time():
    model = build()
    made, done, most = [], [], []
    plain = model.loss
    model.loss = lambda *args, **kwargs: (plain(*args, **kwargs), done.append(1))[0]

    def windows():
        for step in range(100):
            made.append(1)
            most.append(len(made) - len(done))
            yield counted(*batch(step))

    with working(model, 2) as pool:
        pool.mean_loss(windows())
    assert max(most) <= 20  # a validation split may be larger than memory


# ------------------------------------------------------------------------------------------------ settings


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def two_blas_threads():
    """As on a machine with two cores."""
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS cannot change its number of threads")
        yield


def test_settings_hold_inside_and_are_put_back(two_blas_threads):
    interval = sys.getswitchinterval()
    with training_settings("cpu"):
        assert blas_threads() == {1}
        assert sys.getswitchinterval() < interval
    assert blas_threads() == {2}
    assert sys.getswitchinterval() == interval


def test_settings_are_put_back_after_an_exception(two_blas_threads):
    interval = sys.getswitchinterval()
    with pytest.raises(ShardError), training_settings("cpu"):
        raise ShardError
    assert blas_threads() == {2}
    assert sys.getswitchinterval() == interval


def test_settings_of_two_trainers_that_take_turns_hold_until_the_last_one_ends(two_blas_threads):
    interval = sys.getswitchinterval()
    first, second = training_settings("cpu"), training_settings("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    try:
        assert blas_threads() == {1}
    finally:
        second.__exit__(None, None, None)
    try:
        assert blas_threads() == {2}
        assert sys.getswitchinterval() == interval
    finally:
        sys.setswitchinterval(interval)
        threadpool_limits(2, user_api="blas")


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is asked to keep memory")
def test_memory_is_kept_inside_and_given_back_after(monkeypatch):
    asked = []

    class Libc:
        @staticmethod
        def mallopt(option, value):
            asked.append((option, value))

        @staticmethod
        def malloc_trim(pad):
            asked.append("trim")

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Libc)
    with training_settings("cpu"):
        assert asked == list(machine.KEEP_FREED.items())
        asked.clear()
    assert asked == [*machine.DEFAULTS.items(), "trim"]


def test_a_system_without_mallopt_does_without(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    with training_settings("cpu"):
        assert sys.getswitchinterval() < 5e-3
        machine.return_freed_memory()


RETURNED = """
import re
import threading
import numpy as np
from numllama.system.machine import return_freed_memory, training_settings

def resident_mb():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmRSS:\\s+(\\d+)", file.read())[1]) / 1e3

def fill():
    arrays = [np.ones(2**21, np.uint8) for _ in range(50)]

with training_settings("cpu"):
    for run in (fill, lambda: [t := threading.Thread(target=fill), t.start(), t.join()]):
        before = resident_mb()
        run()
        kept = resident_mb()
        return_freed_memory()
        print(kept - before, resident_mb() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's malloc keeps memory, and returns it")
def test_kept_memory_of_all_threads_is_returned_once():
    done = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        kept, after = map(float, line.split())
        assert kept > 80 and after < kept / 2  # of a thread, glibc keeps the end
    assert len(done.stdout.splitlines()) == 2
