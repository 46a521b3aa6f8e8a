"""Files: read within bounds, written whole or not at all.

A file that somebody else wrote may hold anything. :func:`reading` turns whatever goes wrong with it into one sentence that names
the file, so that no reader has to list the exceptions it thought of. A file of our own is written under a temporary name,
flushed to disk and renamed, so that a kill leaves the old content or the new one.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from numllama.errors import CheckpointError, NumllamaError, shown

MOST_JSON = 2**28  # bytes; the largest tokenizer.json that is published has 2**25


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
    except FileNotFoundError as failure:
        raise error(f"{path} does not exist") from failure
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror or failure}") from failure
    except RecursionError as failure:
        raise error(f"{path} is nested too deeply") from failure
    except KeyError as failure:
        raise error(f"{path} is damaged: it lacks {shown(failure.args[0] if failure.args else None)}") from failure
    except Exception as failure:
        raise error(f"{path} is damaged: {shown(str(failure), quote=False, most=300)}") from failure


def read_bytes(path: str | Path, error: type[NumllamaError] = CheckpointError, most: int = MOST_JSON) -> bytes:
    """The content of a regular file of at most `most` bytes; a pipe or a device is refused."""
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
        if about.st_size > most:
            raise error(f"{path} has {about.st_size:,} bytes, but at most {most:,} are read")
        return path.read_bytes()


def read_json(path: str | Path, error: type[NumllamaError] = CheckpointError) -> dict[str, Any]:
    """A JSON object from a file."""
    content = read_bytes(path, error)
    try:
        values = json.loads(content.decode("utf-8"))
    except RecursionError as failure:
        raise error(f"{path} is not JSON: it is nested too deeply") from failure
    except ValueError as failure:
        raise error(f"{path} is not JSON: {shown(str(failure), quote=False, most=300)}") from failure
    if not isinstance(values, dict):
        raise error(f"{path} holds no JSON object")
    return values


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


# ------------------------------------------------------------------------------------------------ writing


def write_bytes(path: str | Path, content: bytes, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a file whole or not at all; what it held before stays until then."""
    path = Path(path)
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    try:
        with open(part, "wb") as file:
            file.write(content)
            flush(file)
        os.replace(part, path)
        flush_folder(path.parent)
    except OSError as failure:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise error(f"{path} could not be written: {failure.strerror}") from failure


def write_text(path: str | Path, text: str, error: type[NumllamaError] = CheckpointError) -> None:
    """Write a text file in UTF-8: see :func:`write_bytes`."""
    write_bytes(path, text.encode(), error)


def write_json(path: str | Path, values: Mapping[str, Any], error: type[NumllamaError] = CheckpointError) -> None:
    """Write a JSON file: see :func:`write_bytes`."""
    write_bytes(path, json_bytes(values), error)


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Strict JSON, with a line for each value: see :func:`strict`."""
    return (json.dumps(strict(values), indent=1, allow_nan=False) + "\n").encode()


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
