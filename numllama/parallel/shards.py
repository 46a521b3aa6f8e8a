"""The shards of a step's batch, and the threads or processes that run them.

The cuts depend only on the shape of the batch, each shard runs on one core, and shards add in index order (`ordered_sum`). So
losses are bit-identical for any number of workers, threads or processes.

Threads use all cores even for elementwise work, because NumPy and BLAS release the GIL; but threads that need the GIL wait for
each other. So runs longer than a few seconds switch to processes (`shared_memory`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, NamedTuple

from numllama.cuda.graph import TrainingStep, training_step
from numllama.cuda.launch import runs_here
from numllama.data.batches import Batch
from numllama.model import Transformer
from numllama.model.parameters import FlatTensors, Gradients, Parameters
from numllama.ops import IGNORE
from numllama.optim.clip import clip_in_pieces
from numllama.optim.optimizer import Optimizer, step_in_pieces
from numllama.parallel.ordered_sum import OrderedSum, ShardFailed
from numllama.parallel.shared_memory import SharedMemoryWorkers
from numllama.system.machine import return_freed_memory
from numllama.system.processes import available_cores
from numllama.system.webassembly import IN_WEBASSEMBLY

SHARD_TOKENS = 1024  # large enough for fast matrix products, small enough for the cache
MAX_SHARDS = 8
WORTH_PROCESSES = 8  # items per process; for fewer, threads start sooner
Progress = Callable[[int], object]
PROCESSES_AFTER = 2.0  # seconds of work with threads: a process takes half a second to start


def shard_count(batch_size: int, seq_len: int) -> int:
    """The number of shards of a batch: about SHARD_TOKENS tokens each, at least two and at most MAX_SHARDS."""
    return min(batch_size, max(2, min(MAX_SHARDS, batch_size * seq_len // SHARD_TOKENS)))


def shard_rows(batch_size: int, shards: int) -> int:
    """The rows of the largest shard."""
    return -(-batch_size // shards)


class ShardPlan(NamedTuple):
    """A cut of a batch's rows into shards, whose sizes differ by at most one.

    Attributes
    ----------
    batch_size : int
        Rows of the whole batch.
    shards : int
    """

    batch_size: int
    shards: int

    def slices(self) -> list[slice]:
        """The rows of each shard; there are never more shards than rows."""
        n = min(self.shards, self.batch_size)
        return [slice(self.batch_size * i // n, self.batch_size * (i + 1) // n) for i in range(n)]


class Shard(NamedTuple):
    """Some rows of a batch; its `count` is that of the whole batch."""

    index: int
    batch: Batch


def cut_batches(batches: Iterable[Batch], rows: int | None) -> Iterator[Batch]:
    """Cut batches into parts of at most `rows` rows: the shards of an evaluation."""
    for batch in batches:
        for start in range(0, len(batch.tokens), rows or len(batch.tokens)):
            yield batch.rows(slice(start, start + rows)) if rows else batch


class Workers:
    """Threads, later processes, that run the shards of a batch: a :class:`~numllama.parallel.group.WorkerGroup` without ranks.

    Parameters
    ----------
    model : Transformer
        Its parameters move to shared memory when processes start, and earlier views of them become stale.
    workers : int, optional
        Number of shards that run at once; default, one per core. Always one on a GPU.
    processes : bool
        Switch to processes after PROCESSES_AFTER seconds of work, if the system can share memory with them.
    """

    rank, size = 0, 1

    def __init__(self, model: Transformer, workers: int | None = None, processes: bool = False) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}, but must be at least 1")
        self.model = model
        self.workers = 1 if model.device != "cpu" or IN_WEBASSEMBLY else workers or available_cores()
        self._threads = ThreadPoolExecutor(self.workers - 1) if self.workers > 1 else None
        self._moments: list[FlatTensors] = []
        self._sum: OrderedSum | None = None
        self._processes: SharedMemoryWorkers | None = None
        self._may_start_processes = processes and self.workers > 1 and SharedMemoryWorkers.possible(model)
        self._busy = 0.0

    @property
    def params(self) -> Parameters:
        """All trainable parameters."""
        return self.model.trainable

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._processes.pids if self._processes else []

    def local_rows(self, plan: ShardPlan) -> None:
        """None: the workers share the whole batch."""

    def whole_step(self, optimizer: Optimizer, **settings: Any) -> TrainingStep | None:
        """On a GPU, a step recorded as a CUDA graph, if possible."""
        return None if self.model.device == "cpu" else training_step(self.model, optimizer, **settings)

    def map(self, function: Callable, items: Iterable) -> list:
        """The function's results, computed by all workers; arrays in its arguments must be shared or read-only."""
        items, n = list(items), self.workers
        enough = len(items) >= n * WORTH_PROCESSES
        others = self._processes if self._processes and enough and self._processes.shares(self._moments) else self._threads
        waiting = [others.submit(run_all, function, items[i::n]) for i in range(1, n)] if others else []
        return interleave([run_all(function, items[::n]), *(future.result() for future in waiting)])

    def loss_and_grads(
        self,
        batch: Batch,
        plan: ShardPlan,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
    ) -> tuple[float, FlatTensors]:
        """See :meth:`WorkerGroup.loss_and_grads`."""
        shards = [Shard(i, batch.rows(rows)) for i, rows in enumerate(plan.slices())]
        self._start_processes()
        if self._sum is None:
            self._sum = OrderedSum(self.model.trainable.zeros_like())
        total, options = self._sum.total, dict(recompute=recompute, scale=scale)
        if runs_here((total.flat,)):  # kernels add to the buffer, and one shard at a time fills a GPU
            total.flat[...] = 0
            return sum(shard_loss(self.model, total, shard, key, options) for shard in shards), total
        self._sum.start()
        losses = self._spread(run_shards, shards, key, options)
        return sum(losses), total

    def _start_processes(self) -> None:
        """Start the processes, if allowed and if threads have worked for long enough."""
        if self._may_start_processes and self._processes is None and self._busy > PROCESSES_AFTER:
            self._sum = None  # free its memory before the shared sum is allocated
            return_freed_memory()  # of the threads, which compute no more shards
            self._processes = SharedMemoryWorkers(self.model, self.workers - 1, self._moments)
            self._sum = self._processes.sum

    def clip(self, grads: FlatTensors, max_norm: float) -> float:
        """Like :func:`~numllama.optim.clip_grad_norm`, on all workers."""
        return clip_in_pieces(grads, max_norm, map_fn=self.map)

    def step(self, optimizer: Optimizer, grads: FlatTensors, lr: float) -> None:
        """Step the optimizer on all workers; its moments move to shared memory when processes start."""
        self._moments = list(optimizer.state.values())
        step_in_pieces(optimizer, grads, lr, self.map)

    def any_rank(self, flag: bool) -> bool:
        """The flag: there is one rank."""
        return flag

    def require_same(self, things: dict[str, Any]) -> None:
        """Nothing to compare: there is one rank."""

    def gather_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer itself: it has all moments."""
        return optimizer

    def scatter_optimizer(self, optimizer: Optimizer, gathered: Optimizer) -> None:
        """Nothing to do: `gathered` is the optimizer itself."""

    def mean_loss(self, batches: Iterable[Batch], rows: int | None = None, progress: Progress | None = None) -> float:
        """See :meth:`WorkerGroup.mean_loss`."""
        parts, total, n = cut_batches(batches, rows), 0.0, 0
        while some := list(islice(parts, 4 * self.workers)):  # never the whole split in memory
            self._start_processes()
            for loss, counted in self._spread(run_batches, some):
                total, n = total + loss, n + counted
            if progress:
                progress(sum(len(part.tokens) for part in some))
        return total / max(1, n)

    def _spread(self, function: Callable, items: Sequence, *args: Any) -> list:
        """Run ``function(model, sum, some of the items, *args)`` on each worker; returns results in item order."""
        n, start = min(self.workers, len(items)), time.perf_counter()
        waiting = [self._submit(function, self.model, self._sum, items[i::n], *args) for i in range(1, n)]
        try:
            parts = [function(self.model, self._sum, items[::n], *args)] + [future.result() for future in waiting]
        except BaseException as error:  # a shard's error, or Ctrl-C
            if self._sum:
                self._sum.fail()
            wait(waiting)  # no shard may still write to the buffer of the next call
            errors = [error, *filter(None, (future.exception() for future in waiting))]
            first = next((e for e in errors if not isinstance(e, ShardFailed)), error)
            raise first from first.__cause__  # not from the error of a shard that was merely stopped
        self._busy += time.perf_counter() - start
        return interleave(parts)

    def _submit(self, function: Callable, *args: Any) -> Future:
        others = self._processes or self._threads
        assert others is not None, "a single worker runs everything itself"
        return others.submit(function, *args)

    def close(self) -> None:
        """End the threads and processes."""
        if self._processes:
            self._processes.close()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)


def run_all(function: Callable, items: Sequence) -> list:
    """The function's results."""
    return list(map(function, items))


def interleave(parts: Sequence[list]) -> list:
    """Merge the lists x[0::n], x[1::n], ... into x."""
    results: list = [None] * sum(map(len, parts))
    for i, part in enumerate(parts):
        results[i :: len(parts)] = part
    return results


def run_shards(
    model: Transformer, ordered: OrderedSum, shards: Sequence[Shard], key: tuple[int, ...] | None, options: dict[str, Any]
) -> list[float]:
    """Losses of some shards; their gradients are added to the sum."""
    losses = []
    for shard in shards:
        with ordered.shard(shard.index) as grads:
            losses.append(shard_loss(model, grads, shard, key, options))
    return losses


def shard_loss(
    model: Transformer, grads: Gradients, shard: Shard, key: tuple[int, ...] | None, options: dict[str, Any]
) -> float:
    """Loss of one shard; its gradients are added to `grads`."""
    batch = shard.batch
    loss, _ = model.loss_and_grads(
        batch.tokens,
        batch.targets,
        grads=grads,
        count=max(1, batch.count),
        segments=batch.segments,
        key=None if key is None else (*key, shard.index),
        **options,
    )
    return float(loss)


def run_batches(model: Transformer, ordered: OrderedSum | None, batches: Sequence[Batch]) -> list[tuple[float, int]]:
    """Summed loss and number of counted targets of some batches, or parts of them."""
    return [
        (float(model.loss(batch.tokens, batch.targets, count=1, segments=batch.segments)), int((batch.targets != IGNORE).sum()))
        for batch in batches
    ]
