"""The program that runs somebody's file in a process of its own. It imports nothing of numllama.

    python child.py FOLDER

FOLDER/question.json says which functions of which file to call, FOLDER/inputs.safetensors has the arrays. For each call the child
writes FOLDER/0.safetensors, the arrays that were returned, and then FOLDER/0.json, what is wrong with the others; at the end
FOLDER/done.json.
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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FunctionType

import numpy as np

MOST_NAMES = 10_000  # that one call may return
MOST_ON_DISK = 2**30  # bytes of each file that the process writes
LONGEST = 300  # characters of a message
FORGOTTEN = ": did you forget return?"


class Named(dict):
    """A dict whose entries are attributes too."""

    def __init__(self, entries, name="config"):
        super().__init__(entries)
        object.__setattr__(self, "_name", name)

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(f"{self._name} has no {name!r}: it has {', '.join(self)}")


class Closed(importlib.abc.MetaPathFinder):
    """Refuses to import a package."""

    def __init__(self, package, why):
        self.package, self.why = package, why

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == self.package:
            raise ImportError(self.why)


class Only(importlib.abc.MetaPathFinder):
    """Lets the files of a folder import only some packages, Python's own modules, and each other."""

    def __init__(self, allowed, folder):
        self.allowed, self.folder = {*allowed, *sys.stdlib_module_names}, folder

    def find_spec(self, fullname, path=None, target=None):
        name = fullname.partition(".")[0]
        frame = sys._getframe(1)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame and in_folder(frame, self.folder) and name not in self.allowed and not self.is_neighbour(name):
            allowed = ", ".join(sorted(self.allowed - set(sys.stdlib_module_names)))
            raise ImportError(f"{name} is closed while a file is graded: only {allowed} and Python's own modules may be imported")

    def is_neighbour(self, name):
        place = os.path.join(self.folder, name)
        return os.path.exists(f"{place}.py") or os.path.isdir(place)


def in_folder(frame, folder):
    """Whether a frame is that of a file in a folder."""
    return os.path.dirname(frame.f_code.co_filename) == folder


class ClosedFolders(importlib.abc.MetaPathFinder):
    """Refuses to import what stands in the folders of a package; its own files may be imported."""

    def __init__(self, place, why):
        self.place, self.why = place, why

    def find_spec(self, fullname, path=None, target=None):
        package, *below = fullname.split(".")
        if package == self.place.name and below and (len(below) > 1 or (self.place / below[0]).is_dir()):
            raise ImportError(f"{fullname} is closed while a file is checked: {self.why}")


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


@contextmanager
def closed(names, why):
    """Make functions of numllama.ops raise wherever they are kept, in cpu/ and cuda/ too, and close the package's folders."""
    ops, dispatch = map(importlib.import_module, ("numllama.ops", "numllama.dispatch"))
    importlib.import_module("numllama.cuda.launch")
    for function in vars(ops).values():  # an op that stays open finds its faster version now: later nothing is found
        if hasattr(function, "reference") and function.__name__ not in names:
            dispatch._twin("cpu", function.reference)
    place = Path(str(ops.__file__)).parents[1]
    replaced = [(each, each.__code__) for each in functions_of(place.name, set(names))]
    finder = ClosedFolders(place, why)
    sys.meta_path.insert(0, finder)
    for function, code in replaced:
        function.__code__ = refusing(code, f"numllama's {function.__name__} is closed while a file is checked: {why}")
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for function, code in replaced:
            function.__code__ = code


def functions_of(package, names):
    """The functions of a package that have one of these names, each once; those that another one is put before, too."""
    found = {}
    places = tuple(f"{package}.{folder}." for folder in ("ops", "cpu", "cuda"))
    for module in [module for name, module in sys.modules.items() if name.startswith(places)]:
        for value in vars(module).values():
            for each in (value, getattr(value, "reference", None)):
                if type(each) is FunctionType and each.__name__ in names:
                    found[id(each)] = each
    return list(found.values())


RAISING = compile("def f(*_, **__): raise PermissionError('why')", "closed", "exec").co_consts[0]


def refusing(code, sentence):
    """Code that raises, in the place of a function's own."""
    constants = tuple(sentence if each == "why" else each for each in RAISING.co_consts)
    return RAISING.replace(co_consts=constants, co_name=code.co_name, co_qualname=code.co_qualname, co_freevars=code.co_freevars)


def refuse_to_read(place, path):
    """Raise for a file in a folder of the package."""
    if isinstance(path, str | bytes | os.PathLike):
        folder, *below = os.path.relpath(os.path.abspath(os.fsdecode(path)), place).split(os.sep)
        if below and folder not in ("..", "__pycache__"):
            raise PermissionError(f"numllama/{folder} is closed while a file is checked")


PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")


def guard():
    """Until this process ends, refuse to start programs and to read the package's folders."""
    place = Path(__file__).resolve().parents[1]

    def hook(event, given):
        if event == "open":
            refuse_to_read(place, given[0])
        elif event in PROGRAMS:
            raise PermissionError("a file that is graded cannot start other programs")

    sys.addaudithook(hook)


def crash_of(error, path):
    """Where and how a file has raised: line, function, error and message."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return {"line": error.lineno or 0, "function": "", "error": "SyntaxError", "message": one_line(error.msg)}
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line, function = (places[-1].lineno or 0, places[-1].name) if places else (0, "")
    try:
        message = one_line(str(error))
    except Exception:
        message = "an exception without a message"
    function = "" if function == "<module>" else function
    return {"line": line, "function": function, "error": type(error).__name__, "message": message}


def one_line(text):
    return " ".join(str(text).split())[:LONGEST]


def in_words(error, path):
    """An exception in a sentence: "line 7 in attention: ValueError: matmul: ..."."""
    crash = crash_of(error, path)
    kind, message = crash["error"], crash["message"]
    inside = f" in {crash['function']}" if crash["function"] else ""
    where = f"line {crash['line']}{inside}: " if crash["line"] else ""
    if isinstance(error, SyntaxError) and "unicode error" in message:
        return "is not a text in UTF-8"
    if isinstance(error, SystemExit):
        return f"{where}ends the program ({kind}: {message})"
    return f"{where}{kind}{f': {message}' if message else ''}"[:LONGEST]


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
        return None, f"is a {type(value).__name__}{dtype}, not an array of real numbers{FORGOTTEN if value is None else ''}"
    return array, ""


def plain(array):
    """A copy in a format that every reader knows."""
    real = np.float32 if array.itemsize <= 4 else np.float64
    dtype = array.dtype if array.dtype.kind in "iub" else np.dtype(real)
    return np.array(array, dtype.newbyteorder("="), order="C")


def answer(result, most):
    """The arrays of a result by name, and the parts of an Answer that say more of them."""
    arrays, lost, places, shared, narrow = {}, {}, {}, {}, {}
    for name, value in list(result.items())[:MOST_NAMES]:
        name = str(name)
        array, why = as_array(value)
        if array is None:
            lost[name] = why
            continue
        most -= array.nbytes
        if most < 0:
            return {}, {"problem": f"returns too much: {name} has shape {array.shape}"}
        if array.size > 1:
            first = places.setdefault((array.__array_interface__["data"][0], array.shape, array.strides), name)
            shared |= {name: first, first: name} if first != name else {}
        dtype = str(getattr(value, "dtype", "")).rpartition(".")[2]  # "torch.float16"
        if dtype in ("float16", "bfloat16"):
            narrow[name] = dtype
        arrays[name] = plain(array)
    return arrays, {"lost": lost, "shared": shared, "narrow": narrow}


def filled(error, folder, arguments, most):
    """As :func:`answer`, for the dicts that the functions of a folder's files were filling when one of them raised."""
    given = set(map(id, arguments))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if in_folder(frame, folder)]
    values = [value for frame in frames for value in frame.f_locals.values() if id(value) not in given]
    found = {}
    for each in sorted((value for value in values if isinstance(value, dict)), key=len):
        found |= {name: value for name, value in each.items() if hasattr(value, "shape")}
    return answer(found, most)


def arrays_in(value, name, depth=4):
    """Each array inside of an argument, and its place: "0", "1.x"."""
    if isinstance(value, np.ndarray):
        yield name, value
    elif depth and isinstance(value, Mapping):
        for key, each in value.items():
            yield from arrays_in(each, f"{name}.{key}", depth - 1)
    elif depth and isinstance(value, tuple | list):
        for key, each in zip(getattr(value, "_fields", range(len(value))), value, strict=False):
            yield from arrays_in(each, f"{name}.{key}", depth - 1)


def nothing(problem=""):
    """The parts of an Answer without arrays."""
    return {"problem": problem, "blank": False, "crash": None, "lost": {}, "shared": {}, "narrow": {}, "changed": []}


def call_one(function, call, arguments, most):
    """What a function returns: the parts of an Answer, and the result itself."""
    said = nothing()
    given = [] if call["returns"] == "dict" else [pair for i, each in enumerate(arguments) for pair in arrays_in(each, str(i))]
    before = [array.tobytes() for _, array in given]
    result = function(*arguments)
    said["changed"] = [name for (name, array), old in zip(given, before, strict=True) if array.tobytes() != old]
    kept = None
    if call["returns"] == "dict" and not isinstance(result, Mapping):
        kind = "nothing" if result is None else f"a {type(result).__name__}"
        said["problem"] = f"returns {kind}, not a dict of arrays by name{FORGOTTEN if result is None else ''}"
    elif call["returns"] == "output and cache":
        if isinstance(result, tuple) and len(result) == 2:
            result, kept = result
        else:
            said["problem"] = f"must return two things: the output and the cache{FORGOTTEN if result is None else ''}"
    arrays = {}
    if not said["problem"]:
        if not isinstance(result, Mapping):
            result = dict(enumerate(result if isinstance(result, tuple | list) and call["returns"] != "array" else [result]))
        arrays, more = answer(result, most)
        said |= more
    return said, arrays, kept


def run(question, inputs, write, own_process=False):
    """Load the file, call its functions, and ``write(name, arrays, **content)`` what they return; then all is as it was."""
    path, folder = question["path"], os.path.dirname(question["path"])
    calls, functions, paths = question["calls"], {}, list(sys.path)
    with ExitStack() as stack:
        stack.callback(sys.path.__setitem__, slice(None), paths)
        stack.callback(sys.modules.pop, "student", None)
        if question["closed_package"]:
            closed_package = Closed(*question["closed_package"])
            sys.meta_path.insert(0, closed_package)
            stack.callback(sys.meta_path.remove, closed_package)
        if question["closed_functions"]:
            stack.enter_context(closed(*question["closed_functions"]))
        if question["only"]:
            only = Only(question["only"] + ["numllama"] * bool(question["closed_functions"]), folder)
            sys.meta_path.insert(0, only)
            stack.callback(sys.meta_path.remove, only)
        if own_process:
            guard()
        problem, crash = "", None
        try:
            module = load(path)
            functions = {call["function"]: getattr(module, call["function"], None) for call in calls}
            if not any(map(callable, functions.values())):
                problem = f"it does not define the function {next(iter(functions))}"
        except BaseException as error:
            problem, crash = in_words(error, path), crash_of(error, path)
        write("loaded", problem=problem, crash=crash)
        if problem:
            return
        kept = None

        def given(argument):
            """An argument: a number; or {"arrays": prefix}, {"array": name}, {"named": {...}}, {"tuple": ...}, {"kept": ...}."""
            if not isinstance(argument, dict):
                return argument
            ((kind, value),) = argument.items()
            if kind == "arrays":
                return {name.removeprefix(value): array.copy() for name, array in inputs.items() if name.startswith(value)}
            if kind == "named":
                name, entries = value
                return Named({key: given(each) for key, each in entries.items()}, name)
            if kind == "tuple":
                return tuple(map(given, value))
            return {"array": lambda: inputs[value].copy(), "config": lambda: Named(value), "kept": lambda: kept}[kind]()

        for i, call in enumerate(calls):
            function = functions[call["function"]]
            said: dict = nothing(f"it does not define the function {call['function']}")
            arrays, arguments = {}, list(map(given, call["arguments"]))
            try:
                if callable(function):
                    said, arrays, kept = call_one(function, call, arguments, question["most"])
            except BaseException as error:
                if call["returns"] == "dict":
                    with suppress(Exception):  # what was computed before counts
                        arrays, more = filled(error, folder, arguments, question["most"])
                        said |= more
                said |= {"problem": in_words(error, path), "blank": isinstance(error, NotImplementedError)}
                said["crash"] = None if said["blank"] else crash_of(error, path)
            write(i, arrays, **said)
            if said["problem"] and call["returns"] == "output and cache":  # there is no cache for the next call
                break
        write("done")


def run_in(folder, question, own_process=False):
    """Run with the files of a folder."""
    from safetensors.numpy import load_file, save_file

    def write(name, arrays=None, **content):
        if arrays is not None:
            save_file(arrays, folder / f"{name}.safetensors")
        part = folder / f"{name}.part"
        part.write_text(json.dumps(content), encoding="utf-8")
        part.rename(folder / f"{name}.json")

    run(question, load_file(folder / "inputs.safetensors"), write, own_process)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
    sys.dont_write_bytecode = True
    wanted = json.loads((place / "question.json").read_text(encoding="utf-8"))
    limit(wanted["seconds"], wanted["memory"])
    run_in(place, wanted, own_process=True)
    with suppress(Exception):  # the file may have closed it
        sys.stdout.flush()
    os._exit(0)  # whatever threads the file has started
