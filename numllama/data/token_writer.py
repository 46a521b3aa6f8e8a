"""Token files being written by ``numllama prepare``: shards of equal size, and a record of how much is on disk.

A stopped preparation resumes from the last save; bytes written after it are truncated and written again.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from numllama.data.token_files import OPENED_PIECES, checksum, describe_tokens
from numllama.errors import DataError
from numllama.storage.checksums import CHECKSUMS, write_checksums
from numllama.storage.files import put_in_place, write_json
from numllama.storage.tensor_file import map_array
from numllama.system.progress import progress_bar
from numllama.tokenizer import Tokenizer

STATE = "prepare.json"
SPLITS = ("train", "val")
PARTS_BETWEEN_SAVES = 16


def file_names(folder: Path, split: str, size: int, limit: int) -> list[Path]:
    """The file names of a split: one file, or numbered shards of at most `limit` each."""
    n = max(1, -(-size // limit))
    return [folder / f"{name}.bin" for name in ([split] if n == 1 else [f"{split}-{i:05}" for i in range(n)])]


class ShardFiles:
    """The token files of a split while they are being written.

    Parameters
    ----------
    out : path
    split : str
    limit : int
        Size in bytes of every file but the last.
    size : int
        Bytes known to be on disk. Bytes after them may be incomplete and are written again.
    """

    def __init__(self, out: Path, split: str, limit: int, size: int) -> None:
        self._out, self._split, self._limit, self._size = out, split, limit, size
        self._file: BinaryIO | None = None
        for i, path in enumerate(self.paths()):
            part, needed = self._part(i), min(limit, size - i * limit)
            if not path.exists() and needed > (part.stat().st_size if part.exists() else 0):
                raise DataError(f"{part} is shorter than {STATE} says: delete the folder, or choose another --out")

    def paths(self) -> list[Path]:
        """The final names of the files."""
        return file_names(self._out, self._split, self._size, self._limit)

    def _part(self, i: int) -> Path:
        return self._out / f"{self._split}-{i:05}.bin.part"

    def write(self, content: bytes) -> None:
        """Append to the current file; begin the next one when it is full."""
        while content:
            i, written = divmod(self._size, self._limit)
            if self._file is None:
                self._file = open(self._part(i), "ab")  # noqa: SIM115
                self._file.truncate(written)
            room = self._limit - written
            some, content = content[:room], content[room:]
            self._file.write(some)
            self._size += len(some)
            if len(some) == room:
                self.close()

    def flush(self) -> None:
        """Return once everything written is on disk."""
        if self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close the current file."""
        file, self._file = self._file, None
        if file:
            with file:
                file.flush()
                os.fsync(file.fileno())

    def name(self, describe: Callable[..., None]) -> None:
        """Give the files their final names; before that, ``describe(path, part, shards=count)`` describes each."""
        paths = self.paths()
        more = {"shards": len(paths)} if len(paths) > 1 else {}
        for i, path in enumerate(paths):
            if not path.exists():
                with open(self._part(i), "ab") as file:  # a split without tokens has no file yet
                    file.truncate(min(self._limit, self._size - i * self._limit))
                describe(path, self._part(i), **more)
                put_in_place(self._part(i), path)


class TokenWriter:
    """Appends to the token files, and records in `prepare.json` how much of them is on disk."""

    def __init__(self, out: Path, state: dict[str, Any], tokenizer: Tokenizer) -> None:
        self.out, self.state = out, state
        self.val_from = state["val_from"]
        self._size = tokenizer.dtype.itemsize
        self._written = state["done"], state["tokens"]  # one value, so that an interrupt finds it consistent
        self._unsaved = 0
        limit = state["settings"]["shard_tokens"] * self._size
        self._files = {split: ShardFiles(out, split, limit, n * self._size) for split, n in state["tokens"].items()}

    @property
    def done(self) -> int:
        """Number of characters encoded so far."""
        return self._written[0]

    def __enter__(self) -> Self:
        total = sum(self.state["characters"])
        self._bar = progress_bar(total=total, initial=self.done, unit=" characters", unit_scale=True, desc="encoding")
        return self

    def write(self, text: str, packed: bytes) -> None:
        """Append the ids of the next part of the text."""
        done, tokens = self._written
        split = SPLITS[done >= self.val_from]
        try:
            self._files[split].write(packed)
        except OSError as error:
            raise self._failed(error) from error
        self._written = done + len(text), {**tokens, split: tokens[split] + len(packed) // self._size}
        self._bar.update(len(text))
        self._unsaved += 1
        if self._unsaved >= PARTS_BETWEEN_SAVES:
            self._save()

    def _save(self) -> None:
        try:
            for files in self._files.values():
                files.flush()
        except OSError as error:
            raise self._failed(error) from error
        self.state["done"], self.state["tokens"] = self._written
        write_json(self.out / STATE, self.state, DataError)
        self._unsaved = 0

    def _failed(self, error: OSError) -> DataError:
        return DataError(f"the token files in {self.out} could not be written: {error.strerror}")

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        try:
            self._save()
        finally:
            for files in self._files.values():
                with suppress(OSError):
                    files.close()

    def finish(self, tokenizer: Tokenizer, end: str | None) -> None:
        """Give the files their final names, describe them, and write checksums."""
        more = {"tokenizer": "tokenizer.json"} | ({"end_of_text": tokenizer.special_tokens[end]} if end else {})

        def describe(path: Path, part: Path, **shards: int) -> None:
            dtype = tokenizer.dtype.newbyteorder("<")
            tokens = map_array(part, dtype) if part.stat().st_size else np.empty(0, dtype)
            metadata = more | {"checksum": checksum(tokens, OPENED_PIECES)} | shards
            describe_tokens(path, len(tokens), tokenizer.vocab_size, **metadata)

        try:
            for files in self._files.values():
                files.name(describe)
        except OSError as error:
            raise self._failed(error) from error
        names = {path.name for path in self.out.iterdir() if not path.name.startswith(".")} - {CHECKSUMS}
        write_checksums(self.out, names, DataError)
