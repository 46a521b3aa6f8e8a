"""Runs a function of somebody's file in a process of its own: for a limited time, in limited memory, without numllama.

The file is run with its owner's rights all the same: this keeps mistakes away from the grader, not malice. In a page of the book,
where there are no processes, it runs in this one, and what it changes in numllama is undone; the page ends it after some time.
"""

import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numllama.errors import DataError, NumllamaError, visible
from numllama.learn import child
from numllama.storage.files import read_bytes, read_json, reading, regular, write_json
from numllama.storage.tensor_file import safetensors
from numllama.system.processes import MOST_PRINTED, run_limited
from numllama.system.webassembly import IN_WEBASSEMBLY

MOST_SECONDS = 86_400
MOST_BYTES = 2**26  # that one call may return
MEMORY = 2**33  # bytes that the process may have
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # the arrays are small

PYTHON = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}  # pictures need no screen


class Call(NamedTuple):
    """A call: a function's name, arguments as :mod:`numllama.learn.child` reads them, and the kind of result that is needed."""

    function: str
    arguments: Sequence[Any]
    returns: str


@dataclass(frozen=True)
class Answer:
    """What a call has returned.

    Attributes
    ----------
    arrays : dict of str to array
        Of a function that was to return a dict, and raised an exception: what its dicts held by then.
    problem : str
        Why there are none, or no more; empty if the call ended well.
    lost : dict of str to str
        What is wrong with values that are no arrays.
    shared : dict of str to str
        Arrays that are the same memory as another one.
    narrow : dict of str to str
        The dtypes of arrays in float16 and bfloat16; they are float32 here.
    blank : bool
        Whether the function raised NotImplementedError.
    crash : dict, optional
        Where it raised another exception: ``line``, ``function``, ``error``, ``message``.
    changed : list of str
        Arguments that it has written to: "0" is the first, "1.x" is x in the second.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str = ""
    lost: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)
    blank: bool = False
    crash: dict[str, Any] | None = None
    changed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What a file has returned.

    Attributes
    ----------
    answers : list of Answer
        One for each call that ended.
    problem : str
        Why the file could not be loaded, or did not run to its end; empty if it did.
    printed : str
        The beginning of what it printed.
    seconds : float
    crash : dict, optional
        Where the file raised an exception while it was imported, as in an Answer.
    usable : bool
        False if it is not a Python file, or defines none of the functions.
    timed_out : bool
    """

    answers: list[Answer]
    problem: str
    printed: str
    seconds: float
    crash: dict[str, Any] | None = None
    usable: bool = True
    timed_out: bool = False


def run_file(
    path: Path,
    calls: Sequence[Call],
    inputs: Mapping[str, np.ndarray],
    seconds: float,
    *,
    closed_package: tuple[str, str] | None = None,
    closed_functions: tuple[Sequence[str], str] | None = None,
    only: Sequence[str] = (),
) -> Run:
    """Call functions of a file, one after the other.

    Parameters
    ----------
    path : path
    calls : sequence of Call
    inputs : mapping of str to array
        The child has copies of them, and nothing else.
    seconds : float
        For all calls together.
    closed_package : (str, str), optional
        A package that cannot be imported, and the sentence that says why.
    closed_functions : (list of str, str), optional
        Functions of numllama.ops that raise, wherever the package keeps them, and the clause that says why. The package's folders
        (`numllama.learn`, `numllama.cpu`) are closed too.
    only : sequence of str
        The packages that it may import beside the standard library and its neighbours; none: whatever there is.
    """
    if not 0 < seconds <= MOST_SECONDS:
        raise ValueError(f"seconds is {seconds:g}, but must be more than 0 and at most {MOST_SECONDS}")
    regular(path, DataError)
    inputs = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    question = {
        "path": str(path.resolve()), "calls": [call._asdict() for call in calls], "seconds": seconds, "memory": MEMORY,
        "most": MOST_BYTES, "closed_package": closed_package, "closed_functions": closed_functions,
        "only": list(only),
    }  # fmt: skip
    return _run_here(question, inputs) if IN_WEBASSEMBLY else _run_child(question, inputs, seconds)


def _run_child(question: Mapping[str, Any], inputs: dict[str, np.ndarray], seconds: float) -> Run:
    """Run in a process that reads and writes files."""
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    env = {**os.environ, **THREADS, **PYTHON, "PYTHONPATH": paths}
    with tempfile.TemporaryDirectory(prefix="numllama-", ignore_cleanup_errors=True) as place:
        folder, work = Path(place), Path(place) / "work"
        work.mkdir()
        write_json(folder / "question.json", question, NumllamaError)
        safetensors().save_file(inputs, folder / "inputs.safetensors")
        started = time.monotonic()
        ended = run_limited([sys.executable, child.__file__, place], seconds, work, env)
        taken = time.monotonic() - started
        try:
            usable, crash, answers, problem = _read(folder, len(question["calls"]), ended.code, seconds)
            return Run(answers, problem, visible(ended.printed), taken, crash, usable, ended.code is None)
        except NumllamaError as error:
            return Run([], f"left a result that cannot be read: {error}", visible(ended.printed), taken)


def _read(folder: Path, n_calls: int, code: int | None, seconds: float) -> tuple[bool, Any, list[Answer], str]:
    """Whether the file can be used, where it raised, the answers, and why there are no more."""
    loaded = (folder / "loaded.json").exists()
    if loaded and (said := read_json(folder / "loaded.json")).get("problem"):
        crash = _crash(said.get("crash"))
        return _usable(said["problem"], crash), crash, [], visible(str(said["problem"]))
    answers = []
    while len(answers) < n_calls and (folder / f"{len(answers)}.json").exists():
        answers.append(_answer(folder, len(answers)))
    return True, None, answers, "" if (folder / "done.json").exists() else _how_it_ended(code, loaded, seconds)


def _usable(problem: Any, crash: dict[str, Any] | None) -> bool:
    return not problem or (crash is not None and crash["error"] != "SyntaxError")


def _answer(folder: Path, i: int) -> Answer:
    said = read_json(folder / f"{i}.json")
    path = folder / f"{i}.safetensors"
    content = read_bytes(path, most=MOST_BYTES + 2**22)
    with reading(path):
        return _checked(safetensors().load(content), said)


def _checked(arrays: dict[str, np.ndarray], said: Mapping[str, Any]) -> Answer:
    """An answer from what the child says of it."""
    lost, shared, narrow = (
        {str(name): visible(str(value)) for name, value in said[kind].items()} for kind in ("lost", "shared", "narrow")
    )
    changed = [visible(str(name)) for name in said["changed"]]
    problem, blank, crash = visible(str(said["problem"])), said["blank"] is True, _crash(said["crash"])
    return Answer(arrays, problem, lost, shared, narrow, blank, crash, changed)


def _crash(said: Any) -> dict[str, Any] | None:
    """Where an exception was raised."""
    if not isinstance(said, dict):
        return None
    line = said.get("line")
    texts = {name: visible(str(said.get(name, ""))) for name in ("function", "error", "message")}
    return {"line": line if isinstance(line, int) else 0, **texts}


def _how_it_ended(code: int | None, loaded: bool, seconds: float) -> str:
    when = "" if loaded else " while it was imported"
    if code is None:
        return f"took longer than {seconds:g} s{when}"
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by {names.get(-code, f'signal {-code}')}{when}: a crash outside of Python, or not enough memory"
    return f"ended the process with exit code {code}{when}"


# ------------------------------------------------------------------------------------------------ without processes


def _run_here(question: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> Run:
    """Run in this process."""
    said: dict[str, dict] = {}
    answers = []

    def write(name: object, arrays: dict[str, np.ndarray] | None = None, **content: Any) -> None:
        said[str(name)] = content
        if arrays is not None:
            answers.append(_checked(arrays, content))

    printed, started = io.StringIO(), time.monotonic()
    with _undone(question), redirect_stdout(printed), redirect_stderr(printed):
        child.run(question, inputs, write)
    taken, loaded = time.monotonic() - started, said["loaded"]
    shown, problem = visible(printed.getvalue()[:MOST_PRINTED]), visible(loaded["problem"])
    crash = _crash(loaded["crash"])
    return Run(answers, problem, shown, taken, crash, _usable(problem, crash))


@contextmanager
def _undone(question: Mapping[str, Any]) -> Iterator[None]:
    """Hide the closed package; in the end, restore all modules, how they are found, and what numllama's own define."""
    modules, finders, paths = dict(sys.modules), sys.meta_path[:], sys.path[:]
    ours = [module for name, module in modules.items() if name.partition(".")[0] == "numllama"]
    defined = [dict(vars(module)) for module in ours]
    hidden = (question["closed_package"] or [""])[0]
    for name in [name for name in modules if name.partition(".")[0] == hidden]:
        del sys.modules[name]
    try:
        yield
    finally:
        sys.meta_path[:], sys.path[:] = finders, paths
        folder = os.path.dirname(question["path"])
        for name in set(sys.modules) - set(modules):  # the file, and neighbours that may be others the next time
            file = getattr(sys.modules[name], "__file__", None) or ""
            if name.partition(".")[0] in ("student", "numllama") or os.path.dirname(file) == folder:
                del sys.modules[name]
        sys.modules.update(modules)
        for module, names in zip(ours, defined, strict=True):
            for name in set(vars(module)) - set(names):
                delattr(module, name)
            vars(module).update(names)
