"""Text files of any size, read in parts."""

import codecs
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from numllama.errors import DataError
from numllama.storage.files import reading

BLOCK = 2**20  # bytes


def as_paths(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list; each must be a file."""
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise ValueError("files is empty, but at least one text file is needed")
    for path in paths:
        kind = file_kind(path)
        if kind == stat.S_IFDIR:
            raise DataError(f"{path} is a folder, but a text file is needed")
        if kind == stat.S_IFIFO:
            raise DataError(f"{path} is a pipe, which can be read only once, but a text file is needed")
        if kind != stat.S_IFREG:
            raise DataError(f"{path} is a device, but a text file is needed")
    return paths


def file_kind(path: Path) -> int:
    """The file type, ``stat.S_IFREG``, ``stat.S_IFDIR``, ``stat.S_IFIFO``, ...; DataError if the path does not exist."""
    with reading(path, DataError):
        return stat.S_IFMT(path.stat().st_mode)


def read_parts(path: Path, errors: str = "strict") -> Iterator[str]:
    """Read a UTF-8 file in parts, keeping line ends.

    Raises
    ------
    DataError
        If it cannot be read, or is not UTF-8; the error gives the position.
    """
    if errors not in ("strict", "replace"):
        raise ValueError(f"errors is {errors!r}, but must be strict or replace")
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    done = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                kept = len(decoder.getstate()[0])  # the first bytes of a character that the last block cut through
                yield decoder.decode(block)
                done += len(block)
            kept = len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        at = done - kept + error.start
        raise DataError(
            f"{path} is not UTF-8 text: byte {at} is 0x{error.object[error.start]:02x}; "
            "errors='replace' (--errors replace) reads it anyway"
        ) from error


def not_empty(paths: Sequence[Path]) -> None:
    """Raise DataError if there is no text at all."""
    if not any(path.stat().st_size for path in paths):
        raise DataError(f"{paths[0]} is empty" if len(paths) == 1 else f"{paths[0]} and all the other files are empty")
