"""Files: read within bounds, written whole or not at all.

A file that somebody else wrote may hold anything. :func:`reading` turns whatever goes wrong with it into one sentence that names
the file, so that no reader has to list the exceptions it thought of. A file of our own is written under a temporary name,
flushed to disk and renamed, so that a kill leaves the old content or the new one.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from numllama.errors import CheckpointError, DamagedError, NumllamaError, in_words, shown

PART = re.compile(r"\.part-(?:.+-)?(\d+)")  # a name that ends with the id of the process that writes it
STARTED = time.time()
_numbers = count(1)
MOST_JSON = 2**28  # bytes; the largest tokenizer.json that is published has 2**25
LONGEST_PATH = 500  # characters of a path in a sentence
DEEPEST = 100  # levels of lists and objects


# ------------------------------------------------------------------------------------------------ reading


@contextmanager
def reading(path: str | Path, error: type[NumllamaError] = CheckpointError) -> Iterator[None]:
    """Within it, whatever goes wrong with a file becomes one sentence that names the file.

    Parameters
    ----------
    path : path
        The file, or the folder, that is read.
    error : type
        The exception to raise. The package's own exceptions and MemoryError pass unchanged.
    """
    try:
        yield
    except (NumllamaError, MemoryError):
        raise
    except Exception as failure:
        raise error(f"{shown(path, quote=False, most=LONGEST_PATH)} {_what_went_wrong(failure)}") from failure


def _what_went_wrong(failure: Exception) -> str:
    """What is said of a file after its name."""
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
    """Whether a file or a folder has this name; False also for a name that none can have, of 300 letters or with a zero, say."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def regular(path: str | Path, error: type[NumllamaError] = CheckpointError) -> int:
    """The size of a regular file in bytes; a folder, a pipe or a device is refused, for it may have no end."""
    path = Path(path)
    with reading(path, error):
        try:
            about = path.stat()
        except FileNotFoundError as failure:
            raise error(f"{path.parent} has no {path.name}") from failure
        if stat.S_ISDIR(about.st_mode):
            raise error(f"{path} is a folder, but a file is needed")
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{path} is not a regular file")
        return about.st_size


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
    """A JSON object from the bytes of a file, nested no deeper than any real one is."""
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
    """Raise RecursionError for what is nested so deeply that whoever goes through it, to write it again say, might."""
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


# ------------------------------------------------------------------------------------------------ checksums


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON can hold them, and a checksum of them all under ``seal``."""
    values = strict(values)
    return {**values, "seal": checksum(values)}


def verified(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their checksum, if they have one; ValueError if it is wrong."""
    values = dict(values)
    if "seal" in values and values.pop("seal") != checksum(values):
        raise ValueError("its checksum is wrong")
    return values


def read_verified(path: str | Path, error: type[NumllamaError] = DamagedError, unsealed: Collection[str] = ()) -> dict[str, Any]:
    """A JSON object that was written :func:`with_checksum`, without its checksum.

    Every byte counts, even where another one would mean the same: ``1E-05`` for ``1e-05``, say.

    Parameters
    ----------
    path : path
    error : type
        Raised if the file is not what was written, or cannot be read; DamagedError only in the first case: a folder that may not
        be entered is not damaged, which is a CheckpointError then.
    unsealed : collection of str
        The keys of such a file in a version that wrote no checksum: one that holds no others may lack it.
    """
    content = read_bytes(path, CheckpointError if error is DamagedError else error)
    try:
        values = json_object(content, path, error)
    except error as failure:
        raise error(f"{path} is damaged: it {str(failure).removeprefix(f'{path} ')}") from failure
    if "seal" not in values:
        if values and set(values) <= set(unsealed):
            return values
        raise error(f"{path} is damaged: it lacks its checksum")
    with reading(path, error):
        without = verified(values)
        if _text(values) != content:
            raise ValueError("its checksum is wrong")
        return without


CHECKSUMS, CONFIG = "checksums.json", "config.json"
DIGEST = re.compile("(?i)(sha256:|md5:)?[0-9a-f]{32,128}")
LARGE = (".bin", ".npy", ".safetensors")


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's bytes, which need not fit into memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(
    folder: str | Path,
    names: Iterable[str],
    error: type[NumllamaError] = CheckpointError,
    known: Mapping[str, str] | None = None,
    **about: Any,
) -> None:
    """Write ``checksums.json``, which holds the SHA-256 of some files of a folder, and of itself.

    Parameters
    ----------
    folder : path
    names : iterable of str
        Files below it, by their names in it; they are on disk already.
    error : type
        Raised if it cannot be written.
    known : mapping of str, optional
        The checksums of more files.
    about
        More values to keep: which run the files belong to, say.
    """
    folder = Path(folder)
    with reading(folder, error):
        sums = {**(known or {}), **{name: file_checksum(folder / name) for name in names}}
        sums = dict(sorted(sums.items()))
    write_json(folder / CHECKSUMS, with_checksum({**about, "files": sums}), error)


def read_checksums(folder: str | Path, error: type[NumllamaError] = DamagedError) -> dict[str, Any] | None:
    """What a folder's ``checksums.json`` holds; None where there is none, as older versions wrote none, or another program's."""
    path = Path(folder) / CHECKSUMS
    with reading(path, error):
        if not path.exists() or _is_anothers(read_json(path, error)):
            return None
        values = read_verified(path, error)
        _check_sums(values["files"])
        return values


def _is_anothers(values: Mapping[str, Any]) -> bool:
    """Whether another program's list of checksums has the name of ours: one flipped byte cannot make ours look like it."""
    digests = [value for value in values.values() if isinstance(value, str) and DIGEST.fullmatch(value)]
    return not {"seal", "files"} & set(values) and bool(digests)


def check_files(folder: str | Path, error: type[NumllamaError] = DamagedError, large: bool = True) -> dict[str, Any] | None:
    """Raise an error unless all files that a folder lists are what was written; returns the list and what stands beside it.

    ``checksums.json`` is the list, or a run's ``config.json``. Without one nothing is checked, and None is returned.

    Parameters
    ----------
    folder : path
    error : type
    large : bool
        Check token files and weights too, and not only what is read at once.
    """
    folder = Path(folder)
    values = read_checksums(folder, error)
    where = CHECKSUMS if values else CONFIG
    values = values or _run_config(folder, error)
    hint = f" (delete {CHECKSUMS} if you changed it)" if where == CHECKSUMS else ""
    for name, digest in (values or {}).get("files", {}).items():
        path = folder / name
        if path.suffix in LARGE and not large:
            continue
        with reading(path, error):
            if not path.is_file():
                raise error(f"{path} is not there, but {folder / where} lists it")
            if file_checksum(path) != digest:
                raise error(f"{path} is not what was written: its checksum is wrong{hint}")
    return values


def _run_config(folder: Path, error: type[NumllamaError]) -> dict[str, Any] | None:
    """A run's config.json, which lists the files that are written once; a model's is none of our business here."""
    path = folder / CONFIG
    try:
        found = {"seal", "files", "id"} & set(read_json(path)) if is_there(path) else ()
    except NumllamaError:
        return None
    if len(found) < 2:  # damage may have taken one
        return None
    with reading(path, error):
        values = read_verified(path, error)
        _check_sums(values["files"])
        return values


def _check_sums(sums: Any) -> None:
    if not isinstance(sums, dict) or not all(isinstance(digest, str) for digest in sums.values()):
        raise ValueError("files is not what it should be")


# ------------------------------------------------------------------------------------------------ writing


def write_file(path: str | Path, write: Callable[[BinaryIO], Any], error: type[NumllamaError] = CheckpointError) -> None:
    """Write a file whole or not at all; what it held before stays until then.

    A device or a pipe (``/dev/stdout``) is written to, never replaced, and a link stays a link.

    Parameters
    ----------
    path : path
    write : callable
        Is given the open file.
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
        raise error(f"{path} could not be written: {failure.strerror or failure}") from failure


def is_device(path: str | Path) -> bool:
    """Whether a path leads to something that is there, and is neither a file nor a folder: a terminal, a pipe, ``/dev/null``."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _replace(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write beside a file, and put that in its place."""
    part = part_of(path)
    try:
        remove_leftovers(path)
        with open(part, "wb") as file:
            write(file)
            flush(file)
        os.replace(part, path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a file whole or not at all: see :func:`write_file`."""
    write_file(path, lambda file: file.write(content), error)


def write_text(path: str | Path, text: str, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a text file in UTF-8: see :func:`write_bytes`."""
    write_bytes(path, text.encode(), error)


def write_json(path: str | Path, values: Mapping[str, Any], error: type[NumllamaError] = CheckpointError) -> None:
    """Write a JSON file: see :func:`write_bytes`."""
    write_bytes(path, json_bytes(values), error)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Strict JSON, with a line for each value: see :func:`strict`."""
    return _text(strict(values), allow_nan=False)


def _text(values: Any, allow_nan: bool = True) -> bytes:
    return (json.dumps(values, indent=1, allow_nan=allow_nan) + "\n").encode()


def strict(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities, which JSON does not have, become None."""
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flush(file: BinaryIO) -> None:
    """Return when what was written to a file is on disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Return when a folder's names are on disk, so that a rename survives a power cut; OSError if that fails."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, and folders that may be written but not read
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------ parts


def part_of(path: Path) -> Path:
    """A name beside a file or folder for what is to take its place: no other thread or process has it."""
    return path.with_name(f".part-{path.name}-{next(_numbers)}-{os.getpid()}")


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes wrote to take the place of a file or folder."""
    mine = re.compile(rf"\.part-{re.escape(path.name)}(-\d+)?-\d+")
    with suppress(OSError):  # a folder that may be written but not read
        for left in [entry for entry in path.parent.iterdir() if mine.fullmatch(entry.name)]:
            if not is_alive(left):
                remove(left)


def is_alive(part: Path) -> bool:
    """Whether the process that writes a part, by its name, still may."""
    pid = int(PART.fullmatch(part.name)[1])
    if pid == os.getpid():  # or an earlier one of that id
        with suppress(OSError):
            return part.lstat().st_mtime >= STARTED
        return True
    if os.name == "nt":  # where an open file cannot be deleted, and kill() kills
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, as far as that is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
