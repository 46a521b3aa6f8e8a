"""metrics.jsonl: one line of strict JSON per step of a run.

A checkpoint records its size and checksum, so that a resumed run keeps exactly the lines that it had written.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from numllama.errors import CheckpointError
from numllama.storage.fields import check, number, optional, whole
from numllama.storage.files import read_bytes, strict, write_bytes
from numllama.training.report import StepReport

METRICS = "metrics.jsonl"
MOST_WAITING = 2**26  # bytes of lines that wait for disk space: about 300,000 steps
MOST_BYTES = 2**40
FIELDS = {"step": whole(0, 2**53), **dict.fromkeys(("loss", "val_loss", "tokens_per_second"), optional(number()))}


class MetricsLog:
    """Writes the log of a run; lines after the step at which the run resumes are dropped.

    A line that cannot be written waits until there is space: a full disk neither ends a run nor leaves a gap in its log.

    Parameters
    ----------
    path : path
    step : int
        The last step to keep.
    tell : callable
        Called once with a sentence if lines cannot be written.
    mark : mapping, optional
        The value of :attr:`mark` at that step; without it, or if the file does not match, all readable lines are kept.

    Attributes
    ----------
    mark : dict
        Number of bytes written, and their checksum.

    Raises
    ------
    NumllamaError
        Before the first step, if the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int, tell: Callable[[str], Any], mark: Mapping[str, Any] | None = None) -> None:
        content = read_bytes(path, most=MOST_BYTES) if path.exists() else b""
        if mark and is_whole(content, mark):
            kept = content[: content.rfind(b"\n", 0, mark["bytes"]) + 1]  # a full disk may have cut the last line short
        else:
            if mark and path.exists():
                tell(f"{path} is not what was written: its checksum is wrong. Its readable lines are kept")
            kept = "".join(_line(line) for line in _lines(content) if line["step"] <= step).encode()
        if kept != content or not path.exists():
            write_bytes(path, kept)
        self._path, self._tell, self._waiting, self._lost, self._why = path, tell, bytearray(), 0, None
        self._file: BinaryIO | None = None
        self._bytes, self._digest = len(kept), hashlib.sha256(kept)

    @property
    def mark(self) -> dict[str, Any]:
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}

    def __call__(self, report: StepReport) -> None:
        if len(self._waiting) < MOST_WAITING:
            self._waiting += _line(report.to_dict()).encode()
        else:
            self._lost += 1
        first = self._why is None
        self._write()
        if first and self._why:
            self._tell(f"{self._path} cannot be written: {self._why}. The run continues, and writes its log as soon as it can")

    def _write(self) -> None:
        try:
            while self._waiting:
                if self._file is None:
                    self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  a buffer would write a part of a line twice
                done = self._file.write(self._waiting)
                self._digest.update(self._waiting[:done])
                self._bytes += done
                del self._waiting[:done]
        except OSError as error:
            self._why = error.strerror or str(error)

    def pause(self) -> None:
        """Close the file until the next line, unless lines are waiting."""
        if not self._waiting:
            self.close()

    def close(self) -> str | None:
        """Close the log; returns a sentence if lines are missing."""
        self._write()
        if self._file:
            with suppress(OSError):
                self._file.close()
        self._file = None
        missing = self._lost + self._waiting.count(b"\n")
        return f"{missing} line(s) of {self._path} could not be written: {self._why}" if missing else None


def flush_log(path: Path) -> None:
    """Flush a log to disk, so that after a power cut it is no shorter than its checkpoint says."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def is_whole(content: bytes, mark: Mapping[str, Any]) -> bool:
    """Whether a log still begins with the bytes described by this :attr:`MetricsLog.mark`."""
    size = mark.get("bytes")
    return isinstance(size, int) and len(content) >= size and hashlib.sha256(content[:size]).hexdigest() == mark.get("sha256")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that are damaged or cut short by a kill.

    Raises
    ------
    CheckpointError
        If there is no file, or it cannot be read.
    """
    return _lines(read_bytes(path, CheckpointError, MOST_BYTES))


def _lines(content: bytes) -> list[dict[str, Any]]:
    lines = []
    for line in content.decode("utf-8", "replace").splitlines():
        with suppress(ValueError):
            lines.append(parse_line(line))
    return lines


def parse_line(text: str | bytes) -> dict[str, Any]:
    """One line: a ``step``, a ``loss`` (NaN if it was not finite), and any other values logged.

    Raises
    ------
    ValueError
        If it is not a valid line; the message says why.
    """
    try:
        line = json.loads(text, parse_constant=lambda name: None)  # NaN and infinities in logs that are not strict JSON
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(line, dict) or "step" not in line or "loss" not in line:
        raise ValueError("it has no step and loss")
    check(line, FIELDS)
    return {**line, "loss": math.nan if line["loss"] is None else float(line["loss"])}


def _line(values: dict[str, Any]) -> str:
    return json.dumps(strict(values), allow_nan=False) + "\n"
