"""NCCL's communicator against a fake CuPy, which notes what waits for what and does what NCCL promises; ranks are threads."""

import re
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from training.ranks_in_threads import Group, ThreadRank, together

from numllama.errors import DeviceError
from numllama.system.install import install_command
from numllama.training import nccl
from numllama.training.communicator import Request

SIZE = 3
here = threading.local()


class Stream:
    """Runs at once; its log says what waited for what."""

    ptr = 77

    def __init__(self, name="communication", **kwargs):
        self.name, self.kwargs = name, kwargs

    def record(self):
        here.log.append(f"{self.name} recorded")
        return SimpleNamespace(done=True, of=self.name)

    def wait_event(self, event):
        here.log.append(f"{self.name} waits for {event.of}")


class Array(np.ndarray):
    """An array with an address, as CuPy's."""

    @property
    def data(self):
        here.addresses[address := self.ctypes.data] = self
        return SimpleNamespace(ptr=address)


class FakeNccl(ModuleType):
    """Calls of a group are done when it ends, in order, together with the other ranks."""

    NCCL_FLOAT32, NCCL_FLOAT64, NCCL_SUM = 7, 8, 0

    def __init__(self):
        super().__init__("nccl")
        self.NcclCommunicator = self.make

    def get_unique_id(self):
        return tuple(range(-64, 64))

    def make(self, size, unique_id, rank):
        here.log.append(("init", size, unique_id, rank))
        return self

    def groupStart(self):
        here.calls = []

    def groupEnd(self):
        for call, *arguments in here.calls:
            call(*arguments)
        here.calls = None

    def reduce(self, source, target, count, dtype, op, root, stream):
        here.log.append(("reduce", count, dtype, op, root, stream))
        here.calls.append((self._reduce, here.addresses[source], here.addresses[target], root))

    def _reduce(self, source, target, root):
        def take(arrays):
            if here.rank == root:
                target[...] = sum(arrays)

        here.messages._message(source, take).wait()

    def bcast(self, address, count, dtype, root, stream):
        here.log.append(("bcast", count, dtype, root, stream))
        array = here.addresses[address]
        here.calls.append((lambda: here.messages._message(array, lambda arrays: np.copyto(array, arrays[root])).wait(),))


@pytest.fixture
def gpus(monkeypatch):
    """A machine with three GPUs, CuPy, and MPI whose ranks are threads."""
    nccl_module, group = FakeNccl(), Group(SIZE)
    cuda = ModuleType("cupy.cuda")
    cuda.nccl = nccl_module
    cuda.runtime = SimpleNamespace(getDeviceCount=lambda: SIZE)
    cuda.Device = lambda i: SimpleNamespace(use=lambda: here.log.append(f"device {i}"))
    cuda.Stream = Stream
    cuda.get_current_stream = lambda: Stream("computation")
    cupy = ModuleType("cupy")
    cupy.cuda = cuda
    for name, module in (("cupy", cupy), ("cupy.cuda", cuda), ("cupy.cuda.nccl", nccl_module)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(nccl, "MPI", lambda: here.mpi)

    def begin(comm):
        here.rank, here.log, here.addresses = comm.rank, [], {}
        here.mpi, here.messages = comm, ThreadRank(group, comm.rank)
        comm.local_rank = lambda: comm.rank
        return nccl.NCCL()

    begin.cuda = cuda
    return begin


def array(rank, n, dtype="float32"):
    return np.random.default_rng(rank).standard_normal(n).astype(dtype).view(Array)


def test_each_rank_has_a_gpu_and_all_have_the_id_that_rank_0_drew(gpus):
    def run(comm):
        made = gpus(comm)
        return here.log, (made.rank, made.size, made.keeps_order), made.device("cuda")

    for rank, (log, about, device) in enumerate(together(SIZE, run)):
        assert log == [f"device {rank}", ("init", SIZE, tuple(range(-64, 64)), rank)]
        assert about == (rank, SIZE, False)
        assert device == f"cuda:{rank}"


@pytest.mark.parametrize(("dtype", "code"), [("float32", 7), ("float64", 8)])
def test_reduce_scatter_reduces_a_part_to_each_rank_beside_the_computation(gpus, dtype, code):
    bounds = [0, 4, 4, 11]  # of different sizes, and one rank owns nothing
    arrays = [array(rank, 11, dtype) for rank in range(SIZE)]
    before = [a.copy() for a in arrays]

    def run(comm):
        made = gpus(comm)
        here.log.clear()
        into = np.zeros(bounds[comm.rank + 1] - bounds[comm.rank], dtype).view(Array)
        made.reduce_scatter(arrays[comm.rank], bounds, into).wait()
        return np.asarray(into), here.log

    for rank, (into, log) in enumerate(together(SIZE, run)):
        assert into == pytest.approx(sum(before)[bounds[rank] : bounds[rank + 1]])
        assert log == [
            "computation recorded",
            "communication waits for computation",
            ("reduce", 4, code, 0, 0, 77),
            ("reduce", 7, code, 0, 2, 77),
            "communication recorded",
        ]
        np.testing.assert_array_equal(arrays[rank], before[rank])


def test_all_gather_and_broadcast_spread_what_each_rank_has(gpus):
    bounds = [0, 3, 8, 10]

    def run(comm):
        made = gpus(comm)
        mine, other = array(comm.rank, 10), array(comm.rank, 5)
        made.all_gather(mine, bounds).wait()
        made.broadcast(other)
        return np.asarray(mine), np.asarray(other)

    expected = np.concatenate([array(r, 10)[bounds[r] : bounds[r + 1]] for r in range(SIZE)])
    for mine, other in together(SIZE, run):
        np.testing.assert_array_equal(mine, expected)
        np.testing.assert_array_equal(other, array(0, 5))


def test_what_is_on_the_host_goes_by_mpi(gpus):
    def run(comm):
        made, numbers = gpus(comm), np.full(4, 1.0 + comm.rank)
        here.log.clear()
        made.all_reduce(numbers)
        made.broadcast(word := np.array([comm.rank]))
        made.barrier()
        return numbers.tolist(), word.tolist(), here.log

    assert together(SIZE, run) == [([6.0] * 4, [0], [])] * SIZE


def test_messages_between_gpus_are_watched_by_mpi(gpus):
    """Which can ask who still answers, when one of them does not arrive."""

    def run(comm):
        made, begun = gpus(comm), []
        made.timeout = 5.0
        here.mpi.request = lambda test: begun.append("message") or Request(test)
        made.all_gather(array(comm.rank, 10), [0, 3, 8, 10]).wait()
        return here.mpi.timeout, begun

    assert together(SIZE, run) == [(5.0, ["message"])] * SIZE


def test_more_ranks_than_gpus_are_refused(gpus):
    gpus.cuda.runtime.getDeviceCount = lambda: 2

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
