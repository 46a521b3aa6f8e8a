"""Checksums: a JSON file holds its own, a folder lists those of its files.

    {"step": 250, ..., "seal": SHA-256 of the rest}
    FOLDER/checksums.json    {"files": {NAME: SHA-256}, ..., "seal": ...}
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from numllama.errors import CheckpointError, DamagedError, NumllamaError
from numllama.storage.files import is_there, json_object, json_text, read_bytes, read_json, reading, strict, write_json

CHECKSUMS, CONFIG = "checksums.json", "config.json"
DIGEST = re.compile("(?i)(sha256:|md5:)?[0-9a-f]{32,128}")
LARGE = (".bin", ".npy", ".safetensors")


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, made strict JSON, and their checksum under ``seal``."""
    values = strict(values)
    return {**values, "seal": checksum(values)}


def verified(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without their checksum, if any; ValueError if it is wrong."""
    values = dict(values)
    if "seal" in values and values.pop("seal") != checksum(values):
        raise ValueError("its checksum is wrong")
    return values


def read_verified(
    path: str | Path, error: type[NumllamaError] = DamagedError, legacy_keys: Collection[str] = ()
) -> dict[str, Any]:
    """Read a JSON object written :func:`with_checksum`, and remove the checksum.

    Every byte counts: ``1E-05`` in place of ``1e-05`` is damage.

    Parameters
    ----------
    path : path
    error : type
        Raised if the file differs from what was written or cannot be read. If it is DamagedError, a file that cannot be read (no
        permission, say) raises CheckpointError instead.
    legacy_keys : collection of str
        Keys of this file in versions that wrote no checksum: a file with no other keys may lack it.
    """
    content = read_bytes(path, CheckpointError if error is DamagedError else error)
    try:
        values = json_object(content, path, error)
    except error as failure:
        raise error(f"{path} is damaged: it {str(failure).removeprefix(f'{path} ')}") from failure
    if "seal" not in values:
        if values and set(values) <= set(legacy_keys):
            return values
        raise error(f"{path} is damaged: it lacks its checksum")
    with reading(path, error):
        without = verified(values)
        if json_text(values) != content:
            raise ValueError("its checksum is wrong")
        return without


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file of any size."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(
    folder: str | Path,
    names: Iterable[str],
    error: type[NumllamaError] = CheckpointError,
    known: Mapping[str, str] | None = None,
    **metadata: Any,
) -> None:
    """Write ``checksums.json``: the SHA-256 of files in a folder, and of itself.

    Parameters
    ----------
    folder : path
    names : iterable of str
        Existing files, relative to the folder.
    error : type
        Raised if the file cannot be written.
    known : mapping of str, optional
        Checksums of further files.
    metadata
        More values to store, such as the files' run.
    """
    folder = Path(folder)
    with reading(folder, error):
        sums = {**(known or {}), **{name: file_checksum(folder / name) for name in names}}
        sums = dict(sorted(sums.items()))
    write_json(folder / CHECKSUMS, with_checksum({**metadata, "files": sums}), error)


def read_checksums(folder: str | Path, error: type[NumllamaError] = DamagedError) -> dict[str, Any] | None:
    """The content of a folder's ``checksums.json``; None if there is none (older versions) or it is another program's."""
    path = Path(folder) / CHECKSUMS
    with reading(path, error):
        if not path.exists() or _is_anothers(read_json(path, error)):
            return None
        values = read_verified(path, error)
        _check_sums(values["files"])
        return values


def _is_anothers(values: Mapping[str, Any]) -> bool:
    """Whether this is another program's list of checksums; no single flipped byte makes ours look like one."""
    digests = [value for value in values.values() if isinstance(value, str) and DIGEST.fullmatch(value)]
    return not {"seal", "files"} & set(values) and bool(digests)


def check_files(folder: str | Path, error: type[NumllamaError] = DamagedError, large: bool = True) -> dict[str, Any] | None:
    """Check a folder's files against their list of checksums; returns the list with its metadata.

    The list is ``checksums.json``, or else a run's ``config.json``. Without either, nothing is checked and None is returned.

    Parameters
    ----------
    folder : path
    error : type
        Raised if a file is missing or differs from what was written.
    large : bool
        Check token files and weights too.
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
    """A run's config.json, which lists its write-once files; None for a model's config.json."""
    path = folder / CONFIG
    try:
        found = {"seal", "files", "id"} & set(read_json(path)) if is_there(path) else ()
    except NumllamaError:
        return None
    if len(found) < 2:  # damage may have destroyed one
        return None
    with reading(path, error):
        values = read_verified(path, error)
        _check_sums(values["files"])
        return values


def _check_sums(sums: Any) -> None:
    if not isinstance(sums, dict) or not all(isinstance(digest, str) for digest in sums.values()):
        raise ValueError("files must be checksums by name")
