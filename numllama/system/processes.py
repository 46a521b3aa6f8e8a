"""Worker processes: pure Python on more than one core; and other people's programs, for a limited time.

The workers are plain interpreters that import only this package. Unlike those of `multiprocessing`, they never run the caller's
script again, so scripts need no `if __name__ == "__main__"` and notebooks work. Nothing is forked.
"""

import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, NamedTuple
from weakref import finalize

from numllama.errors import NumllamaError
from numllama.system.signals import FOR_THE_PARENT
from numllama.system.webassembly import IN_WEBASSEMBLY

MOST_PRINTED = 4000  # bytes that are kept of what a program prints
MEMORY_FIELDS = re.compile(rb"^(VmHWM|VmRSS|RssShmem|RssFile):\s*(\d+) kB$", re.MULTILINE)
_CHILD = "import sys; sys.path[:] = {path!r}; from numllama.system.processes import serve; serve()"


def available_cores() -> int:
    """Number of cores that this process may use."""
    if IN_WEBASSEMBLY:  # where a browser may say how many there are
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb(others: Sequence[int] = ()) -> float:
    """Peak memory in MB of this process and of others (by id), without what they share with it; 0 if unknown.

    While others run, this process counts with what it has now: its own peak may have been before they started.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    used = 0.0
    with suppress(OSError):  # this is not Linux
        used = _memory_fields("self")[b"VmRSS"] if others else 0.0
        for pid in others:
            with suppress(FileNotFoundError, ProcessLookupError, KeyError):  # it ended
                fields = _memory_fields(pid)
                used += fields[b"VmHWM"] - fields[b"RssShmem"] - fields[b"RssFile"]
    return max(peak, used / 1e3)


def _memory_fields(pid: int | str) -> dict[bytes, int]:
    """Linux's account of a process's memory, in kB."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        return {name: int(value) for name, value in MEMORY_FIELDS.findall(file.read())}


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes in here: they inherit a mask that blocks the signals meant for the parent."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """A pool of child processes that apply one function.

    Parameters
    ----------
    function : callable
        Takes one argument. The function (sent once to each child), arguments and results are pickled.
    workers : int
    fds : sequence of int
        File descriptors to pass to the children (not on Windows).
    """

    def __init__(self, function: Callable[[Any], Any], workers: int, fds: Sequence[int] = ()) -> None:
        command = [sys.executable, "-c", _CHILD.format(path=sys.path)]
        pipe = subprocess.PIPE
        with _signals_blocked():
            self._children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, pass_fds=fds) for _ in range(workers)]
        self._free: SimpleQueue = SimpleQueue()
        self._end = finalize(self, _end, self._children)  # also when the pool is never closed
        self._threads = ThreadPoolExecutor(workers)  # each waits for the answer of one child
        pickled = pickle.dumps(function)
        for child in self._children:
            with suppress(OSError):  # a child that has already ended is detected when it gets work
                child.stdin.write(pickled)  # pyright: ignore[reportOptionalMemberAccess]  a pipe: see Popen above
            self._free.put(child)

    @property
    def pids(self) -> list[int]:
        """The children's process ids."""
        return [child.pid for child in self._children]

    def submit(self, item: Any, failed: Callable[[], Any] = lambda: None) -> Future:
        """A future of the function's result. If the function raises, `failed` is called before the future completes."""
        return self._threads.submit(self._answer, item, failed)

    def _answer(self, item: Any, failed: Callable[[], Any]) -> Any:
        try:
            return self._ask(item)
        except BaseException:
            failed()
            raise

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The function's results in the order of the items; only a few items are read ahead."""
        waiting: deque[Future] = deque()
        try:
            for item in items:
                waiting.append(self.submit(item))
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
        self._end()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end(children: Sequence[subprocess.Popen]) -> None:
    """End children by closing their input."""
    for child in children:
        assert child.stdin and child.stdout  # pipes
        with suppress(OSError):
            child.stdin.close()
        child.wait()
        child.stdout.close()


def serve() -> None:
    """Run as a child: read a function, then answer each argument until the input ends."""
    for number in FOR_THE_PARENT:  # in case they could not be blocked
        signal.signal(number, signal.SIG_IGN)
    questions, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything the function prints must stay out of the answers
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


# ------------------------------------------------------------------------------------------------ programs of other people


class Ended(NamedTuple):
    """How a program ended.

    Attributes
    ----------
    code : int, optional
        Exit code; minus the signal that ended it; None if it ran out of time.
    printed : str
        The beginning of what it printed.
    """

    code: int | None
    printed: str


def run_limited(
    command: Sequence[str], seconds: float, folder: str | os.PathLike, env: Mapping[str, str], most: int = MOST_PRINTED
) -> Ended:
    """Run a program in a folder for some seconds, then end it with all processes that it has started.

    It has no input. It may print as much as it wants; the first `most` bytes are kept.
    """
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder, env=env,
        start_new_session=True,
    )  # fmt: skip
    output, kept = child.stdout, bytearray()
    assert isinstance(output, io.BufferedReader)  # a pipe

    def read() -> None:
        with suppress(OSError, ValueError):
            while chunk := output.read1(2**16):
                kept.extend(chunk[: most - len(kept)])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = child.wait(seconds)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        with suppress(OSError):  # none is left
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()
        child.wait()
        reader.join(1)
        if not reader.is_alive():  # else a process that has left the group still holds the pipe
            output.close()
    return Ended(code, kept.decode("utf-8", "replace"))
