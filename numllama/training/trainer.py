"""The training loop: one report for each step; the progress bar, the log, the plot and tests are readers of it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from numllama.dispatch import training_step
from numllama.errors import CheckpointError, TrainingError
from numllama.model import Transformer
from numllama.optim import clip_grad_norm, cosine_schedule
from numllama.processes import peak_memory_mb
from numllama.training import checkpoint
from numllama.training.config import TrainConfig
from numllama.training.data import Dataset, all_windows, random_batch
from numllama.training.parallel import Workers, shard_count, training_settings

MAX_SKIPPED = 5  # so many steps in a row without a finite loss end the run
LARGEST_SCALE, STEPS_TO_GROW = 2.0**16, 2000  # of gradients in float16: see Trainer.scale
VAL_STREAM = 2**32  # validation estimates draw their batches apart from any training step


@dataclass(frozen=True)
class StepReport:
    """What happened in one step.

    Attributes
    ----------
    step : int
        From 1.
    loss : float
        Mean over the batch, in nats for each token, before the step.
    lr : float
    grad_norm : float
        Before clipping.
    tokens_per_second, ms_per_step : float
        Of this step, evaluation not included.
    memory_mb : float
        The most memory that the workers have used so far (of the GPU's, on a GPU).
    skipped : bool
        The loss or the gradient was not finite, and no step was taken.
    val_loss : float, optional
        Estimate on the validation split, at the steps where there is one.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    ms_per_step: float
    memory_mb: float
    skipped: bool = False
    val_loss: float | None = None

    def to_dict(self) -> dict:
        """Plain values, without those that are not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Trainer:
    """Trains a model; iterate over it for one :class:`StepReport` a step.

    Parameters
    ----------
    model : Transformer
        Changed in place.
    data : Dataset
    config : TrainConfig
    out : path, optional
        The run's folder, where checkpoints go. Without one nothing is written.

    Attributes
    ----------
    step : int
        How many steps were done.
    best : float
        The lowest validation estimate so far.
    skipped : int
        How many steps were skipped because something was not finite.
    scale : float
        What gradients are multiplied by on their way back, so that small ones survive in float16 (Micikevicius et al. 2018,
        section 3.2). Halved when one overflows, and its step is skipped; doubled after 2000 steps without. 1 in other dtypes.
    """

    def __init__(self, model: Transformer, data: Dataset, config: TrainConfig, out: str | Path | None = None) -> None:
        seq_len = config.seq_len or model.config.max_seq_len
        if seq_len > model.config.max_seq_len:
            raise ValueError(f"seq_len is {seq_len}, but the model's max_seq_len is {model.config.max_seq_len}")
        data.check(model.config.vocab_size, seq_len)
        on_cpu = model.device == "cpu"
        shards = config.shards or (shard_count(config.batch_size, seq_len) if on_cpu else 1)
        self.config = replace(config, seq_len=seq_len, shards=shards)
        self.model, self.data, self.out = model, data, Path(out) if out else None
        self.optimizer = self.config.make_optimizer(model.params)
        self.step, self.best, self.skipped, self._skipped_in_a_row = 0, math.inf, 0, 0
        self.scale, self._steps_since_change = (LARGEST_SCALE if model.dtype == "float16" else 1.0), 0
        self.workers = Workers(model, config.workers, processes=True)
        self._whole_step: Callable | None = None
        if not on_cpu:
            c = self.config
            sizes = dict(batch_size=c.batch_size, seq_len=seq_len, clip=c.clip, shards=shards)
            self._whole_step = training_step(
                model, self.optimizer, **sizes, recompute=c.recompute, seed=c.seed, graph=c.graph
            )

    # -------------------------------------------------------------------------------------------- the loop

    def __iter__(self) -> Iterator[StepReport]:
        if self.out and self.step == 0 and (self.out / "latest.json").exists():
            raise CheckpointError(f"{self.out} already holds a run: resume it, or choose another folder")
        with training_settings(self.model.device):
            while self.step < self.config.steps:
                report = self._step()
                if self.step % self.config.eval_every == 0 or self.step == self.config.steps:
                    report = replace(report, val_loss=self.estimate())
                    if self.out and math.isfinite(report.val_loss):  # broken weights are no checkpoint
                        self.save(report.val_loss)
                yield report

    def _step(self) -> StepReport:
        c, start = self.config, time.perf_counter()
        step = self.step + 1
        lr = self.learning_rate(step)
        tokens, targets = random_batch(self.data.train, c.batch_size, c.seq_len, c.seed, step)
        if self._whole_step:
            loss, norm = self._whole_step(tokens, targets, step, lr)
        else:
            loss, norm = self._plain_step(tokens, targets, step, lr)
        finite = math.isfinite(loss) and math.isfinite(norm)
        self.step = step
        self._note(finite)
        seconds = time.perf_counter() - start
        return StepReport(step, loss, lr, norm, tokens.size / seconds, 1e3 * seconds, self._memory_mb(), skipped=not finite)

    def _plain_step(self, tokens: np.ndarray, targets: np.ndarray, step: int, lr: float) -> tuple[float, float]:
        """Loss and norm of the gradients; unless both are finite, no parameter has changed."""
        c = self.config
        options = dict(key=(c.seed, step), recompute=c.recompute, scale=self.scale)
        loss, grads = self.workers.loss_and_grads(tokens, targets, c.shards, **options)
        if self.scale != 1:
            grads.flat *= 1 / self.scale
        norm = clip_grad_norm(grads, c.clip, self.workers.map)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(grads, lr, self.workers.map)
        return loss, norm

    def learning_rate(self, step: int) -> float:
        """The rate of a step, from 1."""
        c = self.config
        min_lr = c.lr / 10 if c.min_lr is None else c.min_lr
        return cosine_schedule(step, c.lr, min_lr, c.warmup_steps, c.steps)

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
        """Mean loss over `eval_batches` random batches of the validation split, always the same ones."""
        c = self.config
        seq_len = min(c.seq_len, len(self.data.val) - 1)
        batches = (random_batch(self.data.val, c.batch_size, seq_len, c.seed, VAL_STREAM + i) for i in range(c.eval_batches))
        return self._mean_loss(batches)

    def evaluate(self) -> float:
        """Mean loss over the whole validation split: neighbouring windows, every target once."""
        return self._mean_loss(all_windows(self.data.val, self.config.batch_size, self.config.seq_len))

    def _mean_loss(self, windows) -> float:
        with training_settings(self.model.device):
            return self.workers.mean_loss(windows)

    # -------------------------------------------------------------------------------------------- checkpoints

    def save(self, val_loss: float | None = None) -> Path:
        """Save a checkpoint; if `val_loss` is the lowest so far, it is the best one."""
        out = self._folder()
        is_best = val_loss is not None and val_loss < self.best
        best = val_loss if is_best else self.best
        state = {
            "train": self.config.to_dict(),
            "data": {"name": self.data.name, "vocab_size": self.data.vocab_size, "train_tokens": len(self.data.train)},
            "best": best if math.isfinite(best) else None,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "scale": [self.scale, self._steps_since_change],
        }
        folder = checkpoint.save_checkpoint(out, self.step, self.model, self.optimizer, state)
        checkpoint.point_to(out, "latest", folder, val_loss=val_loss)
        if is_best:
            checkpoint.point_to(out, "best", folder, val_loss=val_loss)
        self.best = best  # only now: a save that failed is tried again as a whole
        checkpoint.prune(out)
        return folder

    def resume(self) -> None:
        """Go on from the latest checkpoint in `out`, as if there had been no interruption."""
        folder = checkpoint.find_step(self._folder())
        data = checkpoint.read_state(folder)["data"]
        if data["train_tokens"] != len(self.data.train) or data["vocab_size"] != self.data.vocab_size:
            raise CheckpointError(f"{folder} was trained on other data: {data['name']}")
        state = checkpoint.load_checkpoint(folder, self.model, self.optimizer)
        self.step = state["step"]
        self.best = math.inf if state["best"] is None else state["best"]
        self.skipped, self._skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.scale, self._steps_since_change = state.get("scale", (self.scale, 0))
        checkpoint.prune(self.out)  # a step that a kill left unnamed must not stand for the one that is done again

    def _folder(self) -> Path:
        if self.out is None:
            raise ValueError("this trainer was made without `out`, a folder for checkpoints")
        return self.out

    def close(self) -> None:
        """End the workers."""
        self.workers.close()
