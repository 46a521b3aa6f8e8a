"""The shards of a batch on the ranks of a communicator.

Rank r of n runs the shards r, r + n, r + 2n, ...; a *round* is one shard per rank. The flat buffer of gradients is cut into
buckets, and a bucket is sent as soon as backward has finished it: each rank owns a part of every bucket, receives that part from
all shards and adds them in index order. So the sums equal those of one process, bit for bit, and are sent while the layers below
are still being computed. At the end of a step either all ranks get all sums, or (ZeRO-1: Rajbhandari et al. 2020, section 5.1)
each rank steps the parameters that it owns, keeps only their moments, and sends the new parameters to all others.

One message per shard is cheap on one machine, but may be too slow between machines. With `sum_by="rank"` each rank adds up its
own shards first: one message per step, and different last bits.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from hashlib import sha256
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from numllama import blocks
from numllama.backend import Array
from numllama.data.batches import Batch
from numllama.errors import NumllamaError
from numllama.model import Transformer
from numllama.model.parameters import FlatTensors, Parameters
from numllama.optim.clip import clip_in_pieces, squares
from numllama.optim.optimizer import Optimizer
from numllama.parallel.communicator import Communicator, Request
from numllama.parallel.shards import Progress, Shard, ShardPlan, cut_batches, run_batches, shard_loss

BUCKET_PIECES = 8  # minimum, each of blocks.PIECE_ELEMENTS: 6 MiB of float32 in all


class Bucket(NamedTuple):
    """A part of the flat buffer that is sent in one message.

    Attributes
    ----------
    start, stop : int
        Its range in the flat buffer.
    bounds : list of int
        Start of each rank's part, counted from `start`, and the end of the last one.
    own : slice
        Range of this rank's part in the rank's own buffer.
    layer : int
        Send it when backward has finished this layer; -1: at the end of backward.
    """

    start: int
    stop: int
    bounds: list[int]
    own: slice
    layer: int


def make_buckets(params: Parameters, rank: int, size: int) -> list[Bucket]:
    """Cut the flat buffer for `size` ranks; buckets come in the order in which backward finishes them.

    Ranks own whole pieces, of the size used to sum the gradient norm, so the norm is the same for any number of ranks.
    """
    total, piece = params.flat.size, blocks.PIECE_ELEMENTS
    pieces = -(-total // piece)
    many = size * -(-BUCKET_PIECES // size)
    buckets, mine = [], 0
    for first in range(0, pieces, many):
        n = min(many, pieces - first)
        edges = [min(total, (first + n * r // size) * piece) for r in range(size + 1)]
        bounds = [edge - edges[0] for edge in edges]
        own = slice(mine, mine + bounds[rank + 1] - bounds[rank])
        mine = own.stop
        buckets.append(Bucket(edges[0], edges[-1], bounds, own, first_layer(params, edges[0], edges[-1])))
    return sorted(buckets, key=lambda bucket: -bucket.layer)


def first_layer(params: Parameters, start: int, stop: int) -> int:
    """The first layer with a tensor in this part of the buffer; -1 if a tensor belongs to no layer."""
    layers, begin = [], 0
    for name, view in params.items():
        if begin < stop and begin + view.size > start:
            layers.append(int(name.split(".")[1]) if name.startswith("blocks.") else -1)
        begin += view.size
    return min(layers)


class Ranks:
    """Runs shards together with the other ranks of a communicator: a :class:`~numllama.parallel.group.WorkerGroup`.

    Parameters
    ----------
    model : Transformer
        Rank 0's parameters are sent to all others at the first step.
    comm : Communicator
    sharded : bool
        ZeRO-1.
    sum_by : str, optional
        ``shard`` or ``rank``; default ``shard`` where the communicator keeps the order.

    Attributes
    ----------
    params : Parameters
        Parameters that this rank's optimizer steps.
    """

    workers = 1
    pids: tuple[int, ...] = ()

    def __init__(self, model: Transformer, comm: Communicator, sharded: bool = False, sum_by: str | None = None) -> None:
        if model.adapter:
            raise ValueError("an adapter is small enough for one machine: it is not trained by ranks")
        if sum_by == "shard" and not comm.keeps_order:
            raise ValueError("sum_by is 'shard', but these ranks can only sum by rank")
        self.model, self.comm, self.rank, self.size, self.sharded = model, comm, comm.rank, comm.size, sharded
        self._by_shard = (sum_by or ("shard" if comm.keeps_order else "rank")) == "shard"
        self._total = model.params.zeros_like()
        self._buckets = make_buckets(model.params, comm.rank, comm.size)
        self._grads = self._owned(model.params)
        self.params = self._owned(model.params) if sharded else model.params
        self._started = False

    def _owned(self, params: Parameters) -> Parameters:
        """A buffer for the parameters that this rank owns, matrices first."""
        parts = [(bucket.start + bucket.bounds[self.comm.rank], bucket.own) for bucket in self._buckets]
        sizes = [(own.stop - own.start, params.matrices.size - start) for start, own in parts]
        matrices = sum(min(size, max(0, before)) for size, before in sizes)
        vectors = sum(size for size, _ in sizes) - matrices
        flat = self.model.xp.zeros(matrices + vectors, params.flat.dtype)
        return Parameters({"matrices": (1, matrices), "vectors": (vectors,)}, flat)

    def _parts(self, flat: Array, own: Array) -> Iterator[tuple[Array, Array]]:
        """This rank's parts, each as a view of the whole buffer and of its own."""
        r = self.comm.rank
        for bucket in self._buckets:
            yield flat[bucket.start + bucket.bounds[r] : bucket.start + bucket.bounds[r + 1]], own[bucket.own]

    def _gather(self, flat: Array, own: Array) -> None:
        """Fill a whole buffer from the parts of all ranks."""
        requests = []
        for (part, mine), bucket in zip(self._parts(flat, own), self._buckets, strict=True):
            part[...] = mine
            requests.append(self.comm.all_gather(flat[bucket.start : bucket.stop], bucket.bounds))
        for request in requests:
            request.wait()

    # -------------------------------------------------------------------------------------------- a step

    def local_rows(self, plan: ShardPlan) -> np.ndarray:
        """The rows of a batch that this rank computes, shard by shard."""
        rows = np.arange(plan.batch_size)
        return np.concatenate([rows[:0], *(rows[part] for part in plan.slices()[self.rank :: self.size])])

    def whole_step(self, optimizer: Optimizer, **settings: Any) -> None:
        """None: ranks exchange messages within a step."""

    def loss_and_grads(
        self,
        batch: Batch,
        plan: ShardPlan,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
    ) -> tuple[float, FlatTensors]:
        """See :meth:`WorkerGroup.loss_and_grads`; with a sharded optimizer, returns only this rank's gradients."""
        if not self._started:
            self.comm.broadcast(self.model.params.flat)
            self.model.params.sync_low_precision()
            self._started = True
        rank, size, n = self.rank, self.size, len(plan.slices())
        losses, options = np.zeros(n), dict(recompute=recompute, scale=scale)
        mine = iter(self._shards(batch, plan))
        for first in range(0, n, size):
            is_last = first + size >= n
            if first == 0 or self._by_shard:
                self._total.flat[...] = 0
            senders = min(size, n - first) if self._by_shard else size
            grads = RankGradients(self, add=self._by_shard and first > 0, senders=senders, silent=not (is_last or self._by_shard))
            if first + rank < n:
                losses[first + rank] = shard_loss(self.model, grads, next(mine), key, options)
            grads.finish()
        self.comm.all_reduce(losses)
        if self.sharded:
            return sum(losses.tolist()), self._grads
        self._gather(self._total.flat, self._grads.flat)
        return sum(losses.tolist()), self._total

    def _shards(self, batch: Batch, plan: ShardPlan) -> list[Shard]:
        """This rank's shards of a step; `batch` holds their rows, shard by shard."""
        shards, start = [], 0
        for index, part in list(enumerate(plan.slices()))[self.rank :: self.size]:
            stop = start + part.stop - part.start
            shards.append(Shard(index, batch.rows(slice(start, stop))))
            start = stop
        return shards

    def clip(self, grads: FlatTensors, max_norm: float) -> float:
        """Like :func:`~numllama.optim.clip_grad_norm`, by the norm over all ranks."""
        return clip_in_pieces(grads, max_norm, norm=self._norm(grads) if self.sharded else None)

    def _norm(self, grads: FlatTensors) -> float:
        """The norm of the whole buffer, from the same sums over pieces, in the same order, as a single process."""
        piece = blocks.PIECE_ELEMENTS
        sums = np.zeros(-(-self._total.flat.size // piece))
        r = self.comm.rank
        for bucket in self._buckets:
            first = (bucket.start + bucket.bounds[r]) // piece
            of_part = squares(grads.flat[bucket.own])
            sums[first : first + len(of_part)] = of_part
        self.comm.all_reduce(sums)
        return sqrt(sum(sums.tolist()))

    def step(self, optimizer: Optimizer, grads: FlatTensors, lr: float) -> None:
        """Step the optimizer; afterwards every rank has all new parameters."""
        if not self.sharded:
            optimizer.step(grads, lr)
            return
        params = self.model.params
        for part, own in self._parts(params.flat, self.params.flat):
            own[...] = part
        optimizer.step(grads, lr)
        self._gather(params.flat, self.params.flat)
        params.sync_low_precision()

    # -------------------------------------------------------------------------------------------- the rest

    def mean_loss(self, batches: Iterable[Batch], rows: int | None = None, progress: Progress | None = None) -> float:
        """See :meth:`WorkerGroup.mean_loss`: each rank runs every size-th part; sums keep the same order."""
        parts, total, n = cut_batches(batches, rows), 0.0, 0
        while some := list(islice(parts, 16 * self.size)):
            results = np.zeros((len(some), 2))
            results[self.rank :: self.size] = np.reshape(run_batches(self.model, None, some[self.rank :: self.size]), (-1, 2))
            self.comm.all_reduce(results.reshape(-1))
            for loss, counted in results.tolist():
                total, n = total + loss, n + int(counted)
            if progress:
                progress(sum(len(part.tokens) for part in some))
        return total / max(1, n)

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is true on any rank: signals arrive at different steps, but all ranks stop at the same one."""
        flags = np.array([float(flag)])
        self.comm.all_reduce(flags)
        return bool(flags[0])

    def require_same(self, things: dict[str, Any]) -> None:
        """Raise NumllamaError on all ranks if they differ in any of these; it names them."""
        digests = np.zeros((self.comm.size, len(things)))
        for i, thing in enumerate(things.values()):
            digests[self.rank, i] = int.from_bytes(sha256(json.dumps(thing, sort_keys=True).encode()).digest()[:6], "big")
        self.comm.all_reduce(digests.reshape(-1))
        for rank, row in enumerate(digests):
            names = [name for name, digest, expected in zip(things, row, digests[0], strict=True) if digest != expected]
            if names:
                what = f"rank {rank} differs from rank 0 in {', '.join(names)}"
                raise NumllamaError(f"{what}: all ranks need the same settings, data and folder")

    def gather_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer with the moments of all parameters, for a checkpoint."""
        if not self.sharded:
            return optimizer
        gathered = copy(optimizer)
        gathered.params, gathered.state = self.model.params, {}
        for name, own in optimizer.state.items():
            gathered.state[name] = self.model.params.zeros_like()
            self._gather(gathered.state[name].flat, own.flat)
        return gathered

    def scatter_optimizer(self, optimizer: Optimizer, gathered: Optimizer) -> None:
        """Load this rank's part of `gathered` into its own optimizer."""
        optimizer.steps = gathered.steps
        for name, own in optimizer.state.items() if self.sharded else ():
            for part, mine in self._parts(gathered.state[name].flat, own.flat):
                mine[...] = part

    def close(self) -> None:
        """Nothing to close: mpirun ends the ranks."""


class RankGradients:
    """The gradients of one shard (see :class:`~numllama.model.parameters.Gradients`), with buckets sent when ready.

    Messages make progress whenever backward adds a gradient.

    Parameters
    ----------
    ranks : Ranks
    add : bool
        Add to the sums of earlier rounds.
    senders : int
        Number of ranks that have a shard in this round.
    silent : bool
        Send nothing: this rank adds up its own shards first.
    """

    def __init__(self, ranks: Ranks, add: bool, senders: int, silent: bool) -> None:
        self._ranks, self._total = ranks, ranks._total
        self.shapes = self._total.shapes
        self._add, self._senders = add, senders
        self._ready = [] if silent else list(ranks._buckets)
        self._in_flight: list[Request] = []

    def __contains__(self, name: object) -> bool:
        return name in self._total

    def add(self, name: str, gradient: Array) -> None:
        """Add the shard's gradient of a parameter."""
        self.progress()
        self._total.add(name, gradient)

    def buffer(self, name: str) -> Array | None:
        """This rank's buffer of a gradient that is not sent yet."""
        self.progress()
        return self._total.buffer(name)

    @contextmanager
    def adding_to(self, name: str) -> Iterator[Array]:
        """This rank's buffer."""
        self.progress()
        yield self._total[name]

    def layer_done(self, i: int) -> None:
        """Send the buckets completed by layer `i`."""
        self.send_after(i)

    def send_after(self, layer: int) -> None:
        """Send the buckets of this layer and of the layers above."""
        while self._ready and self._ready[0].layer >= layer:
            bucket = self._ready.pop(0)
            part, into = self._total.flat[bucket.start : bucket.stop], self._ranks._grads.flat[bucket.own]
            send = partial(self._ranks.comm.reduce_scatter, add=self._add, senders=self._senders)
            self._in_flight.append(send(part, bucket.bounds, into))
        self.progress()

    def progress(self) -> None:
        """Let messages make progress."""
        self._in_flight = [request for request in self._in_flight if not request.done()]

    def finish(self) -> None:
        """Send the rest, and wait for everything."""
        self.send_after(-1)
        for request in self._in_flight:
            request.wait()
