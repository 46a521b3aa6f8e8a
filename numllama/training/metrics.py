"""metrics.jsonl: a line of strict JSON for each step of a run.

A checkpoint says how many bytes of it there were, and their checksum, so that a run resumes with the lines that it has written.
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
MOST_WAITING = 2**26  # bytes of lines that wait for room on the disk: some 300,000 steps
MOST_BYTES = 2**40
FIELDS = {"step": whole(0, 2**53), **dict.fromkeys(("loss", "val_loss", "tokens_per_second"), optional(number()))}


class MetricsLog:
    """Writes the lines of a run; those after the step that the run resumes from are dropped.

    A line that cannot be written waits, and is written as soon as there is room: a full disk neither ends a run nor leaves a gap
    in its log.

    Parameters
    ----------
    path : path
    step : int
        The last step whose line stays.
    tell : callable
        Is told once, in a sentence, that lines cannot be written.
    mark : mapping, optional
        What :attr:`mark` was at that step; without one, or if the file does not agree, the lines that can be read stay.

    Attributes
    ----------
    mark : dict
        How many bytes are written, and their checksum.

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
                tell(f"{path} is not what was written: its checksum is wrong. The lines that can be read stay")
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
            self._tell(f"{self._path} cannot be written: {self._why}. The run goes on, and its log is written when it can be")

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
        """Close the file until there is another line, unless lines wait for it."""
        if not self._waiting:
            self.close()

    def close(self) -> str | None:
        """End the log; returns a sentence if lines are missing in it."""
        self._write()
        if self._file:
            with suppress(OSError):
                self._file.close()
        self._file = None
        missing = self._lost + self._waiting.count(b"\n")
        return f"{missing} line(s) of {self._path} could not be written: {self._why}" if missing else None


def flush_log(path: Path) -> None:
    """Return when what is written of a log is on disk, so that no power cut leaves less than a checkpoint says."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def is_whole(content: bytes, mark: Mapping[str, Any]) -> bool:
    """Whether a log begins with what was written of it when :attr:`MetricsLog.mark` was this."""
    size = mark.get("bytes")
    return isinstance(size, int) and len(content) >= size and hashlib.sha256(content[:size]).hexdigest() == mark.get("sha256")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill cut short, or that is damaged, is left out.

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
    """One line: a ``step``, a ``loss``, which is NaN where it was not finite, and whatever else was logged.

    Raises
    ------
    ValueError
        If it is none, with the reason.
    """
    try:
        line = json.loads(text, parse_constant=lambda name: None)  # NaN and infinities of logs that were no strict JSON
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(line, dict) or "step" not in line or "loss" not in line:
        raise ValueError("it has no step and loss")
    check(line, FIELDS)
    return {**line, "loss": math.nan if line["loss"] is None else float(line["loss"])}


def _line(values: dict[str, Any]) -> str:
    return json.dumps(strict(values), allow_nan=False) + "\n"
