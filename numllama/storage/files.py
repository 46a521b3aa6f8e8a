"""Files: read within limits, and written completely or not at all.

A file from elsewhere may hold anything. :func:`reading` turns every failure to read it into one sentence that names the file, so
readers do not have to list exceptions. Our own files are written under a temporary name, flushed to disk and renamed: a kill
leaves either the old content or the new.
"""

import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from numllama.errors import CheckpointError, NumllamaError, in_words, shown
from numllama.system.webassembly import IN_WEBASSEMBLY

PART = re.compile(r"\.part-(?:.+-)?(\d+)")  # the name ends with the id of the writing process
STARTED = time.time()
_numbers = count(1)
MOST_JSON = 2**28  # bytes; the largest published tokenizer.json has 2**25
LONGEST_PATH = 500  # characters, in an error message
DEEPEST = 100  # levels of lists and objects


# ------------------------------------------------------------------------------------------------ reading


@contextmanager
def reading(path: str | Path, error: type[NumllamaError] = CheckpointError) -> Iterator[None]:
    """Turn any exception raised inside into one sentence that names the file.

    Parameters
    ----------
    path : path
        The file or folder being read.
    error : type
        Exception to raise. The package's own exceptions and MemoryError pass unchanged.
    """
    try:
        yield
    except (NumllamaError, MemoryError):
        raise
    except Exception as failure:
        raise error(f"{shown(path, quote=False, most=LONGEST_PATH)} {_what_went_wrong(failure)}") from failure


def _what_went_wrong(failure: Exception) -> str:
    """The rest of a sentence that begins with the file's name."""
    if isinstance(failure, FileNotFoundError):
        return "does not exist"
    if isinstance(failure, OSError):
        return f"cannot be read: {failure.strerror or failure}"
    if isinstance(failure, RecursionError):
        return "is nested too deeply"
    if isinstance(failure, KeyError):
        return f"is damaged: it lacks {shown(failure.args[0] if failure.args else None)}"
    return f"is damaged: {in_words(failure)}"


def is_there(path: str | Path) -> bool:
    """Whether a file or folder of this name exists; False for impossible names (300 letters, a NUL) too."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def regular(path: str | Path, error: type[NumllamaError] = CheckpointError) -> int:
    """The size in bytes of a regular file; folders, pipes and devices, which may be endless, are refused."""
    path = Path(path)
    with reading(path, error):
        try:
            status = path.stat()
        except FileNotFoundError as failure:
            raise error(f"{path.parent} has no {path.name}") from failure
        if stat.S_ISDIR(status.st_mode):
            raise error(f"{path} is a folder, but a file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{path} is not a regular file")
        return status.st_size


def read_bytes(path: str | Path, error: type[NumllamaError] = CheckpointError, most: int = MOST_JSON) -> bytes:
    """The content of a regular file of at most `most` bytes."""
    path = Path(path)
    size = regular(path, error)
    if size > most:
        raise error(f"{path} has {size:,} bytes, but at most {most:,} are read")
    with reading(path, error):
        return path.read_bytes()


def read_json(path: str | Path, error: type[NumllamaError] = CheckpointError) -> dict[str, Any]:
    """A JSON object from a file."""
    return json_object(read_bytes(path, error), path, error)


def json_object(content: bytes, path: str | Path, error: type[NumllamaError] = CheckpointError) -> dict[str, Any]:
    """A JSON object from the bytes of a file; excessive nesting is refused."""
    try:
        values = json.loads(content.decode("utf-8"))
        _check_depth(values)
    except RecursionError as failure:
        raise error(f"{path} is not JSON: it is nested too deeply") from failure
    except ValueError as failure:
        raise error(f"{path} is not JSON: {in_words(failure)}") from failure
    if not isinstance(values, dict):
        raise error(f"{path} holds no JSON object")
    return values


def _check_depth(values: Any) -> None:
    """Raise RecursionError for values nested so deeply that recursive code, such as json.dumps, might fail on them."""
    level = [values]
    for _ in range(DEEPEST):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise RecursionError


# ------------------------------------------------------------------------------------------------ writing


def write_file(path: str | Path, write: Callable[[BinaryIO], Any], error: type[NumllamaError] = CheckpointError) -> None:
    """Write a file completely or not at all; until then its old content stays.

    Devices and pipes (``/dev/stdout``) are written to, never replaced; a link stays a link.

    Parameters
    ----------
    path : path
    write : callable
        Called with the open file.
    error : type
        Raised if the file cannot be written.
    """
    try:
        if is_device(path):
            with open(path, "wb") as file:
                write(file)
        else:
            _replace(Path(os.path.realpath(path)), write)
    except OSError as failure:
        name = shown(path, quote=False, most=300)
        raise error(f"{name} could not be written: {failure.strerror or failure}") from failure


def is_device(path: str | Path) -> bool:
    """Whether a path exists and is neither a file nor a folder: a terminal, a pipe, ``/dev/null``."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a temporary file in the same folder, then rename it."""
    part = part_of(path)
    try:
        remove_leftovers(path)
        with open(part, "wb") as file:
            write(file)
            flush(file)
        put_in_place(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def put_in_place(part: Path, path: Path) -> None:
    """Give a finished part, whose content is on disk, its final name; returns when the name is on disk too."""
    os.replace(part, path)
    flush_folder(path.parent)


def write_bytes(path: str | Path, content: bytes, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a file atomically: see :func:`write_file`."""
    write_file(path, lambda file: file.write(content), error)


def write_text(path: str | Path, text: str, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a text file in UTF-8: see :func:`write_bytes`."""
    write_bytes(path, text.encode(), error)


def write_json(path: str | Path, values: Mapping[str, Any], error: type[NumllamaError] = CheckpointError) -> None:
    """Write a JSON file: see :func:`write_bytes`."""
    write_bytes(path, json_bytes(values), error)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Strict JSON, one value per line: see :func:`strict`."""
    return json_text(strict(values), allow_nan=False)


def json_text(values: Any, allow_nan: bool = True) -> bytes:
    """The bytes of a JSON file with these values."""
    return (json.dumps(values, indent=1, allow_nan=allow_nan) + "\n").encode()


def strict(value: Any) -> Any:
    """A value that JSON can hold: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flush(file: BinaryIO) -> None:
    """Return once everything written to a file is on disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Return once a folder's names are on disk, so that a rename survives a power cut; OSError if that fails."""
    if IN_WEBASSEMBLY:  # the files are in a page's memory, and WASI refuses
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or a folder with write but no read permission
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------ parts


def part_of(path: Path) -> Path:
    """A temporary name, in the same folder, that no other thread or process uses."""
    return path.with_name(f".part-{path.name}-{next(_numbers)}-{os.getpid()}")


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files and folders that killed processes left for this path."""
    mine = re.compile(rf"\.part-{re.escape(path.name)}(-\d+)?-\d+")
    with suppress(OSError):  # a folder with write but no read permission
        for left in [entry for entry in path.parent.iterdir() if mine.fullmatch(entry.name)]:
            if not is_alive(left):
                remove(left)


def is_alive(part: Path) -> bool:
    """Whether the process that writes a part, identified by its name, may still be running."""
    match = PART.fullmatch(part.name)
    assert match is not None, part
    pid = int(match[1])
    if pid == os.getpid():  # or an earlier process of that id
        with suppress(OSError):
            return part.lstat().st_mtime >= STARTED
        return True
    if os.name == "nt":  # an open file cannot be deleted there, and os.kill would kill
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def remove(path: Path) -> None:
    """Delete a file, or a folder with its content, as far as permissions allow."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
