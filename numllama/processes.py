"""Work for other processes: pure Python on more than one core.

The children are plain interpreters that import this package and nothing else. Unlike `multiprocessing`'s they never run the
caller's script again, so that a script needs no `if __name__ == "__main__"`, and a notebook works; and nothing is forked.
"""

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from numllama.errors import NumllamaError

_CHILD = "import sys; sys.path[:] = {path!r}; from numllama.processes import serve; serve()"


def cores() -> int:
    """How many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Children that apply one function.

    Parameters
    ----------
    function : callable
        Of one argument; it, its arguments and its results are pickled. It is sent once to each child.
    workers : int
    """

    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        command = [sys.executable, "-c", _CHILD.format(path=sys.path)]
        pipe = subprocess.PIPE
        self._children = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(workers)]
        self._free: SimpleQueue = SimpleQueue()
        self._threads = ThreadPoolExecutor(workers)  # each waits for the answer of a child
        function = pickle.dumps(function)
        for child in self._children:
            with suppress(OSError):  # a child that is gone already is noticed when it is asked
                child.stdin.write(function)
            self._free.put(child)

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The function's results, in the order of the items, of which only a few are taken ahead."""
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(self._ask, item))
                if len(waiting) > 2 * len(self._children):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _ask(self, item: Any) -> Any:
        child = self._free.get()
        try:
            pickle.dump(item, child.stdin, pickle.HIGHEST_PROTOCOL)
            child.stdin.flush()
            done, result = pickle.load(child.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise NumllamaError(f"a worker process ended (code {child.wait()}): was there enough memory?") from error
        finally:
            self._free.put(child)
        if not done:
            raise result
        return result

    def close(self) -> None:
        """End the children."""
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            with suppress(OSError):
                child.stdin.close()
            child.wait()
            child.stdout.close()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve() -> None:
    """Be a child: read a function, then answer each argument that comes, until no more can come."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the function prints is no answer
    with suppress(EOFError, BrokenPipeError):
        function = pickle.load(questions)
        while True:
            item = pickle.load(questions)
            try:
                answer = True, function(item)
            except Exception as error:
                answer = False, error
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
