"""Ranks that are threads of one process: a communicator whose messages take their time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from numllama.parallel.communicator import Communicator, Request

SLOW = 3  # so many times a message says that it is not there yet


class Group:
    """What the ranks share: for each message, what every rank has put in, and who has taken it."""

    def __init__(self, size):
        self.size, self.lock, self.messages = size, threading.Lock(), {}
        self.barrier, self.failed = threading.Barrier(size, timeout=20), False


class ThreadRank(Communicator):
    """One of them. Arrays are read when a message arrives and not when it is sent, as MPI may do."""

    def __init__(self, group, rank, keeps_order=True):
        self.group, self.rank, self.size, self.keeps_order = group, rank, group.size, keeps_order
        self.sent, self.log = 0, []

    def _message(self, array, take):
        self.sent += 1
        with self.group.lock:
            arrays, taken = self.group.messages.setdefault(self.sent, ({}, set()))
            arrays[self.rank] = array
        asked = [0]

        def test():
            asked[0] += 1
            if self.group.failed:
                raise RuntimeError("another rank has failed")
            if self.rank not in taken and len(arrays) == self.size and asked[0] > SLOW:
                take([arrays[r] for r in range(self.size)])
                taken.add(self.rank)
            return len(taken) == self.size  # until then the array must stay as it is

        return Request(test)

    def reduce_scatter(self, array, bounds, into, add=False, senders=None):
        own = slice(bounds[self.rank], bounds[self.rank + 1])

        def take(arrays):
            for i, other in enumerate(arrays[: self.size if senders is None else senders]):
                into[...] = other[own] if i == 0 and not add else into + other[own]

        self.log.append("reduce_scatter")
        return self._message(array, take)

    def all_gather(self, array, bounds):
        def take(arrays):
            for r, other in enumerate(arrays):
                if r != self.rank:
                    array[bounds[r] : bounds[r + 1]] = other[bounds[r] : bounds[r + 1]]

        return self._message(array, take)

    def broadcast(self, array):
        self._message(array, lambda arrays: np.copyto(array, arrays[0])).wait()

    def barrier(self):
        self.group.barrier.wait()


def together(size, function, **kwargs):
    """``function(comm)`` by every rank at once; their results in order."""
    group = Group(size)

    def run(comm):
        try:
            return function(comm)
        except BaseException:
            group.failed = True  # nobody waits for this rank
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, [ThreadRank(group, rank, **kwargs) for rank in range(size)], timeout=60))
