"""The shards of a batch on the ranks of a communicator.

Rank r of n runs the shards r, r + n, r + 2n, ...; a *round* is one shard of each. The flat buffer of gradients is cut into
buckets, and a bucket goes on its way as soon as backward is done with it: each rank owns a part of every bucket, receives that
part of all shards and adds them in index order. So the sums are those of one process, bit for bit, and travel while the layers
below are still at work. At the end of the step either everybody gets all sums, or (ZeRO-1: Rajbhandari et al. 2020, section 5.1)
each rank steps the parameters that it owns, keeps the optimizer's moments of no others, and everybody gets the new parameters.

A message for each shard is little on one machine; between machines it may be too much. Then each rank adds up its own shards
first (`sum_by="rank"`): one message a step, and other last bits.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from hashlib import sha256
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple

import numpy as np

from numllama import blocks
from numllama.backend import Array
from numllama.errors import NumllamaError
from numllama.model import Parameters, Transformer
from numllama.ops import IGNORE
from numllama.optim import clip_grad_norm
from numllama.optim.clip import squares
from numllama.optim.optimizer import Optimizer
from numllama.parallel.communicator import Communicator, Request
from numllama.parallel.shards import Progress, cut, cut_windows, run_windows, shard_loss

BUCKET_PIECES = 8  # at least; of blocks.PIECE_ELEMENTS, which is 6 MiB of float32


class Bucket(NamedTuple):
    """A part of the flat buffer that travels at once.

    Attributes
    ----------
    start, stop : int
        Where it lies.
    bounds : list of int
        Where each rank's part begins, counted from `start`, and where the last one ends.
    own : slice
        This rank's part, among all that the rank owns.
    layer : int
        Backward is done with it when it is done with this layer; -1 is what it comes to last.
    """

    start: int
    stop: int
    bounds: list[int]
    own: slice
    layer: int


def make_buckets(params: Parameters, rank: int, size: int) -> list[Bucket]:
    """Cut the flat buffer for so many ranks; in the order in which backward is done with it.

    Ranks own whole pieces, of the size in which the norm of all gradients is summed: so their sums are the same.
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
    """The first layer that has something in this part of the buffer; -1 for what belongs to no layer."""
    layers, begin = [], 0
    for name, view in params.items():
        if begin < stop and begin + view.size > start:
            layers.append(int(name.split(".")[1]) if name.startswith("blocks.") else -1)
        begin += view.size
    return min(layers)


class Ranks:
    """Does what :class:`Workers` does, with the other ranks of a communicator.

    Parameters
    ----------
    model : Transformer
        Rank 0's parameters become everybody's at the first step.
    comm : Communicator
    sharded : bool
        ZeRO-1.
    sum_by : str, optional
        ``shard`` or ``rank``; default ``shard`` where the communicator keeps the order.

    Attributes
    ----------
    params : Parameters
        What this rank's optimizer steps.
    """

    workers, pids = 1, ()

    def __init__(self, model: Transformer, comm: Communicator, sharded: bool = False, sum_by: str | None = None) -> None:
        if model.adapter:
            raise ValueError("an adapter is small enough for one machine: it is not trained by ranks")
        if sum_by == "shard" and not comm.keeps_order:
            raise ValueError("sum_by is 'shard', but these ranks can only sum by rank")
        self.model, self.comm, self.rank, self.sharded = model, comm, comm.rank, sharded
        self._by_shard = (sum_by or ("shard" if comm.keeps_order else "rank")) == "shard"
        self._total = model.params.zeros_like()
        self._buckets = make_buckets(model.params, comm.rank, comm.size)
        self._grads = self._owned(model.params)
        self.params = self._owned(model.params) if sharded else model.params
        self._begun = False

    def _owned(self, params: Parameters) -> Parameters:
        """A buffer for what this rank owns: matrices first, as everywhere."""
        parts = [(bucket.start + bucket.bounds[self.comm.rank], bucket.own) for bucket in self._buckets]
        sizes = [(own.stop - own.start, params.matrices.size - start) for start, own in parts]
        matrices = sum(min(size, max(0, before)) for size, before in sizes)
        vectors = sum(size for size, _ in sizes) - matrices
        flat = self.model.xp.zeros(matrices + vectors, params.flat.dtype)
        return Parameters({"matrices": (1, matrices), "vectors": (vectors,)}, flat)

    def _parts(self, flat: Array, own: Array) -> Iterator[tuple[Array, Array]]:
        """What this rank owns: where it lies in the whole buffer, and where in its own."""
        r = self.comm.rank
        for bucket in self._buckets:
            yield flat[bucket.start + bucket.bounds[r] : bucket.start + bucket.bounds[r + 1]], own[bucket.own]

    def _gather(self, flat: Array, own: Array) -> None:
        """Fill a whole buffer from what each rank has of it."""
        requests = []
        for (part, mine), bucket in zip(self._parts(flat, own), self._buckets, strict=True):
            part[...] = mine
            requests.append(self.comm.all_gather(flat[bucket.start : bucket.stop], bucket.bounds))
        for request in requests:
            request.wait()

    # -------------------------------------------------------------------------------------------- a step

    def rows(self, batch_size: int, shards: int) -> np.ndarray:
        """The rows of a batch that are computed here, shard after shard."""
        parts = cut(np.arange(batch_size), min(shards, batch_size))
        return np.concatenate([np.arange(0), *parts[self.rank :: self.comm.size]])

    def loss_and_grads(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        shards: int,
        key: tuple[int, ...] | None = None,
        recompute: bool = False,
        scale: float = 1.0,
        segments: np.ndarray | None = None,
        batch_size: int | None = None,
    ) -> tuple[float, Parameters]:
        """As :meth:`Workers.loss_and_grads`; with a sharded optimizer, the gradients are those that this rank owns.

        Parameters
        ----------
        batch_size : int, optional
            The rows of the whole batch, where `tokens`, `targets` and `segments` are :meth:`rows` of it alone; all targets of
            the batch count then. Default: they are the whole batch.
        """
        if not self._begun:
            self.comm.broadcast(self.model.params.flat)
            self.model.params.round()
            self._begun = True
        if batch_size is None:
            batch_size, count = len(tokens), int((targets != IGNORE).sum())
            mine = self.rows(batch_size, shards)
            tokens, targets, segments = tokens[mine], targets[mine], None if segments is None else segments[mine]
        else:
            count = batch_size * tokens.shape[1]
        shards, rank, size = min(shards, batch_size), self.comm.rank, self.comm.size
        ends = np.cumsum([len(rows) for rows in cut(np.arange(batch_size), shards)[rank::size]])[:-1]
        segments = [None] * shards if segments is None else np.split(segments, ends)
        parts = list(zip(range(rank, shards, size), np.split(tokens, ends), np.split(targets, ends), segments, strict=False))
        losses, options = np.zeros(shards), dict(count=max(1, count), recompute=recompute, scale=scale)
        for first in range(0, shards, size):
            is_last = first + size >= shards
            if first == 0 or self._by_shard:
                self._total.flat[...] = 0
            senders = min(size, shards - first) if self._by_shard else size
            step = _Round(self, add=self._by_shard and first > 0, senders=senders, silent=not (is_last or self._by_shard))
            if first + rank < shards:
                losses[first + rank] = shard_loss(self.model, step, parts[first // size], key, options)
            step.finish()
        self.comm.all_reduce(losses)
        if self.sharded:
            return sum(losses.tolist()), self._grads
        self._gather(self._total.flat, self._grads.flat)
        return sum(losses.tolist()), self._total

    def clip(self, grads: Parameters, max_norm: float) -> float:
        """As :func:`clip_grad_norm`, of the gradients of all ranks."""
        return clip_grad_norm(grads, max_norm, norm=self._norm(grads) if self.sharded else None)

    def _norm(self, grads: Parameters) -> float:
        """From the same sums over the same pieces, in the same order, as that of the whole buffer."""
        piece = blocks.PIECE_ELEMENTS
        sums = np.zeros(-(-self._total.flat.size // piece))
        r = self.comm.rank
        for bucket in self._buckets:
            first = (bucket.start + bucket.bounds[r]) // piece
            of_part = squares(grads.flat[bucket.own])
            sums[first : first + len(of_part)] = of_part
        self.comm.all_reduce(sums)
        return sqrt(sum(sums.tolist()))

    def step(self, optimizer: Optimizer, grads: Parameters, lr: float) -> None:
        """A step of the optimizer; then all ranks have all new parameters."""
        if not self.sharded:
            optimizer.step(grads, lr)
            return
        params = self.model.params
        for part, own in self._parts(params.flat, self.params.flat):
            own[...] = part
        optimizer.step(grads, lr)
        self._gather(params.flat, self.params.flat)
        params.round()

    # -------------------------------------------------------------------------------------------- the rest

    def map(self, function: Callable, items: Iterable) -> list:
        """The function's results, by this rank alone."""
        return list(map(function, items))

    def mean_loss(
        self, windows: Iterable[tuple[np.ndarray, ...]], rows: int | None = None, progress: Progress | None = None
    ) -> float:
        """As :meth:`Workers.mean_loss`: each rank runs every size-th shard, and the sums are in the same order."""
        shards, total, n = cut_windows(windows, rows), 0.0, 0
        rank, size = self.comm.rank, self.comm.size
        while some := list(islice(shards, 16 * size)):
            results = np.zeros((len(some), 2))
            results[rank::size] = np.reshape(run_windows(self.model, None, some[rank::size]), (-1, 2))
            self.comm.all_reduce(results.reshape(-1))
            for loss, counted in results.tolist():
                total, n = total + loss, n + int(counted)
            if progress:
                progress(sum(len(shard[0]) for shard in some))
        return total / max(1, n)

    def agree(self, flag: bool) -> bool:
        """Whether any rank says yes: a signal reaches them at different steps, but they end at the same one."""
        flags = np.array([float(flag)])
        self.comm.all_reduce(flags)
        return bool(flags[0])

    def check_same(self, things: dict[str, Any]) -> None:
        """NumllamaError, on all ranks, unless all of them have the same things, which JSON can hold; else names what differs."""
        digests = np.zeros((self.comm.size, len(things)))
        for i, thing in enumerate(things.values()):
            digests[self.rank, i] = int.from_bytes(sha256(json.dumps(thing, sort_keys=True).encode()).digest()[:6], "big")
        self.comm.all_reduce(digests.reshape(-1))
        for rank, row in enumerate(digests):
            names = [name for name, digest, expected in zip(things, row, digests[0], strict=True) if digest != expected]
            if names:
                what = f"rank {rank} differs from rank 0 in {', '.join(names)}"
                raise NumllamaError(f"{what}: all ranks need the same settings, data and folder")

    def whole(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer with the moments of all parameters, as it is saved."""
        if not self.sharded:
            return optimizer
        whole = copy(optimizer)
        whole.params, whole.state = self.model.params, {}
        for name, own in optimizer.state.items():
            whole.state[name] = self.model.params.zeros_like()
            self._gather(whole.state[name].flat, own.flat)
        return whole

    def keep(self, optimizer: Optimizer, whole: Optimizer) -> None:
        """Take over what was loaded into `whole`."""
        optimizer.steps = whole.steps
        for name, own in optimizer.state.items() if self.sharded else ():
            for part, mine in self._parts(whole.state[name].flat, own.flat):
                mine[...] = part

    def close(self) -> None:
        """Nothing is to be ended: whoever has started the ranks does that."""


class _Round:
    """What a shard is given as its gradients: sees how far backward has come, and sends what it is done with.

    Backward asks for the blocks from the last to the first; when it asks for one, it is done with those behind it. Whenever it
    asks for anything, messages get on.
    """

    def __init__(self, ranks: Ranks, add: bool, senders: int, silent: bool) -> None:
        self._ranks, self._total = ranks, ranks._total
        self.shapes = self._total.shapes
        self._options = dict(add=add, senders=senders)
        self._ready = [] if silent else list(ranks._buckets)
        self._under_way: list[Request] = []

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __getitem__(self, name: str) -> Array:
        return self._total[name]

    def __setitem__(self, name: str, value: Array) -> None:
        if value is not self._total[name]:  # else the end of g[name] += x, which is done by now
            self._total[name] = value

    @property
    def blocks(self) -> Sequence[dict[str, Array]]:
        return _Blocks(self)

    def done_behind(self, layer: int) -> None:
        """Send what belongs to layers behind this one."""
        while self._ready and self._ready[0].layer > layer:
            bucket = self._ready.pop(0)
            part, into = self._total.flat[bucket.start : bucket.stop], self._ranks._grads.flat[bucket.own]
            self._under_way.append(self._ranks.comm.reduce_scatter(part, bucket.bounds, into, **self._options))
        self.get_on()

    def get_on(self) -> None:
        """Let messages get on."""
        self._under_way = [request for request in self._under_way if not request.done()]

    def finish(self) -> None:
        """Send the rest, and wait for everything."""
        self.done_behind(-2)
        for request in self._under_way:
            request.wait()


class _Blocks(Sequence):
    """The gradients of the blocks, each a mapping that lets messages get on when it is asked."""

    def __init__(self, step: _Round) -> None:
        self._step = step

    def __len__(self) -> int:
        return len(self._step._total.blocks)

    def __getitem__(self, layer: int) -> "_Block":
        self._step.done_behind(layer)
        block = _Block(self._step._total.blocks[layer])
        block.step = self._step
        return block


class _Block(dict):
    step: Any

    def __getitem__(self, name: str) -> Array:
        self.step.get_on()
        return super().__getitem__(name)
