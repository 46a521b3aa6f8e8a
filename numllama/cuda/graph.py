"""A whole training step on a GPU that needs the host only to be told its batch: recorded once as a CUDA graph, then replayed.

A step of a small model is some hundred launches, and the host takes longer to make them than the GPU to run them. A graph is
launched at once. What is recorded are addresses and numbers. So whatever changes from step to step lies in device memory, and is
written there before the step:

    tokens and targets, the keys of the dropout masks, and AdamW's numbers (learning rate, bias corrections, decay)
and what the host would decide between the kernels is decided by them: clipping, and whether there is a step at all.

Memory comes from a pool of its own, in which the first step, not recorded, has left room for everything; nothing else may use
what a graph has addresses of. Where a step cannot be recorded, it runs launch by launch: the same kernels, the same losses.
"""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.checks import checked_ids
from numllama.cuda import launch
from numllama.cuda.adamw import adamw_update_by, step_numbers, takes
from numllama.cuda.clip import clip_factor
from numllama.cuda.stream import StagingBuffers, Stream
from numllama.ops.dropout import fold_key


def training_step(model: Any, optimizer: Any, **settings: Any) -> "TrainingStep | None":
    """The whole step of a model on a GPU; None where its launches are made one by one."""
    on_gpu = launch.runs_here((model.params.flat,))
    return TrainingStep(model, optimizer, **settings) if on_gpu and TrainingStep.takes(model, optimizer) else None


class TrainingStep:
    """Forward, backward, clipping and AdamW, for batches of one shape.

    Parameters
    ----------
    model : Transformer
    optimizer : AdamW
    batch_size, seq_len : int
    clip : float
    shards : int
        Parts of a batch, one after another.
    recompute : bool
    seed : int
        Of the dropout masks.
    graph : bool
        Record the second step, and replay it from then on.

    Attributes
    ----------
    launches : int
        How many graphs were launched.
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
        self.shards = min(shards, batch_size)
        self.grads = model.params.zeros_like()
        self.sites = 2 * model.config.n_layers + 1 if model.config.dropout else 0
        self.told = StagingBuffers(
            model.params.flat,
            tokens=((batch_size, seq_len), np.int32),
            targets=((batch_size, seq_len), np.int32),
            keys=((self.shards, self.sites, 2), np.uint32),
            numbers=((4,), real_dtype(model.compute_dtype)),
        )
        self.result: Array = None
        self._table = model._rope_table(seq_len) if model.config.positions == "rope" else None  # a graph has its address
        self.launches = 0
        self._stream = Stream()
        self._run, self._is_warm, self._may_record = self._launch_all, False, graph

    @staticmethod
    def takes(model: Any, optimizer: Any) -> bool:
        """Whether such a step can be run like this."""
        state, flat = getattr(optimizer, "state", {}), model.params.flat
        is_adamw = set(state) == {"m", "v"} and model.compute_dtype != np.float16  # its scale of gradients is the host's
        return is_adamw and takes(flat, flat, state["m"].flat, state["v"].flat, None)

    def __call__(self, tokens: np.ndarray, targets: np.ndarray, step: int, lr: float) -> tuple[float, float]:
        """Loss and norm of the gradients, before clipping. Unless both are finite, no parameter has changed."""
        optimizer, told = self.optimizer, self.told.host
        told["tokens"][...], told["targets"][...] = tokens, targets
        told["numbers"][...] = *step_numbers(optimizer.steps + 1, lr, optimizer.betas, optimizer.weight_decay), 1.0
        for shard, site in np.ndindex(self.shards, self.sites):
            told["keys"][shard, site] = fold_key((self.seed, step, shard, site))
        with self._stream.entered(), checked_ids():
            self.told.upload()
            if self._is_warm and self._may_record:
                self._record()
            self._run()
            loss, norm, factor = self.result.get()
        self._is_warm = True
        optimizer.steps += bool(factor)
        return float(loss), float(norm)

    def memory_bytes(self) -> int:
        """What the step's own pool holds."""
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
        """The step: launches only, none of which the host waits for."""
        model, told, grads = self.model, self.told.device, self.grads
        B = len(told["tokens"])
        grads.flat[...] = 0
        losses = launch.empty(grads.flat, (self.shards,), grads.flat.dtype)
        for i, (start, stop) in enumerate(pairwise(B * i // self.shards for i in range(self.shards + 1))):
            loss, _ = model.loss_and_grads(
                told["tokens"][start:stop], told["targets"][start:stop], grads=grads, count=told["tokens"].size,
                key=told["keys"][i] if self.sites else None, recompute=self.recompute,
            )  # fmt: skip
            if self.shards > 1:
                losses[i] = loss
        self.result = clip_factor(grads.flat, loss if self.shards == 1 else losses, self.clip)
        params, state, optimizer = model.params, self.optimizer.state, self.optimizer
        copy, matrices = params.rounded_part(slice(0, params.matrices.size)), params.matrices.size
        arrays = (buffer.flat for buffer in (params, grads, state["m"], state["v"]))
        adamw_update_by(told["numbers"], self.result[2:], matrices, *arrays, copy, optimizer.betas, optimizer.eps)
