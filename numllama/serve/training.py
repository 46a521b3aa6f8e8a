"""Runs in progress, as others write them: their logs, and what their models write by now."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from numllama.errors import NumllamaError
from numllama.generation import SamplingConfig
from numllama.serve.engine import Engine, Request
from numllama.tokenizer import Tokenizer
from numllama.training import load_run
from numllama.training.checkpoint import find_step
from numllama.training.metrics import parse_line

LOG = "metrics.jsonl"
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
    """

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self._file, self._position = path, [], 0, 0

    def read(self) -> bool:
        """Take in what is new, and say whether anything is."""
        try:
            with open(self.path, "rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._file or about.st_size < self._position:  # another run, or steps are done again
                    self.lines, self._position, self._file = [], 0, about.st_ino
                file.seek(self._position)
                new = file.read()
        except OSError:
            return False
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be being written
        self._position += len(whole)
        for text in whole.splitlines():
            if (line := parse_line(text)) is not None:
                self.lines.append(line)
        return bool(whole)


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
        except (NumllamaError, ValueError, OSError) as error:
            self.samples = [(step, f"({error})"), *self.samples][:KEPT_SAMPLES]
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
        with suppress(NumllamaError, ValueError):
            return int(find_step(self.folder).name.removeprefix("step-"))
        return None
