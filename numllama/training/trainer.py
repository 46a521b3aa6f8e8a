"""The training loop: one report for each step; the progress bar, the log, the plot and tests are readers of it."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from numllama.cuda.graph import training_step
from numllama.cuda.launch import compile_seconds
from numllama.data.dataset import Dataset
from numllama.data.epochs import Prefetched, epoch_batch
from numllama.data.token_files import TokenShards
from numllama.errors import CheckpointError, DamagedError, TrainingError, shown
from numllama.model import Transformer
from numllama.parallel.launched import communicator
from numllama.parallel.ranks import Ranks
from numllama.parallel.shards import Progress, Workers, shard_count, shard_rows
from numllama.system.machine import training_settings
from numllama.system.processes import peak_memory_mb
from numllama.training import checkpoint, run_folder
from numllama.training.config import TrainConfig
from numllama.training.metrics import METRICS, MetricsLog, flush_log
from numllama.training.report import SPIKE_STEPS, StepReport, spike
from numllama.training.state import LOADED, RESUMED

MAX_SKIPPED = 5  # so many steps in a row without a finite loss end the run
TICK = 1e-9  # seconds; some clocks stand still for longer than a short step takes
LARGEST_SCALE, STEPS_TO_GROW = 2.0**16, 2000  # of gradients in float16: see Trainer.scale


class Trainer:
    """Trains a model; iterate over it for one :class:`StepReport` a step.

    Parameters
    ----------
    model : Transformer
        Changed in place.
    data : Dataset
    config : TrainConfig
    out : path, optional
        The run's folder, which every command opens: its config.json, tokenizer, checkpoints, and a line of metrics.jsonl for each
        step. Without one nothing is written.

    Attributes
    ----------
    tell : callable
        Is told in a sentence what people should know at once, that the log cannot be written, say. Default: print to stderr.
    step : int
        How many steps were done.
    windows : int
        How many windows of the data were taken: the place where the next batch begins.
    best : float
        The lowest validation estimate of a checkpoint so far.
    skipped : int
        How many steps were skipped because something was not finite.
    scale : float
        What gradients are multiplied by on their way back, so that small ones survive in float16 (Micikevicius et al. 2018,
        section 3.2). Halved when one overflows, and its step is skipped; doubled after 2000 steps without. 1 in other dtypes.
    """

    def __init__(self, model: Transformer, data: Dataset, config: TrainConfig, out: str | Path | None = None) -> None:
        config.check_seq_len(model.config.max_seq_len)
        seq_len = config.seq_len or model.config.max_seq_len
        data.check(model.config.vocab_size, seq_len)
        on_cpu = model.device == "cpu"
        shards = config.shards or (shard_count(config.batch_size, seq_len) if on_cpu else 1)
        sampling = config.sampling or ("epochs" if isinstance(data.train, TokenShards) else "random")
        self.config = replace(config, seq_len=seq_len, shards=shards, sampling=sampling)
        self.model, self.data, self.out = model, data, Path(out) if out else None
        if config.parallel == "threads":
            self.workers = Workers(model, config.workers, processes=True)
        else:
            comm = communicator(config.parallel)
            comm.timeout = config.timeout
            self.workers = Ranks(model, comm, config.shard_optimizer, config.sum_by)
            same = {"model": model.config.to_dict(), "data": self._about_data["sha256"]}
            self.workers.check_same(self.config.to_dict() | same)
        self._rows = self.workers.rows(config.batch_size, shards) if isinstance(data, Dataset) else None
        self.optimizer = self.config.make_optimizer(self.workers.params)
        self.step, self.windows, self.skipped, self._skipped_in_a_row = 0, 0, 0, 0
        self.best, self._best_step = math.inf, None
        self._losses: deque[float] = deque(maxlen=SPIKE_STEPS)
        self._loader: Prefetched | None = None
        if isinstance(data, Dataset) and sampling == "epochs":
            self._loader = Prefetched(self._epoch_batch, config.batch_size)
        elif isinstance(data, Dataset) and not on_cpu:
            self._loader = Prefetched(self._random_batch, 1)           # while the GPU works, the processor draws
        self._writing: Future | None = None
        self._has_folder = self._has_config = self._resumed = False
        self._identity: str | None = None
        self._log: MetricsLog | None = None
        self.tell: Callable[[str], object] = _tell
        self.scale, self._steps_since_change = (LARGEST_SCALE if model.dtype == "float16" else 1.0), 0
        self._whole_step: Callable | None = None
        if not on_cpu and config.parallel == "threads" and model.adapter is None and isinstance(data, Dataset):
            c = self.config
            sizes = dict(batch_size=c.batch_size, seq_len=seq_len, clip=c.clip, shards=shards)
            self._whole_step = training_step(
                model, self.optimizer, **sizes, recompute=c.recompute, seed=c.seed, graph=c.graph
            )

    # -------------------------------------------------------------------------------------------- the loop

    def __iter__(self) -> Iterator[StepReport]:
        if self.out:
            self._begin_folder()
        try:
            with training_settings(self.model.device):
                while self.step < self.config.steps:
                    report = self._step()
                    if self._writing and self._writing.done():
                        self._end_save()
                    if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
                        report = replace(report, val_loss=self.estimate(), memory_mb=self._memory_mb())
                    if self._log:
                        self._log(report)
                    if self.out and _is_finite(report.val_loss):  # broken weights are no checkpoint
                        self._begin_save(report.val_loss)
                        if self.step == self.config.steps:
                            self._end_save()
                    yield report
        finally:  # whoever leaves the loop finds the checkpoint; an error of it waits for the next save, or close()
            if self._writing:
                wait([self._writing])
            if self._log:
                self._log.pause()

    def _step(self) -> StepReport:
        c, start = self.config, time.perf_counter() - compile_seconds()  # which are not the speed of training
        step = self.step + 1
        lr = c.learning_rate(step)
        tokens, targets, *segments = self._batch(step)
        if self._whole_step:
            loss, norm = self._whole_step(tokens, targets, step, lr)
        else:
            loss, norm = self._plain_step(tokens, targets, *segments, step=step, lr=lr)
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.step, self.windows = step, self.windows + c.batch_size
        self._note(finite)
        height = spike(loss, self._losses) if finite else None
        if finite:
            self._losses.append(float(loss))
        seconds = max(time.perf_counter() - compile_seconds() - start, TICK)
        speed = (c.batch_size * tokens.shape[1] / seconds, 1e3 * seconds)
        return StepReport(step, loss, lr, norm, *speed, self._memory_mb(), skipped=not finite, spike=height)

    def _plain_step(
        self, tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray | None = None, *, step: int, lr: float
    ) -> tuple[float, float]:
        """Loss and norm of the gradients; unless both are finite, no parameter has changed."""
        c = self.config
        options = dict(key=(c.seed, step), recompute=c.recompute, scale=self.scale)
        options |= {} if segments is None else dict(segments=segments)
        options |= {} if self._rows is None else dict(batch_size=c.batch_size)
        loss, grads = self.workers.loss_and_grads(tokens, targets, c.shards, **options)
        if self.scale != 1:
            grads.flat *= 1 / self.scale
        norm = self.workers.clip(grads, c.clip)
        if math.isfinite(loss) and math.isfinite(norm):
            self.workers.step(self.optimizer, grads, lr)
        return loss, norm

    def _batch(self, step: int) -> tuple[np.ndarray, ...]:
        """A step's inputs and targets, and segments if there are some; on ranks, the rows that this one computes."""
        c = self.config
        if self._loader:
            return self._loader(self.windows if c.sampling == "epochs" else step)
        if not isinstance(self.data, Dataset):
            return self.data.batch(c.batch_size, c.seq_len, c.seed, self.windows)
        return self._random_batch(step)

    def _random_batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        c, rows = self.config, () if self._rows is None else (self._rows,)
        return self.data.batch(c.batch_size, c.seq_len, c.seed, step, *rows)

    def _epoch_batch(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        return epoch_batch(self.data.train, c.batch_size, c.seq_len, c.seed, start, self._rows)

    def _note(self, finite: bool) -> None:
        """Count steps that were skipped, and end a run that does nothing else."""
        if self.model.dtype == "float16":
            self._steps_since_change += 1
            if not finite and self.scale > 1:
                self.scale, self._steps_since_change = self.scale / 2, 0
                self.skipped += 1
                return
            if self.scale < LARGEST_SCALE and self._steps_since_change >= STEPS_TO_GROW:
                self.scale, self._steps_since_change = 2 * self.scale, 0
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.skipped += not finite
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"the loss or its gradient was not finite for {MAX_SKIPPED} steps in a row, up to step {self.step}; "
                f"{self._last_good()}; a lower learning rate may help"
            )

    def _last_good(self) -> str:
        with suppress(CheckpointError):  # one that failed is not the last good one
            self._end_save()
        try:
            return f"the last good checkpoint is {checkpoint.find_step(self._folder())}"
        except (CheckpointError, ValueError):  # ValueError: there is no folder
            return "there is no checkpoint yet"

    def _memory_mb(self) -> float:
        if self.model.device != "cpu":
            own = self._whole_step.memory_bytes() if self._whole_step else 0
            return (self.model.xp.get_default_memory_pool().total_bytes() + own) / 1e6
        return peak_memory_mb(self.workers.pids)

    # -------------------------------------------------------------------------------------------- validation

    def estimate(self) -> float:
        """Mean loss over `eval_batches` batches of the validation split, always the same ones."""
        c = self.config
        return self._mean_loss(self.data.some_of_val(c.batch_size, c.seq_len, c.seed, c.eval_batches))

    def evaluate(self, progress: Progress | None = None) -> float:
        """Mean loss over the whole validation split, every target once.

        Parameters
        ----------
        progress : callable, optional
            Told how many more rows are done, now and then; in all there are ``data.val_rows(seq_len)``.
        """
        return self._mean_loss(self.data.all_of_val(self.config.batch_size, self.config.seq_len), progress)

    def _mean_loss(self, windows: Iterator[tuple[np.ndarray, ...]], progress: Progress | None = None) -> float:
        rows = shard_rows(self.config.batch_size, self.config.shards)
        with training_settings(self.model.device):
            return self.workers.mean_loss(windows, rows, progress)

    # -------------------------------------------------------------------------------------------- checkpoints

    def save(self, val_loss: float | None = None) -> Path:
        """Save a checkpoint, and wait until it is on the disk; if `val_loss` is the lowest so far, it is the best one.

        All ranks call it, and rank 0 writes.
        """
        with suppress(CheckpointError):  # of the save before, which this one makes up for
            self._end_save()
        self._begin_save(val_loss)
        return self._end_save() or self._folder() / checkpoint.step_name(self.step)

    def _begin_save(self, val_loss: float | None) -> None:
        """Copy everything, and let a thread write it; of two saves the second waits for the first."""
        self._end_save()
        out = self._folder()
        if self.step and self.workers.rank == 0 and not out.is_dir():
            raise CheckpointError(f"the checkpoint of step {self.step} could not be saved: the folder {out} is gone")
        self._begin_folder()
        is_best = val_loss is not None and val_loss < self.best
        best, best_step = (val_loss, self.step) if is_best else (self.best, self._best_step)
        state = {
            "train": self.config.to_dict(),
            "data": {**self._about_data, "windows": self.windows},
            "val_loss": val_loss,
            "best": best if math.isfinite(best) else None,
            "best_step": best_step,
            "losses": list(self._losses),
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "scale": [self.scale, self._steps_since_change],
            "run": self._identity,
        }
        optimizer = self.workers.whole(self.optimizer)
        if self.workers.rank:  # rank 0 saves
            self.best, self._best_step = best, best_step
            return
        snapshot = checkpoint.Snapshot.take(self.step, self.model, optimizer, state)
        thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = thread.submit(self._write, snapshot, best, best_step, self._log.mark)
        thread.shutdown(wait=False)  # it ends when it is done

    def _write(
        self, snapshot: checkpoint.Snapshot, best: float, best_step: int | None, mark: dict
    ) -> tuple[Path, float, int | None]:
        flush_log(self.out / METRICS)
        folder = snapshot.write(self.out)
        checkpoint.point(self.out, folder, best_step, self._identity, mark)
        checkpoint.prune(self.out, self.config.keep)
        return folder, best, best_step

    def _end_save(self) -> Path | None:
        """Wait for the save that goes on, if there is one; its error is raised here."""
        writing, self._writing = self._writing, None
        if writing is None:
            return None
        folder, self.best, self._best_step = writing.result()  # only now: a save that failed is tried again as a whole
        return folder

    def resume(self, fall_back: bool = False) -> list[str]:
        """Go on from the newest checkpoint in `out`, as if there had been no interruption.

        Parameters
        ----------
        fall_back : bool
            A checkpoint that is damaged is renamed, and the one before it is used; if there is none, the trainer stays at its
            beginning. Otherwise damage is an error.

        Returns
        -------
        list of str
            What was damaged, a sentence each.
        """
        out = self._folder()
        try:
            run_folder.check_run(out)
        except DamagedError as error:
            if not fall_back:
                raise
            self.tell(f"{error}; what this program knows of it is written anew")
        folders, damaged = checkpoint.step_folders(out), {}
        found = None
        if not fall_back and (not folders or (out / "latest.json").exists()):
            checkpoint.find_step(out)  # which says what is wrong, if something is
        self.workers.check_same({"checkpoint": [folder.name for folder in folders]})
        for folder in folders:
            try:
                found = self._restore(folder)
                break
            except DamagedError as error:
                if not fall_back:
                    raise
                damaged[folder] = str(error)
        self.workers.check_same({"checkpoint": [self.step, found]})  # all ranks have read, and read the same
        if self.workers.rank == 0:
            for folder in damaged:
                checkpoint.quarantine(folder)
            if len(damaged) < len(folders):
                checkpoint.point(out, folders[len(damaged)], self._best_step, self._identity)
        return list(damaged.values())

    def _restore(self, folder: Path) -> dict[str, str]:
        """Take over a checkpoint; returns its files' checksums."""
        state = checkpoint.read_state(folder, (*LOADED, *RESUMED))
        data, mine = state["data"], self._about_data
        if any(data.get(name, mine[name]) != mine[name] for name in ("train_tokens", "vocab_size", "sha256")):
            raise CheckpointError(f"{folder} was trained on other data: {shown(data.get('name'), quote=False)}")
        was, now = state["train"].get("optimizer"), self.config.optimizer
        if was != now:
            raise CheckpointError(f"{folder} was trained with {was}, whose moments no other has, but optimizer is {shown(now)}")
        optimizer = self.workers.whole(self.optimizer)
        checkpoint.load_checkpoint(folder, self.model, optimizer)
        self.workers.keep(self.optimizer, optimizer)
        self.step = state["step"]
        self.windows = data.get("windows", self.step * self.config.batch_size)
        self.best, self._best_step = state["best"], state.get("best_step")
        if self._best_step and not (self._folder() / checkpoint.step_name(self._best_step)).is_dir():
            self.best, self._best_step = state["val_loss"], self.step  # the best of those that are there
        self.best = math.inf if self.best is None else self.best
        self._losses = deque(state.get("losses", ()), maxlen=SPIKE_STEPS)
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        if state["dtype"] == self.model.dtype.name:
            self.scale, self._steps_since_change = state.get("scale", (self.scale, 0))
        self._has_folder = self._resumed = True
        self._identity, self._log = state.get("run"), None
        return state["sha256"]

    @cached_property
    def _about_data(self) -> dict:
        """What tells these data from others."""
        data = self.data
        return {"name": data.name, "vocab_size": data.vocab_size, "train_tokens": len(data.train), "sha256": data.checksums()}

    def _begin_folder(self) -> None:
        """Make the folder, which must not hold another run, and what is in it beside checkpoints; once, by rank 0."""
        if self.workers.rank:
            return
        self._make_folder()
        if not self._has_config:
            self.write_config()
        if self._log is None:
            mark = checkpoint.log_mark(self.out, self.step) if self._resumed else None
            self._log = MetricsLog(self.out / METRICS, self.step, self.tell, mark)

    def write_config(self, write: Callable[[Path], object] | None = None, **start: object) -> None:
        """Write the run's config.json, and the files that it keeps.

        Parameters
        ----------
        write : callable, optional
            Given a folder, writes more files into it that belong to the run.
        start
            How to start the run again; default what can be told from the data.
        """
        self._make_folder()
        about = self.model, self.data, self.config
        self._identity = run_folder.begin(self.out, *about, write, start, self._resumed, self._identity)
        self._has_config = True

    def _make_folder(self) -> None:
        if self._has_folder or self.workers.rank:
            return
        if checkpoint.step_folders(self.out):
            raise CheckpointError(f"{self.out} already holds a run: resume it, or choose another folder")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"the run's folder {self.out} cannot be made: {error.strerror}") from error
        self._has_folder = True

    def _folder(self) -> Path:
        if self.out is None:
            raise ValueError("this trainer was made without `out`, a folder for checkpoints")
        return self.out

    def close(self) -> str | None:
        """Wait for a save that goes on, and end the workers; an error of the save is raised here.

        Returns a sentence if lines of the log could not be written.
        """
        self.workers.close()
        if self._loader:
            self._loader.close()
        missing = self._log.close() if self._log else None
        self._end_save()
        return missing


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
