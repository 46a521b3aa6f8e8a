"""WebAssembly, where pages of the book run this package: one thread, and no processes, shared memory or shared libraries.

Everything else asks here, so that this is the one place that knows. In a browser the platform is called emscripten (Pyodide), and
outside of one wasi.
"""

import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

IN_WEBASSEMBLY = sys.platform in ("emscripten", "wasi")


def thread_pool(workers: int, name: str = "") -> Executor:
    """A pool of threads; where none can start, one that does its work when it is given."""
    return AtOnce() if IN_WEBASSEMBLY else ThreadPoolExecutor(workers, name)


class AtOnce(Executor):
    """An executor without threads: what is submitted is done when `submit` returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """The result of a call that has been made, or its exception."""
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
