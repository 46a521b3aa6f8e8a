"""Process settings for training: BLAS threads, Python's switch interval, and reuse of freed memory."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from numllama.system.blas import ReferenceCounted, one_blas_thread, switch_after

_settings = ReferenceCounted()


@contextmanager
def training_settings(device: str) -> Iterator[None]:
    """Process settings under which threads run well.

    BLAS gets one thread, because the workers are the parallelism and sums must not depend on the number of cores.
    Python switches threads more often than every 5 ms, because our calls into NumPy are much shorter than that.
    The C library keeps freed memory. By default it returns large arrays to the system, and every page of the next array is
    faulted in again.
    """

    def make(undo: ExitStack) -> None:
        undo.enter_context(one_blas_thread())
        switch_after(undo, 1e-4)
        undo.enter_context(keep_freed_memory())

    if device != "cpu":
        yield
        return
    with _settings.acquire(make):
        yield


M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
KEEP_FREED = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # 2**25 is glibc's maximum
# glibc adjusts its thresholds until a program sets them, and reaches these values after freeing a large array. Restoring its
# initial 128 KiB would make that final, and every larger array would be faulted in page by page.
DEFAULTS = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}


@cache
def keep_more_memory() -> None:
    """Make glibc's malloc keep up to 64 MiB of freed memory from now on, by freeing an array that raises its thresholds."""
    np.empty(DEFAULTS[M_MMAP_THRESHOLD] - 2**16, np.uint8)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Make glibc's malloc keep freed memory; elsewhere, do nothing."""
    libc = _glibc()
    if libc is None:
        yield
        return
    for option, value in KEEP_FREED.items():
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in DEFAULTS.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def return_freed_memory() -> None:
    """Make glibc's malloc return the memory that it kept, once, in all threads; elsewhere, do nothing."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> Any:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
