"""A whole training step on a GPU, recorded once as a CUDA graph, then replayed; the host only provides the batch.

A step of a small model is a few hundred launches, and the host takes longer to launch them than the GPU to run them. A graph is a
single launch. It records addresses and numbers, so values that change from step to step are in device memory, written
before the step:

    tokens, targets and the number of targets that count, keys of dropout masks, AdamW's numbers (rate, bias corrections, decay)
and kernels make the decisions that the host would otherwise make: clipping, and whether parameters change at all.

The step has its own memory pool, because nothing else may use memory whose addresses a graph holds. The first step, not recorded,
fills it for all later ones. A step that cannot be recorded runs launch by launch: the same kernels, the same losses.
"""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.checks import checked_ids
from numllama.cuda import launch
from numllama.cuda.adamw import adamw_update_by, step_numbers, supports
from numllama.cuda.clip import clip_factor
from numllama.cuda.stream import StagingBuffers, Stream
from numllama.hashing import fold_key


def training_step(model: Any, optimizer: Any, **settings: Any) -> "TrainingStep | None":
    """The whole step of a model on a GPU; None if it must run as separate ops."""
    on_gpu = launch.runs_here((model.params.flat,))
    return TrainingStep(model, optimizer, **settings) if on_gpu and TrainingStep.supports(model, optimizer) else None


class TrainingStep:
    """Forward, backward, clipping and AdamW, for batches of one shape.

    Parameters
    ----------
    model : Transformer
    optimizer : AdamW
    batch_size, seq_len : int
    clip : float
    shards : int
        Parts of a batch, which run one after another.
    recompute : bool
    seed : int
        Seed of the dropout masks.
    graph : bool
        Record the second step, and replay it from then on.

    Attributes
    ----------
    launches : int
        Number of graphs launched.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        batch_size: int,
        seq_len: int,
        clip: float,
        shards: int = 1,
        recompute: bool = False,
        seed: int = 0,
        graph: bool = True,
    ) -> None:
        self.model, self.optimizer, self.clip, self.recompute, self.seed = model, optimizer, clip, recompute, seed
        self.shape, self.shards = (batch_size, seq_len), min(shards, batch_size)
        self.sites = 2 * model.config.n_layers + 1 if model.config.dropout else 0
        self.grads: Any = None
        self.staged: StagingBuffers | None = None
        self.result: Array = None
        self.launches = 0
        self._stream = Stream()
        self._run, self._is_warm, self._may_record = self._launch_all, False, graph

    @staticmethod
    def supports(model: Any, optimizer: Any) -> bool:
        """Whether a whole step of this model and optimizer can run like this."""
        state, flat = getattr(optimizer, "state", {}), model.params.flat
        is_adamw = set(state) == {"m", "v"} and model.compute_dtype != np.float16  # float16: the host adjusts its loss scale
        is_known = model.adapter is None and model.config.is_classic
        return is_adamw and is_known and supports(flat, flat, state["m"].flat, state["v"].flat, None)

    def supports_batch(self, batch: Any) -> bool:
        """Whether a batch has the step's shape and no packed documents, whose intervals are made on the host."""
        return batch.segments is None and batch.tokens.shape == self.shape

    def __call__(self, batch: Any, step: int, lr: float) -> tuple[float, float]:
        """Loss and norm of the gradients, before clipping. Unless both are finite, no parameter has changed."""
        if self.staged is None:
            self.staged = self._allocate()
        optimizer, host = self.optimizer, self.staged.host
        host["tokens"][...], host["targets"][...], host["count"][...] = batch.tokens, batch.targets, max(1, batch.count)
        host["numbers"][...] = *step_numbers(optimizer.steps + 1, lr, optimizer.betas, optimizer.weight_decay), 1.0
        for shard, site in np.ndindex(self.shards, self.sites):
            host["keys"][shard, site] = fold_key((self.seed, step, shard, site))
        with self._stream.entered(), checked_ids():
            self.staged.upload()
            if self._is_warm and self._may_record:
                self._record()
            self._run()
            loss, norm, factor = self.result.get()
        self._is_warm = True
        optimizer.steps += bool(factor)
        return float(loss), float(norm)

    def _allocate(self) -> StagingBuffers:
        """Allocate gradients and staging buffers, on the first batch."""
        model, real = self.model, real_dtype(self.model.compute_dtype)
        self.grads = model.params.zeros_like()
        self._table = model.rope.first(self.shape[1]) if model.rope else None  # a graph has its address
        return StagingBuffers(
            model.params.flat,
            tokens=(self.shape, np.dtype(np.int32)),
            targets=(self.shape, np.dtype(np.int32)),
            count=((), real),
            keys=((self.shards, self.sites, 2), np.dtype(np.uint32)),
            numbers=((4,), real),
        )

    def memory_bytes(self) -> int:
        """Bytes of the step's own pool."""
        return self._stream.pool.total_bytes()

    def _record(self) -> None:
        self._may_record = False
        try:
            replay = self._stream.record(self._launch_all)
        except Exception as error:
            message = f"a training step could not be recorded as a CUDA graph, and runs launch by launch: {error}"
            warnings.warn(message, stacklevel=2)
            return

        def run() -> None:
            self.launches += 1
            replay()

        self._run = run

    def _launch_all(self) -> None:
        """The step: only launches; the host waits for none of them."""
        assert self.staged is not None, "the first batch makes it"
        model, staged, grads = self.model, self.staged.device, self.grads
        B = len(staged["tokens"])
        grads.flat[...] = 0
        losses = launch.empty(grads.flat, (self.shards,), grads.flat.dtype)
        for i, (start, stop) in enumerate(pairwise(B * i // self.shards for i in range(self.shards + 1))):
            loss, _ = model.loss_and_grads(
                staged["tokens"][start:stop], staged["targets"][start:stop], grads=grads, count=staged["count"],
                key=staged["keys"][i] if self.sites else None, recompute=self.recompute,
            )  # fmt: skip
            if self.shards > 1:
                losses[i] = loss
        self.result = clip_factor(grads.flat, loss if self.shards == 1 else losses, self.clip)
        params, state, optimizer = model.params, self.optimizer.state, self.optimizer
        copy, matrices = params.low_precision_part(slice(0, params.matrices.size)), params.matrices.size
        w, g, m, v = (buffer.flat for buffer in (params, grads, state["m"], state["v"]))
        adamw_update_by(staged["numbers"], self.result[2:], matrices, w, g, m, v, copy, optimizer.betas, optimizer.eps)
