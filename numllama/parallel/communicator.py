"""Communication between ranks: processes on one or several machines that train one model together.

`Communicator` is the interface, and implements a single process; `MPI` connects the processes started by mpirun or srun, and
`NCCL` (nccl.py) those with a GPU each.

MPI does not guarantee the order of sums; here it is the order of the ranks. Each rank sends pieces of its array to their owners,
which add the pieces of rank 0, 1, 2, ... in turn. The traffic is that of any reduce-scatter, and on one machine it is faster
than MPI_Allreduce.
"""

import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.errors import NumllamaError, explained
from numllama.install import install_command
from numllama.system.signals import INTERRUPTED

POLL_SECONDS = 2e-5  # MPI's own wait would spin on a core that another rank may need
TIMEOUT_SECONDS = 600.0
HERE = 1  # the tag of "I am still here"
LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")  # set by Open MPI, MPICH and Intel MPI


class Request:
    """An operation in progress: poll it, or wait for it.

    Parameters
    ----------
    test : callable
        Returns whether it is done, without waiting.
    finish : callable
        Called once, when it is done.
    watch : callable
        Called repeatedly while waiting, with the seconds waited.
    """

    def __init__(
        self,
        test: Callable[[], bool] = lambda: True,
        finish: Callable[[], Any] = lambda: None,
        watch: Callable[[float], Any] = lambda waited: None,
    ) -> None:
        self._test, self._finish, self._watch, self._done = test, finish, watch, False

    def done(self) -> bool:
        """Whether it is done; lets it make progress."""
        if not self._done and self._test():
            self._done = True
            self._finish()
        return self._done

    def wait(self) -> None:
        """Wait until it is done."""
        start = time.monotonic()
        while not self.done():
            self._watch(time.monotonic() - start)
            time.sleep(POLL_SECONDS)


class Communicator:
    """A single rank. Subclasses implement the same methods over several.

    All ranks call the same methods in the same order. `bounds` cut an array into one piece per rank: rank r owns
    ``array[bounds[r]:bounds[r + 1]]``.

    Attributes
    ----------
    rank, size : int
        Index of this rank, and number of ranks.
    keeps_order : bool
        Whether sums are taken in rank order.
    timeout : float
        Seconds to wait for other ranks before the job ends.
    """

    rank, size, keeps_order = 0, 1, True
    timeout = TIMEOUT_SECONDS

    def reduce_scatter(
        self, array: Array, bounds: Sequence[int], into: Array, add: bool = False, senders: int | None = None
    ) -> Request:
        """Start summing the arrays of all ranks; this rank's part of the sum is written to `into`.

        Parameters
        ----------
        array : array
            Must not change until the request is done.
        bounds : sequence of int
        into : array
            Buffer of the size of this rank's piece.
        add : bool
            Add to what `into` holds, one rank after another.
        senders : int, optional
            Number of ranks that contribute, from rank 0; default all.
        """
        if add:
            into += array
        else:
            into[...] = array
        return Request()

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Request:
        """Start filling `array` with the pieces of all ranks; this rank's own is already in place."""
        return Request()

    def all_reduce(self, array: Array) -> None:
        """Replace an array with the sum over all ranks."""
        bounds = [array.size * r // self.size for r in range(self.size + 1)]
        mine = array[bounds[self.rank] : bounds[self.rank + 1]]
        total = mine.copy()
        self.reduce_scatter(array, bounds, total).wait()
        mine[...] = total
        self.all_gather(array, bounds).wait()

    def broadcast(self, array: Array) -> None:
        """Replace an array with rank 0's."""

    def barrier(self) -> None:
        """Wait until all ranks have called it."""

    def request(self, test: Callable[[], bool], finish: Callable[[], Any] = lambda: None) -> Request:
        """Wrap a message in progress; waiting longer than `timeout` ends the job with a NumllamaError."""
        return Request(test, finish)

    def abort(self, message: str, code: int = 1) -> None:
        """End all ranks."""
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(code)

    def device(self, device: str) -> str:
        """This rank's device, if the ranks of a machine have one each."""
        return device

    def rank_zero_first(self, function: Callable[[], Any]) -> Any:
        """Call the function on rank 0 first, so that the other ranks find the files that it downloaded."""
        if self.rank:
            self.barrier()
        result = function()
        if not self.rank:
            self.barrier()
        return result

    @contextmanager
    def guard(self) -> Iterator[None]:
        """End all ranks if one fails, because the others would wait forever."""
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self.rank:
            time.sleep(2)  # an error that all ranks have is reported by rank 0
        if isinstance(error, SystemExit):
            self.abort("ended by a signal", code=error.code if isinstance(error.code, int) else int(error.code is not None))
        sentence = explained(error)
        message = sentence or "".join(traceback.format_exception(error)).rstrip()
        self.abort(message, code=2 if sentence else INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1)


class MPI(Communicator):
    """The processes started by mpirun or srun."""

    def __init__(self) -> None:
        try:
            from mpi4py import MPI as mpi
        except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
            raise NumllamaError(
                f"parallel 'mpi' needs MPI and mpi4py ({error}): install Open MPI (apt-get install openmpi-bin), then "
                f"{install_command('mpi')}"
            ) from error
        self._mpi, self._comm = mpi, mpi.COMM_WORLD
        self.rank, self.size = self._comm.rank, self._comm.size
        self._hosts = self._comm.allgather(platform.node())
        self._begun, self._told, self._heard, self._telling = 0, 0, [0] * self.size, []
        if self.size > 1:
            sys.excepthook = lambda kind, error, _: self._fail(error)  # for scripts that do not use `guard`

    def reduce_scatter(
        self, array: np.ndarray, bounds: Sequence[int], into: np.ndarray, add: bool = False, senders: int | None = None
    ) -> Request:
        senders = self.size if senders is None else senders
        sizes = [stop - start for start, stop in pairwise(bounds)]
        sent = sizes if self.rank < senders else [0] * self.size
        came = np.empty((senders, sizes[self.rank]), array.dtype)
        counts = [came.shape[1] if r < senders else 0 for r in range(self.size)]
        places = [came.shape[1] * min(r, senders - 1) for r in range(self.size)]
        request = self._comm.Ialltoallv([array, (sent, bounds[:-1])], [came, (counts, places)])

        def add_up() -> None:
            if not add:
                into[...] = came[0]
            for part in came if add else came[1:]:
                into.__iadd__(part)

        return self.request(request.Test, add_up)

    def all_gather(self, array: np.ndarray, bounds: Sequence[int]) -> Request:
        sizes = [stop - start for start, stop in pairwise(bounds)]
        return self.request(self._comm.Iallgatherv(self._mpi.IN_PLACE, [array, (sizes, bounds[:-1])]).Test)

    def broadcast(self, array: np.ndarray) -> None:
        self.request(self._comm.Ibcast(array).Test).wait()

    def barrier(self) -> None:
        self.request(self._comm.Ibarrier().Test).wait()

    def request(self, test: Callable[[], bool], finish: Callable[[], Any] = lambda: None) -> Request:
        self._begun += 1
        number = self._begun
        return Request(test, finish, lambda waited: self._watch(waited, number))

    def _watch(self, waited: float, number: int) -> None:
        """Give up on message `number` after the timeout, and name the rank that caused it.

        After a quarter of the timeout, a rank sends the others the number of messages that it has begun. A rank that has not
        begun this one is busy elsewhere, or gone.
        """
        if waited > self.timeout / 4 and self._told < number:
            self._told = self._begun
            self._telling += [self._comm.isend(self._told, rank, HERE) for rank in range(self.size) if rank != self.rank]
        if waited > self.timeout:
            while self._comm.iprobe(tag=HERE):
                status = self._mpi.Status()
                begun = self._comm.recv(tag=HERE, status=status)
                self._heard[status.source] = max(begun, self._heard[status.source])
            silent = [r for r in range(self.size) if r != self.rank and self._heard[r] < number]
            names = ", ".join(f"rank {r} on {self._hosts[r]}" for r in silent)
            about = f"no answer from {names}" if silent else "a message that all ranks wait for has not arrived"
            raise NumllamaError(f"{about} for {self.timeout:g} seconds (--timeout): the job ends")

    def abort(self, message: str, code: int = 1) -> None:
        print(f"error: rank {self.rank} of {self.size} on {platform.node()}: {message}", file=sys.stderr, flush=True)
        self._comm.Abort(code)

    def local_rank(self) -> int:
        """This rank's index on its machine."""
        return self._comm.Split_type(self._mpi.COMM_TYPE_SHARED).rank
