"""The program that runs somebody's file in a process of its own. It imports nothing of numllama.

    python child.py FOLDER

FOLDER/question.json says which functions of which file to call, FOLDER/inputs.safetensors has the arrays. For each call the child
writes FOLDER/0.safetensors, the arrays that were returned, and then FOLDER/0.json, what is wrong with the others; at the end
FOLDER/done.json. Where there are no processes, :mod:`numllama.learn.students` calls `run` itself.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

MOST_NAMES = 10_000  # that one call may return
MOST_ON_DISK = 2**30  # bytes of each file that the process writes
LONGEST = 300  # characters of a message


class Config(dict):
    """A dict whose entries are attributes too."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"config has no {name!r}: it has {', '.join(self)}")


class Closed(importlib.abc.MetaPathFinder):
    """Refuses to import a package."""

    def __init__(self, package, why):
        self.package, self.why = package, why

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == self.package:
            raise ImportError(self.why)


def limit(seconds, memory):
    """End this process if its parent does not, and keep it from filling the memory and the disk."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds) + 10)
    try:
        import resource
    except ImportError:  # not on Windows
        return
    for name, most in (("RLIMIT_DATA", memory), ("RLIMIT_FSIZE", MOST_ON_DISK), ("RLIMIT_CORE", 0)):
        kind = getattr(resource, name)
        allowed = [most, *(old for old in resource.getrlimit(kind) if old != resource.RLIM_INFINITY)]
        resource.setrlimit(kind, (min(allowed), min(allowed)))


def load(path):
    """The names that a file defines."""
    sys.path.append(os.path.dirname(path))  # behind all others: a neighbour called random.py must not hide Python's
    loader = importlib.machinery.SourceFileLoader("student", path)
    spec = importlib.util.spec_from_file_location("student", path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["student"] = module
    loader.exec_module(module)
    return module


def close(names, why):
    """Make functions of numllama.ops raise: they are what the file is to compute."""
    def closed(*_, **__):
        raise PermissionError(why)

    for name in names:
        for module in ("numllama.ops", f"numllama.ops.{name.rpartition('_')[0]}"):
            setattr(importlib.import_module(module), name, closed)


def in_words(error, path):
    """An exception in a sentence: "line 7 in attention: ValueError: matmul: ..."."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = ""
    if isinstance(error, SyntaxError) and error.filename == path:
        where = f"line {error.lineno}: "
    elif places:
        inside = "" if places[-1].name == "<module>" else f" in {places[-1].name}"
        where = f"line {places[-1].lineno}{inside}: "
    try:
        message = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    except Exception:
        message = "an exception without a message"
    if isinstance(error, SyntaxError) and "unicode error" in message:
        return "is not a text in UTF-8"
    if isinstance(error, SystemExit):
        return f"{where}ends the program ({type(error).__name__}: {message})"
    return f"{where}{type(error).__name__}{f': {message}' if message else ''}"[:LONGEST]


def as_array(value):
    """An array of real numbers, from whatever library; or what the value is instead."""
    if hasattr(value, "detach"):  # PyTorch
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except Exception:
        return None, f"is a {type(value).__name__} of which NumPy makes no array"
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        dtype = f" of dtype {array.dtype}" if hasattr(value, "dtype") else ""
        return None, f"is a {type(value).__name__}{dtype}, not an array of real numbers"
    return array, ""


def plain(array):
    """A copy in a format that every reader knows."""
    real = np.float32 if array.itemsize <= 4 else np.float64
    dtype = array.dtype if array.dtype.kind in "iub" else np.dtype(real)
    return np.array(array, dtype.newbyteorder("="), order="C")


def answer(result, most):
    """The arrays of a result by name, what is wrong with the others, and which of them are the same memory."""
    arrays, lost, places, shared = {}, {}, {}, {}
    for name, value in list(result.items())[:MOST_NAMES]:
        name = str(name)
        array, why = as_array(value)
        if array is None:
            lost[name] = why
            continue
        most -= array.nbytes
        if most < 0:
            return {}, {}, {}, f"returns too much: {name} has shape {array.shape}"
        if array.size > 1:
            first = places.setdefault((array.__array_interface__["data"][0], array.shape, array.strides), name)
            shared |= {name: first, first: name} if first != name else {}
        arrays[name] = plain(array)
    return arrays, lost, shared, ""


def run(question, inputs, write):
    """Load the file, call its functions, and ``write(name, arrays, **content)`` what they return."""
    path = question["path"]
    if question["closed_package"]:
        sys.meta_path.insert(0, Closed(*question["closed_package"]))
    if question["closed_functions"]:
        close(*question["closed_functions"])
    try:
        module = load(path)
        missing = [call["function"] for call in question["calls"] if not callable(getattr(module, call["function"], None))]
        problem = f"it does not define the function {missing[0]}" if missing else ""
    except BaseException as error:
        problem = in_words(error, path)
    write("loaded", problem=problem)
    if problem:
        return
    kept = None

    def given(argument):
        """An argument: a number; or {"arrays": prefix}, {"array": name}, {"config": ...}, {"tuple": ...}, {"kept": ...}."""
        if not isinstance(argument, dict):
            return argument
        ((kind, value),) = argument.items()
        if kind == "arrays":
            return {name.removeprefix(value): array.copy() for name, array in inputs.items() if name.startswith(value)}
        return {"array": lambda: inputs[value].copy(), "config": lambda: Config(value), "tuple": lambda: tuple(map(given, value)),
                "kept": lambda: kept}[kind]()  # fmt: skip

    for i, call in enumerate(question["calls"]):
        arrays, lost, shared, problem, blank = {}, {}, {}, "", False
        try:
            result = getattr(module, call["function"])(*map(given, call["arguments"]))
            if call["returns"] == "dict" and not isinstance(result, Mapping):
                problem = f"returns {'nothing' if result is None else f'a {type(result).__name__}'}, not a dict of arrays by name"
            elif call["returns"] == "output and cache":
                if not (isinstance(result, tuple) and len(result) == 2):
                    problem = "must return two things: the output and the cache"
                else:
                    result, kept = result
            if not problem:
                if not isinstance(result, Mapping):
                    result = dict(enumerate(result if isinstance(result, tuple | list) else [result]))
                arrays, lost, shared, problem = answer(result, question["most"])
        except BaseException as error:
            problem, blank = in_words(error, path), isinstance(error, NotImplementedError)
        write(i, arrays, problem=problem, blank=blank, lost=lost, shared=shared)
        if problem and call["returns"] == "output and cache":  # there is no cache for the next call
            break
    write("done")


def run_in(folder, question):
    """Run with the files of a folder."""
    from safetensors.numpy import load_file, save_file

    def write(name, arrays=None, **content):
        if arrays is not None:
            save_file(arrays, folder / f"{name}.safetensors")
        part = folder / f"{name}.part"
        part.write_text(json.dumps(content), encoding="utf-8")
        part.rename(folder / f"{name}.json")

    run(question, load_file(folder / "inputs.safetensors"), write)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
    sys.dont_write_bytecode = True
    wanted = json.loads((place / "question.json").read_text(encoding="utf-8"))
    limit(wanted["seconds"], wanted["memory"])
    run_in(place, wanted)
    with suppress(Exception):  # the file may have closed it
        sys.stdout.flush()
    os._exit(0)  # whatever threads the file has started
