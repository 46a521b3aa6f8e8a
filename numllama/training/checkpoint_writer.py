"""CheckpointWriter: writes a run's folder for its trainer."""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numllama.errors import CheckpointError, DamagedError
from numllama.system.webassembly import thread_pool
from numllama.training import checkpoint, run_folder
from numllama.training.metrics import METRICS, MetricsLog, flush_log

if TYPE_CHECKING:
    from numllama.data.batches import TrainingData
    from numllama.model import Transformer
    from numllama.optim.optimizer import Optimizer
    from numllama.parallel.group import WorkerGroup
    from numllama.training.config import TrainConfig


class CheckpointWriter:
    """Writes a run's config.json, log and checkpoints, the checkpoints on a thread while training continues.

    Parameters
    ----------
    out : path, optional
        The run's folder; without one, nothing is written.
    keep : int
        Number of recent checkpoints to keep, besides the best one.
    is_writer : bool
        Whether this rank writes; True on one rank only.
    tell : callable
        Called with a sentence if the log cannot be written.

    Attributes
    ----------
    best : float
        The lowest validation loss of a checkpoint so far.
    best_step : int, optional
    log : MetricsLog, optional
        Opened at the first step.
    """

    def __init__(self, out: Path | None, keep: int, is_writer: bool, tell: Callable[[str], object]) -> None:
        self.out, self.keep, self.is_writer, self._tell = out, keep, is_writer, tell
        self.best: float = math.inf
        self.best_step: int | None = None
        self.log: MetricsLog | None = None
        self._writing: Future | None = None
        self._has_folder = self._has_config = self._is_resumed = False
        self._identity: str | None = None

    def folder(self) -> Path:
        """The run's folder; ValueError if there is none."""
        if self.out is None:
            raise ValueError("this trainer was made without `out`, a folder for checkpoints")
        return self.out

    # -------------------------------------------------------------------------------------------- the folder

    def open(self, model: "Transformer", data: "TrainingData", config: "TrainConfig", step: int) -> None:
        """Create the folder, its config.json and its log if missing; the folder must not hold another run."""
        if not self.is_writer:
            return
        self._make_folder()
        if not self._has_config:
            self.write_config(model, data, config)
        if self.log is None:
            out = self.folder()
            mark = checkpoint.log_mark(out, step) if self._is_resumed else None
            self.log = MetricsLog(out / METRICS, step, self._tell, mark)

    def write_config(
        self,
        model: "Transformer",
        data: "TrainingData",
        config: "TrainConfig",
        write: Callable[[Path], object] | None = None,
        start: Mapping[str, object] | None = None,
    ) -> None:
        """Write config.json and the files that it names: see :func:`run_folder.begin`."""
        self._make_folder()
        about = model, data, config, write, start or {}
        self._identity = run_folder.begin(self.folder(), *about, self._is_resumed, self._identity)
        self._has_config = True

    def _make_folder(self) -> None:
        if self._has_folder or not self.is_writer:
            return
        out = self.folder()
        if checkpoint.step_folders(out):
            raise CheckpointError(f"{out} already holds a run: resume it, or choose another folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the run's folder {out} cannot be made: {error.strerror}") from error
        self._has_folder = True

    # -------------------------------------------------------------------------------------------- writing

    def check_folder(self, step: int) -> None:
        """CheckpointError if the folder has vanished since the run began."""
        if step and self.is_writer and not self.folder().is_dir():
            raise CheckpointError(f"the checkpoint of step {step} could not be saved: the folder {self.out} is gone")

    def begin(
        self, step: int, model: "Transformer", optimizer: "Optimizer", state: dict[str, Any], val_loss: float | None
    ) -> None:
        """Copy everything, and start writing on a thread; the lowest `val_loss` so far makes the best checkpoint."""
        best, best_step = self.best, self.best_step
        if val_loss is not None and val_loss < best:
            best, best_step = val_loss, step
        if not self.is_writer:
            self.best, self.best_step = best, best_step
            return
        assert self.log is not None, "open() comes first"
        named = {"best": best if math.isfinite(best) else None, "best_step": best_step, "run": self._identity}
        snapshot = checkpoint.Snapshot.take(step, model, optimizer, {**state, "val_loss": val_loss, **named})
        thread = thread_pool(1, "checkpoint")
        self._writing = thread.submit(self._write, snapshot, best, best_step, self.log.mark)
        thread.shutdown(wait=False)  # it ends with its work

    def _write(
        self, snapshot: checkpoint.Snapshot, best: float, best_step: int | None, mark: dict
    ) -> tuple[Path, float, int | None]:
        out = self.folder()
        flush_log(out / METRICS)
        folder = snapshot.write(out)
        checkpoint.point(out, folder, best_step, self._identity, mark)
        checkpoint.prune(out, self.keep)
        return folder, best, best_step

    def is_done(self) -> bool:
        """Whether a save has ended, or failed, and :meth:`finish` has not collected it yet."""
        return self._writing is not None and self._writing.done()

    def finish(self) -> Path | None:
        """Wait for a save in progress, if any; its error is raised here."""
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        folder, self.best, self.best_step = writing.result()  # only now: after a failed save, nothing has changed
        return folder

    def wait(self) -> None:
        """Wait for a save in progress; its error is raised by the next save, or at the end."""
        if self._writing:
            wait([self._writing])

    def last_good(self) -> str:
        """The last good checkpoint, in words."""
        with suppress(CheckpointError):  # a failed save is not the last good one
            self.finish()
        try:
            return f"the last good checkpoint is {checkpoint.find_step(self.folder())}"
        except (CheckpointError, ValueError):  # ValueError: there is no folder
            return "there is no checkpoint yet"

    # -------------------------------------------------------------------------------------------- resuming

    def resume(self, workers: "WorkerGroup", load: Callable[[Path], dict[str, Any]], fall_back: bool) -> list[str]:
        """Load the newest step folder, or with `fall_back` the newest that is not damaged; see :meth:`Trainer.resume`.

        `load` loads a step folder and returns its state. All ranks must load the same one.
        """
        out = self.folder()
        try:
            run_folder.check_run(out)
        except DamagedError as error:
            if not fall_back:
                raise
            self._tell(f"{error}; it is rewritten from this program's settings")
        folders, damaged = checkpoint.step_folders(out), {}
        if not fall_back and (not folders or (out / "latest.json").exists()):
            checkpoint.find_step(out)  # raises the right error, if there is one
        workers.require_same({"checkpoint": [folder.name for folder in folders]})
        state: dict[str, Any] = {}
        for folder in folders:
            try:
                state = load(folder)
                self._restored(state)
                break
            except DamagedError as error:
                if not fall_back:
                    raise
                damaged[folder] = str(error)
        workers.require_same({"checkpoint": [state.get("step"), state.get("sha256")]})
        if self.is_writer:
            for folder in damaged:
                checkpoint.quarantine(folder)
            if len(damaged) < len(folders):
                checkpoint.point(out, folders[len(damaged)], self.best_step, self._identity)
        return list(damaged.values())

    def _restored(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.best, self.best_step = state["best"], state.get("best_step")
        if self.best_step and not (self.folder() / checkpoint.step_name(self.best_step)).is_dir():
            self.best, self.best_step = state["val_loss"], state["step"]  # the best of the remaining ones
        self.best = math.inf if self.best is None else self.best
        self._has_folder = self._is_resumed = True
        self._identity, self.log = state.get("run"), None

    def close(self) -> str | None:
        """Close the log; returns a sentence if lines are missing."""
        return self.log.close() if self.log else None
