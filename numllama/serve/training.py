"""Runs in progress, as others write them: their logs, and what their models write by now."""

import asyncio
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from numllama.errors import NumllamaError, shown
from numllama.generation import SamplingConfig
from numllama.interop import load_run
from numllama.serve.engine import Engine, Request
from numllama.tokenizer import Tokenizer
from numllama.training.checkpoint import find_step
from numllama.training.metrics import FIELDS, parse_line

LOG = "metrics.jsonl"
MOST_AT_ONCE = 2**24  # bytes of it that are read at a time
SAMPLE_TOKENS, KEPT_SAMPLES = 200, 8


def runs_in(folder: Path) -> list[str]:
    """The names of the runs in a folder, the one that was written to last before the others."""
    with suppress(OSError):
        logs = [(log.stat().st_mtime, log.parent.name) for log in folder.glob(f"*/{LOG}")]
        return [name for _, name in sorted(logs, reverse=True)]
    return []


class Log:
    """The lines of a metrics.jsonl; what was read once is not read again.

    Attributes
    ----------
    lines : list of dict
        ``step`` and ``loss`` of each, and those of ``val_loss`` and ``tokens_per_second`` that it has: all of them numbers. A
        step without a finite loss has no line.
    problem : str or None
        One sentence on what in the file is no line of a run's log.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._file = path, 0
        self._begin()

    def _begin(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.problem: str | None = None
        self._position = self._seen = 0

    def read(self) -> bool:
        """Take in what is new, and say whether anything is."""
        try:
            with open(self.path, "rb", opener=_without_waiting) as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise OSError(None, "it is not a regular file")
                if about.st_ino != self._file or about.st_size < self._position:  # another run, or steps are done again
                    self._begin()
                    self._file = about.st_ino
                file.seek(self._position)
                new = file.read(MOST_AT_ONCE)
        except FileNotFoundError:
            return False
        except OSError as error:
            before, self.problem = self.problem, f"{LOG} cannot be read: {error.strerror}"
            return self.problem != before
        # The last line may still be being written, unless it is longer than any line is.
        whole = new if len(new) == MOST_AT_ONCE and b"\n" not in new else new[: new.rfind(b"\n") + 1]
        self._position += len(whole)
        for text in whole.splitlines():
            self._seen += 1
            try:
                line = parse_line(text)
            except ValueError as error:
                sentence = f"{LOG} has lines that are none of a run's log, the first is line {self._seen}"
                self.problem = self.problem or f"{sentence}: {shown(str(error), quote=False)}"
            else:
                if isfinite(line["loss"]):
                    values = {name: float(line[name]) for name in FIELDS if line.get(name) is not None}
                    self.lines.append({**values, "step": line["step"]})
        return bool(whole)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file, but do not wait for whoever may write to it, should it be a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


class Watch:
    """One run, as a page shows it.

    Attributes
    ----------
    log : Log
    samples : list of (int, str)
        A text by each checkpoint that was seen, with its step, the latest first.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, Log(folder / LOG)
        self.samples: list[tuple[int, str]] = []
        self._busy = False

    @property
    def is_due(self) -> bool:
        """Whether there is a checkpoint that has not written anything yet."""
        step = self._latest()
        return not self._busy and step is not None and all(step != seen for seen, _ in self.samples)

    async def sample(self, engine: Engine) -> None:
        """Let the latest checkpoint write something."""
        if not self.is_due:
            return
        self._busy, step = True, self._latest()
        try:
            self.samples = [(step, await self._sample(engine)), *self.samples][:KEPT_SAMPLES]
        except Exception as error:  # whatever another process has written there: it is said where the text would be
            self.samples = [(step, f"({error or type(error).__name__})"), *self.samples][:KEPT_SAMPLES]
        finally:
            self._busy = False

    async def _sample(self, engine: Engine) -> str:
        model, tokenizer = await asyncio.to_thread(self._load)
        known: Sequence[str] = getattr(tokenizer, "characters", "\n")  # BPE knows every character
        prompt = "\n" if "\n" in known else known[0]
        room = SAMPLE_TOKENS if model.config.positions != "learned" else min(SAMPLE_TOKENS, model.config.max_seq_len - 1)
        request = Request(prompt, room, SamplingConfig(temperature=0.8, seed=0))
        texts = await engine.submit([request], model, tokenizer)
        return "".join([piece.text async for piece in texts.pieces(0.05)]).strip()

    def _load(self) -> tuple[Any, Any]:
        return load_run(self.folder, which="latest"), Tokenizer.load(self.folder)

    def _latest(self) -> int | None:
        with suppress(NumllamaError, ValueError, OSError):
            return int(find_step(self.folder).name.removeprefix("step-"))
        return None
