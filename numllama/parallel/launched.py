"""Which ranks this process belongs to."""

import os
from functools import cache

from numllama.errors import NumllamaError
from numllama.parallel.communicator import LAUNCHERS, MPI, Communicator
from numllama.parallel.nccl import NCCL


@cache
def communicator(parallel: str = "threads") -> Communicator:
    """The ranks that this process belongs to.

    Parameters
    ----------
    parallel : str
        ``threads`` (one process alone), ``mpi``, or ``nccl``.
    """
    if parallel == "mpi":
        return MPI()
    if parallel == "nccl":
        return NCCL()
    started = max(int(os.environ.get(name, 1)) for name in LAUNCHERS)
    if started > 1:
        raise NumllamaError(f"{started} processes were started, each of which would train alone: add --parallel mpi (or nccl)")
    return Communicator()
