"""WorkerGroup: those who run the shards of a step, behind one interface.

A batch is cut into shards of whole sequences; gradients are the sum over shards. Threads, processes and ranks are three ways of
running the same shards, so they give the same bits.

    Workers    threads of this process, later processes that share its memory       numllama/parallel/shards.py
    Ranks      processes that mpirun has started, on one machine or on several      numllama/parallel/ranks.py
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from numllama.data.batches import Batch
from numllama.model.parameters import FlatTensors, Parameters
from numllama.optim.optimizer import Optimizer
from numllama.parallel.shards import Progress, ShardPlan


class WorkerGroup(Protocol):
    """Runs the shards of training steps and evaluations.

    Attributes
    ----------
    rank, size : int
        Index of this process among those that train together, and their number; 0 and 1 without ranks.
    workers : int
        Shards that run at once in this process.
    pids : sequence of int
        The processes beside this one.
    params : Parameters
        The parameters that the optimizer of this process steps.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def pids(self) -> Sequence[int]: ...
    @property
    def params(self) -> Parameters: ...

    def local_rows(self, plan: ShardPlan) -> np.ndarray | None:
        """The rows of a batch that this process computes; None: all."""
        ...

    def whole_step(self, optimizer: Optimizer, **settings: Any) -> Any:
        """A :class:`~numllama.cuda.graph.TrainingStep`, where a GPU can run whole steps by itself; else None."""
        ...

    def loss_and_grads(
        self,
        batch: Batch,
        plan: ShardPlan,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
    ) -> tuple[float, FlatTensors]:
        """As :meth:`Transformer.loss_and_grads`, shard by shard; the next call fills the same buffer again.

        Parameters
        ----------
        batch : Batch
            The rows of :meth:`local_rows`.
        plan : ShardPlan
        key : tuple of int, optional
            Names the dropout masks; each shard appends its index.
        recompute : bool
        scale : float
        """
        ...

    def clip(self, grads: FlatTensors, max_norm: float) -> float:
        """As :func:`~numllama.optim.clip_grad_norm`, for the gradients of the whole group."""
        ...

    def step(self, optimizer: Optimizer, grads: FlatTensors, lr: float) -> None:
        """Step the parameters of the whole group."""
        ...

    def mean_loss(self, batches: Iterable[Batch], rows: int | None = None, progress: Progress | None = None) -> float:
        """Mean loss of all targets in some batches, without dropout; sums are in float64 and in order.

        Parameters
        ----------
        batches : iterable of Batch
            The same ones in every process of the group.
        rows : int, optional
            Rows that a worker computes at once, which limits memory; default a whole batch.
        progress : callable, optional
            Called now and then with the number of rows done since the last call.
        """
        ...

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is true in any process of the group."""
        ...

    def require_same(self, things: dict[str, Any]) -> None:
        """NumllamaError, in all processes, unless all of them have the same things, which JSON can hold."""
        ...

    def gather_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer with the moments of all parameters, as it is saved."""
        ...

    def scatter_optimizer(self, optimizer: Optimizer, gathered: Optimizer) -> None:
        """Load this process's part of `gathered` into its own optimizer."""
        ...

    def close(self) -> None:
        """End the threads and processes of the group."""
        ...
