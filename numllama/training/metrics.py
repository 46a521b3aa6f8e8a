"""metrics.jsonl: a line of strict JSON for each step of a run."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from numllama.errors import CheckpointError, NumllamaError
from numllama.storage.fields import check, number, optional, whole
from numllama.storage.files import read_bytes, strict, write_text
from numllama.training.trainer import StepReport

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

    Raises
    ------
    NumllamaError
        Before the first step, if the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int, tell: Callable[[str], Any]) -> None:
        kept = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
        write_text(path, "".join(map(_line, kept)))
        try:
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  a buffer would write twice what it could not write once
        except OSError as error:
            raise NumllamaError(f"{path} cannot be written: {error.strerror}") from error
        self._path, self._tell, self._waiting, self._lost, self._why = path, tell, bytearray(), 0, None

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
                del self._waiting[: self._file.write(self._waiting)]
        except OSError as error:
            self._why = error.strerror or str(error)

    def close(self) -> str | None:
        """End the log; returns a sentence if it is not whole."""
        self._write()
        with suppress(OSError):
            self._file.close()
        missing = self._lost + self._waiting.count(b"\n")
        return f"{missing} line(s) of {self._path} could not be written: {self._why}" if missing else None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; one that a kill cut short, or that is damaged, is left out.

    Raises
    ------
    CheckpointError
        If there is no file, or it cannot be read.
    """
    text = read_bytes(path, CheckpointError, MOST_BYTES).decode("utf-8", "replace")
    lines = []
    for line in text.splitlines():
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
