"""The communicator of this process, and the workers that train a model."""

import os
from functools import cache

from numllama.errors import NumllamaError
from numllama.model import Transformer
from numllama.parallel.communicator import LAUNCHERS, MPI, TIMEOUT_SECONDS, Communicator
from numllama.parallel.group import WorkerGroup
from numllama.parallel.nccl import NCCL
from numllama.parallel.ranks import Ranks
from numllama.parallel.shards import Workers


@cache
def communicator(parallel: str = "threads") -> Communicator:
    """The communicator of this process.

    Parameters
    ----------
    parallel : str
        ``threads`` (a single process), ``mpi``, or ``nccl``.
    """
    if parallel == "mpi":
        return MPI()
    if parallel == "nccl":
        return NCCL()
    started = max(int(os.environ.get(name, 1)) for name in LAUNCHERS)
    if started > 1:
        raise NumllamaError(f"{started} processes were started, each of which would train alone: add --parallel mpi (or nccl)")
    return Communicator()


def make_workers(
    model: Transformer,
    parallel: str = "threads",
    workers: int | None = None,
    shard_optimizer: bool = False,
    sum_by: str | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> WorkerGroup:
    """The workers that train a model.

    Parameters
    ----------
    model : Transformer
    parallel : str
        ``threads``, ``mpi`` or ``nccl``.
    workers : int, optional
        Number of threads, later processes; default, one per core.
    shard_optimizer : bool
        Each rank keeps the moments of only its part of the parameters (ZeRO-1).
    sum_by : str, optional
        See :class:`Ranks`.
    timeout : float
        Seconds to wait for other ranks.
    """
    if parallel == "threads":
        return Workers(model, workers, processes=True)
    comm = communicator(parallel)
    comm.timeout = timeout
    return Ranks(model, comm, shard_optimizer, sum_by)
