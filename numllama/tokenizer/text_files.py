"""Text files read in parts, whatever their size."""

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from numllama.errors import DataError

BLOCK = 2**20  # bytes


def as_paths(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """One path or several, as a list; each must be a file."""
    paths = [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]
    if not paths:
        raise ValueError("files is empty, but at least one text file is needed")
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path} is a folder, but a text file is needed" if path.is_dir() else f"{path} does not exist")
    return paths


def read_parts(path: Path, errors: str = "strict", start: int = 0) -> Iterator[str]:
    """The text of a UTF-8 file from a byte on, line ends as they are.

    Raises
    ------
    DataError
        If it cannot be read, or is not UTF-8: says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    done = start
    try:
        with open(path, "rb") as file:
            file.seek(start)
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
            "errors='replace' (--errors replace) reads it all the same"
        ) from error


def not_empty(paths: Sequence[Path]) -> None:
    """Raise DataError if there is no text at all."""
    if not any(path.stat().st_size for path in paths):
        raise DataError(f"{paths[0]} is empty" if len(paths) == 1 else f"{paths[0]} and all the other files are empty")


def each_part(paths: Iterable[Path], errors: str) -> Iterator[str]:
    """The texts of several files, one after another."""
    for path in paths:
        yield from read_parts(path, errors)
