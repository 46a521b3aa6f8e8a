"""Settings of the process with which training runs well: BLAS's threads, Python's lock, and the memory that is kept."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import numpy as np

from numllama.system.blas import Held, one_blas_thread, switch_after

_settings = Held()


@contextmanager
def training_settings(device: str) -> Iterator[None]:
    """Settings of the process that make threads run well.

    BLAS gets one thread, for the workers are the parallelism and its sums must not depend on the number of cores.
    Python passes its lock on sooner than every 5 ms, for our calls into NumPy are much shorter than that.
    The C library keeps freed memory, where by default it gives large arrays back to the system at once, only to have
    every page of the next array faulted in again.
    """

    def make(undo: ExitStack) -> None:
        undo.enter_context(one_blas_thread())
        switch_after(undo, 1e-4)
        undo.enter_context(kept_memory())

    if device != "cpu":
        yield
        return
    with _settings.by_one_more(make):
        yield


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
KEPT = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # 2**25 is the most that glibc takes
# Until they are set for the first time, glibc moves its thresholds itself: to these, once it has freed a large array. Its first
# ones, 128 KiB, would stay, and every array of some size would from then on be faulted in page by page.
DEFAULTS = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}


@cache
def keep_more_memory() -> None:
    """Have glibc's malloc keep what is freed up to 64 MiB, for good: free an array as large as those that move its thresholds."""
    np.empty(DEFAULTS[M_MMAP_THRESHOLD] - 2**16, np.uint8)


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
