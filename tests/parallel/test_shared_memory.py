"""Processes that run shards: the same bits as threads, and no way to hang or to stay behind."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits
from parallel.whole_batch import loss_and_grads

import numllama as nl
from numllama import blocks
from numllama.data.batches import counted
from numllama.errors import NumllamaError
from numllama.optim.optimizer import step_in_pieces
from numllama.parallel import shards
from numllama.parallel.shards import Workers
from numllama.parallel.shared_memory import SharedMemoryWorkers

VOCAB, ROWS, T = 13, 7, 8
CONFIG = nl.ModelConfig(VOCAB, 16, 2, 2, max_seq_len=T, dropout=0.3, init_std=0.2)

needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system shares no memory by file descriptors")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Processes from the first step on."""
    monkeypatch.setattr(shards, "PROCESSES_AFTER", -1.0)


def build(dtype="float32") -> nl.Transformer:
    return nl.Transformer(CONFIG, seed=1, compute_dtype=dtype)


def batch(step=0) -> np.ndarray:
    return np.random.default_rng(step).integers(0, VOCAB, (2, ROWS, T))


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    with suppress(OSError):
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return False


@needs_memfd
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("workers", [2, 4])
def test_processes_give_the_same_bits_as_one_worker(workers, dtype):
    with closing(Workers(build(dtype), 1)) as one, closing(Workers(build(dtype), workers, processes=True)) as group:
        for step, recompute in enumerate([False, True, False]):
            expected, grads = loss_and_grads(one, *batch(step), 5, key=(0, step), recompute=recompute)
            loss, actual = loss_and_grads(group, *batch(step), 5, key=(0, step), recompute=recompute)
            assert loss == expected
            assert_same_bits(actual.flat, grads.flat)
        assert len(group.pids) == workers - 1
        assert group.mean_loss([counted(*batch(i)) for i in range(5)]) == one.mean_loss([counted(*batch(i)) for i in range(5)])


def shared(trainer: nl.Trainer) -> bool:
    """Whether processes have the optimizer's moments."""
    group = trainer.workers._processes
    return group is not None and group.shares(list(trainer.optimizer.state.values()))


@needs_memfd
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_goes_over_to_processes_stays_the_same(monkeypatch, dtype):
    text = np.random.default_rng(0).integers(0, VOCAB, 500)
    settings = {"steps": 6, "batch_size": 4, "seq_len": T, "lr": 1e-2, "warmup_steps": 1, "shards": 4, "eval_every": 3}
    monkeypatch.setattr(shards, "WORTH_PROCESSES", 0)  # the optimizer's passes go to the processes too
    monkeypatch.setattr(blocks, "PIECE_ELEMENTS", 100)
    results = []
    for workers in (1, 2):
        monkeypatch.setattr(shards, "PROCESSES_AFTER", 1e9)
        config = nl.TrainConfig(**settings, workers=workers)
        with closing(nl.Trainer(build(dtype), nl.Dataset(text, text, VOCAB), config)) as trainer:
            reports = []
            for report in trainer:
                reports.append((report.loss, report.grad_norm, report.val_loss))
                assert shared(trainer) == (workers > 1 and report.step > 2)
                if report.step == 2:
                    monkeypatch.setattr(shards, "PROCESSES_AFTER", -1.0)
            assert len(trainer.workers.pids) == workers - 1
            buffers = trainer.model.params, trainer.model.weights, *trainer.optimizer.state.values()
            results.append((reports, [hashlib.sha256(buffer.flat).hexdigest() for buffer in buffers]))
    assert results[0] == results[1]


@needs_memfd
def test_parameters_that_are_not_shared_are_not_sent(monkeypatch):
    monkeypatch.setattr(shards, "WORTH_PROCESSES", 0)
    with closing(Workers(build(), 2, processes=True)) as group:
        _, grads = loss_and_grads(group, *batch(), 4)
        optimizer = nl.AdamW(group.model.params)  # which came after the processes
        with pytest.raises(TypeError, match="not shared"):
            step_in_pieces(optimizer, grads, map_fn=group.map)
        before = group.model.params.flat.copy()
        group.step(optimizer, grads, 0.1)  # by threads
        assert (group.model.params.flat != before).any()


@needs_memfd
def test_an_error_in_a_process_ends_the_call_and_the_next_one_works():
    with closing(Workers(build(), 2, processes=True)) as group:
        loss, _ = loss_and_grads(group, *batch(), 7, key=(0, 0))
        for row in (0, 1, 6):  # of this process, of the other, and of this one again
            tokens, targets = batch()
            tokens[row] = VOCAB
            with pytest.raises(ValueError, match=f"tokens .*{VOCAB}"):
                loss_and_grads(group, tokens, targets, 7, key=(0, 0))
        assert loss_and_grads(group, *batch(), 7, key=(0, 0))[0] == loss


@needs_memfd
def test_a_process_that_is_killed_is_reported_even_while_its_turn_is_awaited():
    with closing(Workers(build(), 2, processes=True)) as group:
        loss_and_grads(group, *batch(), 4)
        os.kill(group.pids[0], signal.SIGSTOP)  # so that this process comes to wait for it
        threading.Timer(0.2, os.kill, (group.pids[0], signal.SIGKILL)).start()
        with pytest.raises(NumllamaError, match="a worker process ended"):
            loss_and_grads(group, *batch(), 4)


@needs_memfd
def test_processes_end_when_the_workers_are_closed():
    group = Workers(build(), 3, processes=True)
    loss_and_grads(group, *batch(), 4)
    pids = group.pids
    assert all(map(alive, pids))
    group.close()
    assert not any(map(alive, pids))


OWNER = """
import sys, time
import numpy as np
import numllama as nl
from numllama.data.batches import counted
from numllama.parallel import shards
from numllama.parallel.shards import ShardPlan

shards.PROCESSES_AFTER = -1.0
group = shards.Workers(nl.Transformer(nl.ModelConfig(5, 4, 1, 1, max_seq_len=2)), 2, processes=True)
batch = counted(np.zeros((2, 2), int), np.zeros((2, 2), int))
group.loss_and_grads(batch, ShardPlan(2, 2))
group._sum.start()
# It waits for shard 0, which never comes.
options = dict(recompute=False, scale=1.0)
future = group._processes.submit(shards.run_shards, group.model, group._sum, [shards.Shard(1, batch)], None, options)
time.sleep(0.2)
assert not future.done()
print(*group.pids, flush=True)
time.sleep(60)
"""


@needs_memfd
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_its_owner_even_while_it_waits_for_a_turn(end):
    project = Path(nl.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", OWNER], cwd=project, stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline())
        assert alive(pid)
        owner.send_signal(end)
        owner.wait()
        deadline = time.monotonic() + 10
        while alive(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not alive(pid)


def test_a_model_of_another_class_is_run_by_threads():
    class Other(nl.Transformer):
        pass

    assert not SharedMemoryWorkers.possible(Other(CONFIG))
    with closing(Workers(Other(CONFIG, seed=1), 2, processes=True)) as threads, closing(Workers(build(), 1)) as one:
        assert loss_and_grads(threads, *batch(), 3)[0] == loss_and_grads(one, *batch(), 3)[0]
        assert threads.pids == []


def test_a_system_without_shared_memory_uses_threads(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    with closing(Workers(build(), 2, processes=True)) as threads:
        loss_and_grads(threads, *batch(), 3)
        assert threads.pids == []
