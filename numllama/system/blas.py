"""The number of threads for BLAS: one for small models, and while other threads or processes use the cores.

OpenBLAS splits every product of more than 2**18 multiplications among its threads. In a small model, starting them takes longer
than the product, and on busy cores each product waits for the slowest thread. So BLAS gets one thread

    when our own threads or processes are the parallelism   one_blas_thread(), for training, prefill and batched decoding
    when a small model runs by itself                       few_threads(model, tokens), in Transformer.loss_and_grads, loss and
                                                            forward, so that a user's own loop needs no setting
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, wraps
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from numllama.backend import Array, as_array
from numllama.system.webassembly import IN_WEBASSEMBLY

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

SWITCH_SECONDS = 5e-5
SHARED_PRODUCT = 2**18  # multiplications; OpenBLAS computes smaller products with one thread anyway
SMALL_PRODUCT = 2**26  # multiplications; one core needs about half a millisecond
SMALL_MODEL = 2**22  # parameters; one core cannot read a larger model fast enough


@cache
def blas() -> "ThreadpoolController":
    """The loaded BLAS libraries. Cached: searching for libraries takes longer than generating a token."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


class ReferenceCounted:
    """Process settings, applied for the first user and restored after the last one."""

    def __init__(self) -> None:
        self._lock, self._users, self._undo = Lock(), 0, ExitStack()

    @property
    def is_used(self) -> bool:
        """Whether the settings apply now."""
        return self._users > 0

    @contextmanager
    def acquire(self, make: Callable[[ExitStack], Any]) -> Iterator[None]:
        """Use the settings; ``make(undo)`` applies them, and registers in `undo` how to restore them."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._undo = ExitStack()
                make(self._undo)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo.close()


_one, _switch = ReferenceCounted(), ReferenceCounted()


def _limit(undo: ExitStack) -> None:
    if IN_WEBASSEMBLY:  # one thread, always
        return
    undo.callback(_set_threads, [library.get_num_threads() for library in blas().lib_controllers])
    _set_threads([1] * len(blas().lib_controllers))


def _set_threads(counts: list[int]) -> None:
    """Set the number of threads of each library.

    The setting applies to the process, but threadpoolctl 3.8 obeys only the first thread that changes it. Here the last user
    restores it, from any thread: see `ReferenceCounted`.
    """
    for library, count in zip(blas().lib_controllers, counts, strict=True):
        release = getattr(library, "clear_controlling_thread", lambda force: None)
        release(force=True)
        library.set_num_threads(count)
        release(force=True)  # so that other code can set threads again


def switch_after(undo: ExitStack, seconds: float) -> None:
    """Make Python switch threads more often, until `undo` is closed."""
    undo.callback(sys.setswitchinterval, sys.getswitchinterval())
    sys.setswitchinterval(seconds)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread, while our own threads use the cores.

    They need the GIL between calls of about 20 microseconds; its holder releases it after two or three of them.
    """
    with _one.acquire(_limit), _switch.acquire(lambda undo: switch_after(undo, SWITCH_SECONDS)):
        yield


def is_one_blas_thread() -> bool:
    """Whether BLAS has one thread now."""
    return _one.is_used


def few_threads(model: Any, tokens: Array) -> AbstractContextManager[None]:
    """One BLAS thread for a small model on a CPU; otherwise BLAS is left unchanged."""
    if model.xp is np and model.params.flat.size <= SMALL_MODEL:
        c = model.config
        widest = max(c.ffn_dim, c.n_heads * c.head_dim, c.vocab_size)
        if SHARED_PRODUCT < tokens.size * c.dim * widest <= SMALL_PRODUCT:
            return _one.acquire(_limit)
    return nullcontext()


def with_few_threads(method: Callable) -> Callable:
    """Decorate a model's method whose first argument is tokens, to run with :func:`few_threads`."""

    @wraps(method)
    def run(self: Any, tokens: Array, *args: Any, **options: Any) -> Any:
        tokens = as_array(tokens)
        with few_threads(self, tokens):
            return method(self, tokens, *args, **options)

    return run
