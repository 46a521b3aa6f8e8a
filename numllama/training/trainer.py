"""The training loop: one report per step, read by the progress bar, the log, the plot and tests."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from numllama.cuda.launch import compile_seconds
from numllama.data.batches import Batch, Position, TrainingData
from numllama.data.epochs import Prefetched
from numllama.errors import CheckpointError, TrainingError
from numllama.model import Transformer
from numllama.parallel.group import WorkerGroup
from numllama.parallel.shards import Progress, ShardPlan, shard_count, shard_rows
from numllama.system.machine import training_settings
from numllama.system.processes import peak_memory_mb
from numllama.training import checkpoint
from numllama.training.checkpoint_writer import CheckpointWriter
from numllama.training.config import TrainConfig
from numllama.training.loss_scale import LossScale
from numllama.training.report import LossHistory, StepReport
from numllama.training.state import LOADED, RESUMED, check_continues

MAX_SKIPPED = 5  # consecutive steps without a finite loss, which end the run
TICK = 1e-9  # seconds; a short step may end within one tick of a coarse clock


class Trainer:
    """Trains a model; iterate over it for one :class:`StepReport` per step.

    Use it as a context manager to end the workers and wait for the last checkpoint: ``with Trainer(...) as trainer:``.

    Parameters
    ----------
    model : Transformer
        Changed in place.
    data : Dataset or Conversations
    config : TrainConfig
    out : path, optional
        The run's folder: config.json, tokenizer, checkpoints, and a line of metrics.jsonl per step. Default: nothing is written.
    workers : WorkerGroup, optional
        Threads, processes or ranks that run the shards of each step; default, those that `config` describes.

    Attributes
    ----------
    tell : callable
        Called with a warning for the user, such as that the log cannot be written. Default: print to stderr.
    step : int
        Number of steps done.
    windows : int
        Number of data windows used so far: where the next batch begins.
    loss_scale : LossScale
    """

    def __init__(
        self, model: Transformer, data: TrainingData, config: TrainConfig, out: str | Path | None = None,
        *, workers: WorkerGroup | None = None,
    ) -> None:  # fmt: skip
        config.check_seq_len(model.config.max_seq_len)
        seq_len, on_cpu = config.seq_len or model.config.max_seq_len, model.device == "cpu"
        data.check(model.config.vocab_size, seq_len)
        shards = config.shards or (shard_count(config.batch_size, seq_len) if on_cpu else 1)
        sampling = config.sampling or data.default_sampling
        self.config = c = replace(config, seq_len=seq_len, shards=shards, sampling=sampling)
        self.model, self.data, self.out = model, data, Path(out) if out else None
        self.batches = data.batches(c.batch_size, seq_len, c.seed, sampling)
        self.workers: WorkerGroup = c.make_workers(model) if workers is None else workers
        if self.workers.size > 1:
            same = {"model": model.config.to_dict(), "data": self._about_data["sha256"]}
            self.workers.require_same(c.to_dict() | same)
        self._plan = ShardPlan(c.batch_size, shards)
        self._read: Callable[[Position], Batch] = partial(self.batches.batch, rows=self.workers.local_rows(self._plan))
        self._prefetched = Prefetched(self._read, self._following) if sampling == "epochs" or not on_cpu else None
        self.optimizer = c.make_optimizer(self.workers.params)
        self._whole_step = self.workers.whole_step(
            self.optimizer, batch_size=c.batch_size, seq_len=seq_len, clip=c.clip, shards=shards, recompute=c.recompute,
            seed=c.seed, graph=c.graph,
        )  # fmt: skip
        self.step, self.windows, self._history, self.loss_scale = 0, 0, LossHistory(), LossScale(model.compute_dtype)
        self.tell: Callable[[str], object] = _tell
        self._writer = CheckpointWriter(self.out, c.keep, self.workers.rank == 0, lambda sentence: self.tell(sentence))

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *error: object) -> None:
        if missing := self.close():
            self.tell(missing)

    def __iter__(self) -> Iterator[StepReport]:
        writer = self._writer
        if self.out:
            writer.open(self.model, self.data, self.config, self.step)
        try:
            with training_settings(self.model.device):
                while self.step < self.config.steps:
                    report = self._step()
                    if self.out and writer.is_done():
                        writer.finish()
                    if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
                        report = replace(report, val_loss=self.estimate(), memory_mb=self._memory_mb())
                    if writer.log:
                        writer.log(report)
                    loss = report.val_loss
                    if self.out and loss is not None and math.isfinite(loss):  # never save broken weights
                        self._begin_save(loss)
                        if self.step == self.config.steps:
                            writer.finish()
                    yield report
        finally:  # the checkpoint is on disk when the loop exits; its error is raised by the next save or close()
            writer.wait()
            if writer.log:
                writer.log.pause()

    def _step(self) -> StepReport:
        c, start = self.config, time.perf_counter() - compile_seconds()  # compiling is not part of the speed
        position = Position(self.step + 1, self.windows)
        batch, lr = (self._prefetched or self._read)(position), c.learning_rate(position.step)
        if self._whole_step and self._whole_step.supports_batch(batch):
            loss, norm = self._whole_step(batch, position.step, lr)
        else:
            loss, norm = self._plain_step(batch, position.step, lr)
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.step, self.windows = position.step, position.windows + c.batch_size
        height = self._history.add(loss, finite, forgiven=self.loss_scale.adjusts and self.loss_scale.update(finite))
        if self._history.in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"the loss or its gradient was not finite for {MAX_SKIPPED} steps in a row, up to step {self.step}; "
                f"{self._writer.last_good()}; a lower learning rate may help"
            )
        seconds = max(time.perf_counter() - compile_seconds() - start, TICK)
        speed = (c.batch_size * batch.tokens.shape[1] / seconds, 1e3 * seconds)
        return StepReport(self.step, loss, lr, norm, *speed, self._memory_mb(), skipped=not finite, spike=height)

    def _following(self, position: Position) -> Position:
        return Position(position.step + 1, position.windows + self.config.batch_size)

    def _plain_step(self, batch: Batch, step: int, lr: float) -> tuple[float, float]:
        """Loss and gradient norm; parameters change only if both are finite."""
        c, scale = self.config, self.loss_scale.value
        loss, grads = self.workers.loss_and_grads(batch, self._plan, key=(c.seed, step), recompute=c.recompute, scale=scale)
        if scale != 1:
            grads.flat *= 1 / scale
        norm = self.workers.clip(grads, c.clip)
        if math.isfinite(loss) and math.isfinite(norm):
            self.workers.step(self.optimizer, grads, lr)
        return loss, norm

    @property
    def skipped(self) -> int:
        """Number of steps skipped because the loss or gradient was not finite."""
        return self._history.skipped

    def _memory_mb(self) -> float:
        if self.model.device != "cpu":
            own = self._whole_step.memory_bytes() if self._whole_step else 0
            return (self.model.xp.get_default_memory_pool().total_bytes() + own) / 1e6
        return peak_memory_mb(self.workers.pids)

    def estimate(self) -> float:
        """Mean loss over `eval_batches` batches of the validation split, the same in every call."""
        return self.evaluate(n=self.config.eval_batches)

    def evaluate(self, progress: Progress | None = None, n: int | None = None) -> float:
        """Mean loss over the whole validation split, every target once; or over `n` batches of it.

        `progress` is called with the number of rows done since its last call; the total is ``data.val_rows(seq_len)``.
        """
        with training_settings(self.model.device):
            return self.workers.mean_loss(self.batches.validation(n), shard_rows(*self._plan), progress)

    # -------------------------------------------------------------------------------------------- checkpoints

    @property
    def best(self) -> float:
        """The lowest validation estimate of a checkpoint so far."""
        return self._writer.best

    def save(self, val_loss: float | None = None) -> Path:
        """Save a checkpoint, and wait until it is on disk; the lowest `val_loss` so far makes it the best one.

        All ranks must call it; rank 0 writes.
        """
        with suppress(CheckpointError):  # this save replaces a failed one
            self._writer.finish()
        self._begin_save(val_loss)
        return self._writer.finish() or self._writer.folder() / checkpoint.step_name(self.step)

    def _begin_save(self, val_loss: float | None) -> None:
        """Copy everything, and start writing on a thread, after any earlier save has ended."""
        writer, data = self._writer, {**self._about_data, "windows": self.windows}
        writer.finish()
        writer.check_folder(self.step)
        writer.open(self.model, self.data, self.config, self.step)
        state = {"train": self.config.to_dict(), "data": data, **self._history.to_dict(), "scale": self.loss_scale.state}
        writer.begin(self.step, self.model, self.workers.gather_optimizer(self.optimizer), state, val_loss)

    def resume(self, fall_back: bool = False) -> list[str]:
        """Resume from the newest checkpoint in `out`, as if the run had never stopped.

        Parameters
        ----------
        fall_back : bool
            Rename a damaged checkpoint and use the one before, or start over if there is none. Otherwise damage is an error.

        Returns
        -------
        list of str
            One sentence per damaged checkpoint.
        """
        return self._writer.resume(self.workers, self._restore, fall_back)

    def _restore(self, folder: Path) -> dict[str, Any]:
        """Load a checkpoint; returns its state."""
        state = checkpoint.read_state(folder, (*LOADED, *RESUMED))
        check_continues(folder, state, self._about_data, self.config.optimizer)
        optimizer = self.workers.gather_optimizer(self.optimizer)
        checkpoint.load_checkpoint(folder, self.model, optimizer)
        self.workers.scatter_optimizer(self.optimizer, optimizer)
        self.step = state["step"]
        self.windows = state["data"].get("windows", self.step * self.config.batch_size)
        self._history.load(state)
        if state["dtype"] == self.model.compute_dtype.name and "scale" in state:
            self.loss_scale.load(state["scale"])
        return state

    @cached_property
    def _about_data(self) -> dict[str, Any]:
        """The identity of the data: name, sizes and checksum."""
        data, sums = self.data, self.batches.fingerprint()
        return {"name": data.name, "vocab_size": data.vocab_size, "train_tokens": len(data.train), "sha256": sums}

    def write_config(self, write: Callable[[Path], object] | None = None, **start: object) -> None:
        """Write the run's config.json, and the files that it names.

        `write` adds more files to the folder that it is given. `start` says how to start the run again; default: from the data.
        """
        self._writer.write_config(self.model, self.data, self.config, write, start)

    def close(self) -> str | None:
        """Wait for a save in progress, and end the workers; an error of the save is raised here.

        Returns a sentence if lines of the log could not be written.
        """
        self.workers.close()
        if self._prefetched:
            self._prefetched.close()
        missing = self._writer.close()
        self._writer.finish()
        return missing


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
