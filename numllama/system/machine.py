"""Process settings for fast training: BLAS threads, the GIL, and freed memory."""

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

    BLAS gets one thread, because the workers are the parallelism and sums must not depend on the number of cores.
    The GIL is passed on more often than every 5 ms, because our calls into NumPy are much shorter than that.
    The C library keeps freed memory. By default it returns large arrays to the system immediately, and every page of the
    next array has to be faulted in again.
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
KEPT = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26}  # 2**25 is glibc's maximum
# Until they are first set, glibc adjusts its thresholds itself, to these values once a large array has been freed. Restoring its
# initial 128 KiB instead would make every larger array be faulted in page by page from then on.
DEFAULTS = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_TOP_PAD: 2**17}


@cache
def keep_more_memory() -> None:
    """Make glibc's malloc keep up to 64 MiB of freed memory permanently, by freeing an array that raises its thresholds."""
    np.empty(DEFAULTS[M_MMAP_THRESHOLD] - 2**16, np.uint8)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Make glibc's malloc keep freed memory; do nothing with other C libraries."""
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
