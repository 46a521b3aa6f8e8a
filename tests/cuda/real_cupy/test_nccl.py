"""NCCL's communicator with CuPy's NCCL: ranks are threads with a GPU each, and MPI is played by a stand-in."""

import re
import sys
import threading
from dataclasses import replace

import cuda_on_cpu
import cupy
import numpy as np
import pytest
from helpers import assert_close
from parallel.ranks_in_threads import together
from tiny import CONFIG, SETTINGS, trainer

import numllama.parallel.launched
from numllama import Trainer, Transformer
from numllama.errors import DeviceError
from numllama.install import install_command
from numllama.parallel import nccl
from numllama.parallel.communicator import Request

SIZE = cuda_on_cpu.DEVICES
here = threading.local()


@pytest.fixture
def gpus(gpu, monkeypatch):
    """Makes the communicator of one rank, on a machine with three GPUs."""
    monkeypatch.setattr(nccl, "MPI", lambda: here.mpi)

    def begin(comm):
        here.mpi = comm
        comm.local_rank = lambda: comm.rank
        return nccl.NCCL()

    return begin


def values(rank, n, dtype="float32"):
    return np.random.default_rng(rank).standard_normal(n).astype(dtype)


def test_each_rank_has_a_gpu(gpus):
    def run(comm):
        made = gpus(comm)
        return (made.rank, made.size, made.keeps_order), made.device("cuda"), cupy.cuda.Device().id

    assert together(SIZE, run) == [((rank, SIZE, False), f"cuda:{rank}", rank) for rank in range(SIZE)]


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reduce_scatter_reduces_a_part_to_each_rank_once_it_is_computed(gpu, gpus, dtype, lazy):
    bounds = [0, 4, 4, 11]  # of different sizes, and one rank owns nothing
    gpu.lazy = lazy

    def run(comm):
        made = gpus(comm)
        array = cupy.asarray(values(comm.rank, 11, dtype))
        array += 1                                                     # as late as may be
        into = cupy.zeros(bounds[comm.rank + 1] - bounds[comm.rank], dtype)
        made.reduce_scatter(array, bounds, into).wait()
        return into.get(), array.get()

    total = sum(values(rank, 11, dtype) + 1 for rank in range(SIZE))
    for rank, (into, array) in enumerate(together(SIZE, run)):
        assert into == pytest.approx(total[bounds[rank] : bounds[rank + 1]], rel=1e-6)
        np.testing.assert_array_equal(array, values(rank, 11, dtype) + np.ones(1, dtype))


def test_all_gather_all_reduce_and_broadcast_spread_what_each_rank_has(gpus):
    bounds = [0, 3, 8, 10]

    def run(comm):
        made = gpus(comm)
        mine, other, summed = (cupy.asarray(values(comm.rank, n)) for n in (10, 5, 7))
        made.all_gather(mine, bounds).wait()
        made.broadcast(other)
        made.all_reduce(summed)
        return mine.get(), other.get(), summed.get()

    gathered = np.concatenate([values(r, 10)[bounds[r] : bounds[r + 1]] for r in range(SIZE)])
    for mine, other, summed in together(SIZE, run):
        np.testing.assert_array_equal(mine, gathered)
        np.testing.assert_array_equal(other, values(0, 5))
        assert summed == pytest.approx(sum(values(r, 7) for r in range(SIZE)), rel=1e-6)


def test_what_is_on_the_host_goes_by_mpi(gpus):
    def run(comm):
        made, numbers = gpus(comm), np.full(4, 1.0 + comm.rank)
        made.all_reduce(numbers)
        made.broadcast(word := np.array([comm.rank]))
        made.barrier()
        return numbers.tolist(), word.tolist()

    assert together(SIZE, run) == [([6.0] * 4, [0])] * SIZE


def test_messages_between_gpus_are_watched_by_mpi(gpus):
    """Which can ask who still answers, when one of them does not arrive."""

    def run(comm):
        made, begun = gpus(comm), []
        made.timeout = 5.0
        here.mpi.request = lambda test: begun.append("message") or Request(test)
        made.all_gather(cupy.asarray(values(comm.rank, 10)), [0, 3, 8, 10]).wait()
        return here.mpi.timeout, begun

    assert together(SIZE, run) == [(5.0, ["message"])] * SIZE


def test_more_ranks_than_gpus_are_refused(gpu, gpus):
    gpu.devices = 2

    def run(comm):
        if comm.rank < 2:
            return None
        with pytest.raises(DeviceError, match="rank 2 needs a GPU of its own, but this machine has 2"):
            gpus(comm)

    together(SIZE, run)


def test_a_cpu_is_no_device_for_nccl(gpus):
    def run(comm):
        with pytest.raises(DeviceError, match="device is 'cpu', but parallel 'nccl' is for --device cuda"):
            gpus(comm).device("cpu")

    together(SIZE, run)


def test_without_cupy_one_sentence_says_what_to_install(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=re.escape(install_command("cuda13", "nccl"))):
        together(1, gpus)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_gpus_train_as_one(gpus, monkeypatch, sharded):
    monkeypatch.setattr(numllama.parallel.launched, "communicator", lambda parallel: here.comm)
    settings = replace(SETTINGS, batch_size=4, shards=2)
    alone = trainer(batch_size=4, shards=2, graph=False)
    expected = [(report.loss, report.grad_norm) for report in alone]

    def run(comm):
        here.comm = gpus(comm)
        model = Transformer(CONFIG, seed=comm.rank, device=here.comm.device("cuda"))  # rank 0's parameters are everybody's
        made = Trainer(model, alone.data, replace(settings, parallel="nccl", shard_optimizer=sharded))
        return [(report.loss, report.grad_norm) for report in made], model.params.flat.get()

    for losses, flat in together(2, run):
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        assert_close(flat, alone.model.params.flat.get(), rtol=1e-4)
