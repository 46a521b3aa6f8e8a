"""One step's batch as shards, and the workers that run them.

A batch is cut into shards of whole sequences; gradients are the sum over shards. How it is cut depends on the batch's
shape alone, each shard runs on one core, and shards add in index order (`turns`). So losses are the same bits for any
number of workers, and whether they are threads or processes.

Threads use all cores even for elementwise work, because NumPy and BLAS release the interpreter's lock; but they wait for
each other whenever one of them needs that lock. So a run that takes more than a moment goes on with processes (`team`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice, pairwise
from typing import Any

import numpy as np

from numllama.backend import Array
from numllama.cuda.launch import runs_here
from numllama.model import Parameters, Transformer
from numllama.ops import IGNORE
from numllama.optim import clip_grad_norm
from numllama.optim.optimizer import Optimizer
from numllama.parallel.team import Team
from numllama.parallel.turns import Stopped, Turns
from numllama.system.processes import available_cores

SHARD_TOKENS = 1024  # large enough for full speed of matrix products, small enough for the cache
MAX_SHARDS = 8
WORTH_PROCESSES = 8  # items for each of them: for fewer, threads begin sooner
Progress = Callable[[int], object]
TEAM_AFTER = 2.0  # seconds of work with threads: a process takes half a second to start


def shard_count(batch_size: int, seq_len: int) -> int:
    """Into how many shards a batch is cut: about SHARD_TOKENS tokens in each, at most MAX_SHARDS, at least two."""
    return min(batch_size, max(2, min(MAX_SHARDS, batch_size * seq_len // SHARD_TOKENS)))


def cut(batch: Array, shards: int) -> list[Array]:
    """Cut rows into `shards` parts whose sizes differ by at most one."""
    bounds = [len(batch) * i // shards for i in range(shards + 1)]
    return [batch[start:stop] for start, stop in pairwise(bounds)]


def shard_rows(batch_size: int, shards: int) -> int:
    """The rows of the largest shard."""
    return -(-batch_size // shards)


def cut_windows(windows: Iterable[tuple[np.ndarray, ...]], rows: int | None) -> Iterator[tuple[np.ndarray, ...]]:
    """The windows in parts of at most so many rows: an evaluation's shards."""
    for window in windows:
        for start in range(0, len(window[0]), rows or len(window[0])):
            yield tuple(part[start : start + rows] if rows else part for part in window)


class Workers:
    """Those who run the shards of a batch: this thread and others like it, later on processes.

    Parameters
    ----------
    model : Transformer
        Its parameters move to shared memory when processes start: views of them that were taken before stay behind.
    workers : int, optional
        How many shards run at once; default, one for each core. On a GPU always one.
    processes : bool
        Go on with processes where the system can share memory with them, after TEAM_AFTER seconds of work.
    """

    rank = 0

    def __init__(self, model: Transformer, workers: int | None = None, processes: bool = False) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}, but must be at least 1")
        self.model = model
        self.workers = 1 if model.device != "cpu" else workers or available_cores()
        self._pool = ThreadPoolExecutor(self.workers - 1) if self.workers > 1 else None
        self._moments: list[Parameters] = []
        self._turns: Turns | None = None
        self._team: Team | None = None
        self._may_team = processes and self.workers > 1 and Team.possible(model)
        self._busy = 0.0

    @property
    def params(self) -> Parameters:
        """What an optimizer steps here: all that is learnt."""
        return self.model.learnt

    @property
    def pids(self) -> list[int]:
        """The processes that work beside this one."""
        return self._team.pids if self._team else []

    def rows(self, batch_size: int, shards: int) -> None:
        """The rows of a batch that are computed here: all, which the workers share."""

    def map(self, function: Callable, items: Iterable) -> list:
        """The function's results, by this worker and the others; what it holds of arrays must be shared, or only be read."""
        items, n = list(items), self.workers
        to_team = self._team and len(items) >= n * WORTH_PROCESSES and self._team.shares(self._moments)
        others = self._team if to_team else self._pool
        waiting = [others.submit(run_all, function, items[i::n]) for i in range(1, n)]
        return interleave([run_all(function, items[::n]), *(future.result() for future in waiting)])

    def loss_and_grads(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        shards: int,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
        segments: np.ndarray | None = None,
    ) -> tuple[float, Parameters]:
        """As :meth:`Transformer.loss_and_grads`, shard by shard; the next call fills the same buffer again.

        Parameters
        ----------
        tokens, targets : integer arrays, shape (B, T)
        shards : int
        key : tuple of int, optional
            Of the dropout masks; each shard appends its index.
        recompute : bool
        scale : float
        segments : integer array, shape (B, T), optional
        """
        shards = min(shards, len(tokens))
        count = max(1, int((targets != IGNORE).sum()))
        segments = [None] * shards if segments is None else cut(segments, shards)
        parts = list(zip(range(shards), cut(tokens, shards), cut(targets, shards), segments, strict=True))
        self._go_on_with_processes()
        if self._turns is None:
            self._turns = Turns(self.model.learnt.zeros_like())
        total, options = self._turns.total, dict(count=count, recompute=recompute, scale=scale)
        if runs_here((total.flat,)):  # kernels add to the buffer itself, and one shard at a time fills a GPU
            total.flat[...] = 0
            return sum(shard_loss(self.model, total, part, key, options) for part in parts), total
        self._turns.start()
        losses = self._spread(run_shards, parts, key, options)
        return sum(losses), total

    def _go_on_with_processes(self) -> None:
        """Start the processes, if there are to be some and threads have worked for long enough."""
        if self._may_team and self._team is None and self._busy > TEAM_AFTER:
            self._turns = None  # its memory is free before the team takes its own
            self._team = Team(self.model, self.workers - 1, self._moments)
            self._turns = self._team.turns

    def clip(self, grads: Parameters, max_norm: float) -> float:
        """As :func:`clip_grad_norm`, by all workers."""
        return clip_grad_norm(grads, max_norm, run=self.map)

    def step(self, optimizer: Optimizer, grads: Parameters, lr: float) -> None:
        """A step of the optimizer, by all workers: its moments move to the processes' memory when they start."""
        self._moments = list(optimizer.state.values())
        optimizer.step(grads, lr, self.map)

    def agree(self, flag: bool) -> bool:
        """Whether any rank says yes: here is only one."""
        return flag

    def check_same(self, things: dict[str, Any]) -> None:
        """NumllamaError unless all ranks have the same things: here is only one."""

    def whole(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer with the moments of all parameters, as it is saved."""
        return optimizer

    def keep(self, optimizer: Optimizer, whole: Optimizer) -> None:
        """Take over what was loaded into `whole`, which is the optimizer itself here."""

    def mean_loss(
        self, windows: Iterable[tuple[np.ndarray, ...]], rows: int | None = None, progress: Progress | None = None
    ) -> float:
        """Mean loss of all targets in some windows, without dropout; sums are in float64 and in order.

        Parameters
        ----------
        windows : iterable of (tokens, targets) or (tokens, targets, segments)
        rows : int, optional
            How many rows of a window a worker computes at once, which is what takes memory; default a whole window.
        progress : callable, optional
            Told how many more rows are done, now and then.
        """
        shards, total, n = cut_windows(windows, rows), 0.0, 0
        while some := list(islice(shards, 4 * self.workers)):  # never the whole split at once
            self._go_on_with_processes()
            for loss, counted in self._spread(run_windows, some):
                total, n = total + loss, n + counted
            if progress:
                progress(sum(len(shard[0]) for shard in some))
        return total / max(1, n)

    def _spread(self, function: Callable, items: Sequence, *args: Any) -> list:
        """``function(model, turns, some of the items, *args)`` by every worker; the results, in the order of the items."""
        n, start = min(self.workers, len(items)), time.perf_counter()
        waiting = [self._submit(function, self.model, self._turns, items[i::n], *args) for i in range(1, n)]
        try:
            parts = [function(self.model, self._turns, items[::n], *args)] + [future.result() for future in waiting]
        except BaseException as error:  # a shard's error, or Ctrl-C
            if self._turns:
                self._turns.fail()
            wait(waiting)  # no shard may go on writing to the buffer of the next call
            errors = [error, *filter(None, (future.exception() for future in waiting))]
            first = next((e for e in errors if not isinstance(e, Stopped)), error)
            raise first from first.__cause__  # and not from that of one who was only stopped
        self._busy += time.perf_counter() - start
        return interleave(parts)

    def _submit(self, function: Callable, *args: Any) -> Future:
        return (self._team or self._pool).submit(function, *args)

    def close(self) -> None:
        """End the threads and processes."""
        if self._team:
            self._team.close()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def run_all(function: Callable, items: Sequence) -> list:
    """The function's results."""
    return list(map(function, items))


def interleave(parts: Sequence[list]) -> list:
    """The lists x[0::n], x[1::n], ... back to x."""
    results: list = [None] * sum(map(len, parts))
    for i, part in enumerate(parts):
        results[i :: len(parts)] = part
    return results


def run_shards(model: Transformer, turns: Turns, parts: Sequence[tuple], key: tuple | None, options: dict) -> list[float]:
    """Loss of some shards; their gradients are added to what others add."""
    losses = []
    for part in parts:
        with turns.shard(part[0]) as grads:
            losses.append(shard_loss(model, grads, part, key, options))
    return losses


def shard_loss(model: Transformer, grads: Any, part: tuple, key: tuple | None, options: dict) -> float:
    """Loss of one shard, (index, tokens, targets, segments); its gradients are added to `grads`."""
    i, tokens, targets, segments = part
    options = dict(options, segments=segments, key=None if key is None else (*key, i))
    loss, _ = model.loss_and_grads(tokens, targets, grads=grads, **options)
    return float(loss)


def run_windows(model: Transformer, turns: Turns | None, windows: Sequence[tuple]) -> list[tuple[float, int]]:
    """Summed loss and number of targets of some windows, (tokens, targets) or (tokens, targets, segments) each."""
    return [
        (float(model.loss(tokens, targets, count=1, segments=segments[0] if segments else None)), int((targets != IGNORE).sum()))
        for tokens, targets, *segments in windows
    ]
