"""One step's batch as shards, and the threads that run them.

A batch is cut into shards of whole sequences; gradients are the sum over shards. How it is cut depends on the batch's
shape alone, each shard runs on one core, and shards add in index order (`turns`). So losses are the same bits for any
number of workers. Worker threads use all cores even for elementwise work, because NumPy and BLAS release the
interpreter's lock.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import islice, pairwise
from threading import Lock

import numpy as np
from threadpoolctl import ThreadpoolController

from numllama.backend import Array
from numllama.model import Parameters, Transformer
from numllama.ops import IGNORE
from numllama.training.turns import Turns

SHARD_TOKENS = 1024  # large enough for full speed of matrix products, small enough for the cache
MAX_SHARDS = 8


def shard_count(batch_size: int, seq_len: int) -> int:
    """Into how many shards a batch is cut: about SHARD_TOKENS tokens in each, at most MAX_SHARDS, at least two."""
    return min(batch_size, max(2, min(MAX_SHARDS, batch_size * seq_len // SHARD_TOKENS)))


def cut(batch: Array, shards: int) -> list[Array]:
    """Cut rows into `shards` parts whose sizes differ by at most one."""
    bounds = [len(batch) * i // shards for i in range(shards + 1)]
    return [batch[start:stop] for start, stop in pairwise(bounds)]


class Workers:
    """Threads that run the shards of a batch.

    Parameters
    ----------
    model : Transformer
    workers : int, optional
        How many shards run at once; default, one for each core. On a GPU always one.
    """

    def __init__(self, model: Transformer, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}, but must be at least 1")
        self.model = model
        self.workers = 1 if model.device != "cpu" else workers or available_cores()
        self._pool = ThreadPoolExecutor(self.workers) if self.workers > 1 else None
        self._total: Parameters | None = None

    def map(self, function: Callable, items: Iterable) -> Iterator:
        """Like the built-in ``map``, with the threads."""
        return self._pool.map(function, items) if self._pool else map(function, items)

    def loss_and_grads(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        shards: int,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
    ) -> tuple[float, Parameters]:
        """As :meth:`Transformer.loss_and_grads`, shard by shard; the next call fills the same buffer again.

        Parameters
        ----------
        tokens, targets : integer arrays, shape (B, T)
        shards : int
        key : tuple of int, optional
            Of the dropout masks; each shard appends its index.
        recompute : bool
        """
        shards = min(shards, len(tokens))
        count = max(1, int((targets != IGNORE).sum()))
        parts = list(zip(cut(tokens, shards), cut(targets, shards), strict=True))
        if self._total is None:
            self._total = self.model.params.zeros_like()
        turns = Turns(self._total)

        def run(i: int) -> float:
            with turns.shard(i) as grads:
                shard_key = None if key is None else (*key, i)
                loss, _ = self.model.loss_and_grads(*parts[i], grads=grads, count=count, key=shard_key, recompute=recompute)
                return float(loss)

        try:
            return sum(list(self.map(run, range(shards)))), self._total
        except BaseException as error:  # a shard's error, or Ctrl-C
            turns.fail(error)
            turns.wait_until_idle()  # no shard may go on writing to the buffer of the next call
            raise turns.error from None

    def mean_loss(self, windows: Iterable[tuple[np.ndarray, np.ndarray]]) -> float:
        """Mean loss of all targets in some windows, without dropout; sums are in float64 and in order."""

        def run(window):
            tokens, targets = window
            return float(self.model.loss(tokens, targets, count=1)), int((targets != IGNORE).sum())

        windows, total, n = iter(windows), 0.0, 0
        while some := list(islice(windows, 4 * self.workers)):  # never the whole split at once
            for loss, counted in self.map(run, some):
                total, n = total + loss, n + counted
        return total / max(1, n)

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


# ------------------------------------------------------------------------------------------------ the machine


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def blas() -> ThreadpoolController:
    """BLAS and its threads; found once, for to look for libraries takes longer than many a token."""
    return ThreadpoolController().select(user_api="blas")


_one = {"lock": Lock(), "users": 0, "limit": None}


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS have one thread, where the threads are our own; put back when the last one who asked for it is done."""
    with _one["lock"]:
        _one["users"] += 1
        if _one["users"] == 1:
            _one["limit"] = blas().limit(limits=1)
    try:
        yield
    finally:
        with _one["lock"]:
            _one["users"] -= 1
            if _one["users"] == 0:
                _one["limit"].restore_original_limits()


_settings = {"lock": Lock(), "users": 0, "undo": ExitStack()}


@contextmanager
def training_settings(device: str) -> Iterator[None]:
    """Settings of the process that make threads run well; put back when the last one who asked for them is done.

    BLAS gets one thread, for the workers are the parallelism and its sums must not depend on the number of cores.
    Python passes its lock on sooner than every 5 ms, for our calls into NumPy are much shorter than that.
    The C library keeps freed memory, where by default it gives large arrays back to the system at once, only to have
    every page of the next array faulted in again.
    """
    if device != "cpu":
        yield
        return
    with _settings["lock"]:
        _settings["users"] += 1
        if _settings["users"] == 1:
            undo = _settings["undo"] = ExitStack()
            undo.enter_context(one_blas_thread())
            undo.callback(sys.setswitchinterval, sys.getswitchinterval())
            sys.setswitchinterval(1e-4)
            undo.enter_context(kept_memory())
    try:
        yield
    finally:
        with _settings["lock"]:
            _settings["users"] -= 1
            if _settings["users"] == 0:
                _settings["undo"].close()


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
KEPT = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # 2**25 is the most that glibc takes
# Until they are set for the first time, glibc moves its thresholds itself: to these, once it has freed a large array. Its first
# ones, 128 KiB, would stay, and every array of some size would from then on be faulted in page by page.
DEFAULTS = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let glibc's malloc keep what is freed; elsewhere, do nothing."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    for option, value in KEPT.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
