"""NCCL: ranks with a GPU each. MPI starts them and sends host arrays; gradients and weights go from GPU to GPU.

Communication has its own stream, next to the compute stream: a message waits for the kernels launched before it, and compute
waits for a message only when its result is used. Pieces may differ in size, so a reduce-scatter or all-gather is a group of
plain NCCL reductions or broadcasts, one per rank.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from numllama.backend import Array
from numllama.errors import DeviceError, shown
from numllama.install import install_command
from numllama.parallel.communicator import MPI, Communicator, Request

UNIQUE_ID_BYTES = 128  # nccl.h


class NCCL(Communicator):
    """The processes started by mpirun or srun, one per GPU."""

    keeps_order = False  # sums are deterministic, but in NCCL's own order

    def __init__(self) -> None:
        self._mpi = MPI()
        self.rank, self.size = self._mpi.rank, self._mpi.size
        try:
            import cupy
            from cupy.cuda import nccl
        except ImportError as error:
            raise DeviceError(
                f"parallel 'nccl' needs CuPy and NCCL ({error}): {install_command('cuda13', 'nccl')} (or cuda12)"
            ) from error
        self._cupy, self._nccl = cupy, nccl
        self._types = {np.dtype("float32"): nccl.NCCL_FLOAT32, np.dtype("float64"): nccl.NCCL_FLOAT64}
        self._device = self._mpi.local_rank()
        count = cupy.cuda.runtime.getDeviceCount()
        if self._device >= count:
            raise DeviceError(f"rank {self.rank} needs a GPU of its own, but this machine has {count}: start fewer ranks on it")
        cupy.cuda.Device(self._device).use()
        name = np.frombuffer(nccl.get_unique_id() if self.rank == 0 else bytes(UNIQUE_ID_BYTES), np.uint8).copy()
        self._mpi.broadcast(name)
        self._comm = nccl.NcclCommunicator(self.size, name.tobytes(), self.rank)
        self._stream = cupy.cuda.Stream(non_blocking=True)

    @property
    def timeout(self) -> float:
        return self._mpi.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._mpi.timeout = seconds

    def device(self, device: str) -> str:
        if device != "cuda":
            raise DeviceError(f"device is {shown(device)}, but parallel 'nccl' is for --device cuda, a GPU for each rank")
        return f"cuda:{self._device}"

    def reduce_scatter(
        self, array: Array, bounds: Sequence[int], into: Array, add: bool = False, senders: int | None = None
    ) -> Request:
        if add:
            raise ValueError("add is True, but NCCL's sums cannot add to a buffer")

        def reduce(owner: int, part: Array) -> None:
            out = into if owner == self.rank else part  # NCCL writes to it on the owner only
            where = part.data.ptr, out.data.ptr, part.size, self._types[part.dtype]
            self._comm.reduce(*where, self._nccl.NCCL_SUM, owner, self._stream.ptr)

        return self._for_each_rank(array, bounds, reduce)

    def all_gather(self, array: Array, bounds: Sequence[int]) -> Request:
        def broadcast(owner: int, part: Array) -> None:
            self._comm.bcast(part.data.ptr, part.size, self._types[part.dtype], owner, self._stream.ptr)

        return self._for_each_rank(array, bounds, broadcast)

    def _for_each_rank(self, array: Array, bounds: Sequence[int], call) -> Request:
        self._stream.wait_event(self._cupy.cuda.get_current_stream().record())
        self._nccl.groupStart()
        for owner, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                call(owner, array[start:stop])
        self._nccl.groupEnd()
        sent = self._stream.record()
        return self._mpi.request(lambda: sent.done)

    def all_reduce(self, array: Array) -> None:
        if isinstance(array, np.ndarray):
            self._mpi.all_reduce(array)
        else:
            super().all_reduce(array)

    def broadcast(self, array: Array) -> None:
        if isinstance(array, np.ndarray):
            self._mpi.broadcast(array)
        else:
            self.all_gather(array, [0] + self.size * [array.size]).wait()  # rank 0 owns all of it

    def barrier(self) -> None:
        self._mpi.barrier()

    def abort(self, message: str, code: int = 1) -> None:
        self._mpi.abort(message, code)
