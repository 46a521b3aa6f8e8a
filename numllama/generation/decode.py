"""Decoding on a CPU: the forward pass for one new token of each sequence, with as few calls as possible.

Decoding one sequence reads all weights once, so memory bandwidth is the limit, if nothing else costs time. A small model's
products take microseconds, as does each call from Python. So a `DecoderShard` computes the formulas of `ops` in place, in buffers
and on views that are made once:

- A sequence is a *column*: activations are (C, B), and a product, weight @ x, reads the weight in memory order.
- wq|wk|wv and w_gate|w_up are adjacent in memory: each group is one product.
- BLAS computes one column; its threads spin between products, so they start quickly (`gemv.complex_gemv`).
- For several columns a weight is cut into blocks of rows (`gemv.blocks`), because BLAS copies a large matrix into another order
  first, which takes longer than the product with a few columns.
- Weights in bfloat16 or int8 are multiplied by oneDNN, if the CPU can, with all cores. Activations are then rows, as oneDNN wants
  them.
- Otherwise for several columns the cores share the model as GPUs do in tensor parallelism (Shoeybi et al. 2019): each has some
  heads, some hidden units and some of the vocabulary. The shards of each branch are summed after a barrier, twice in a layer.

For other models than Llamas and other devices `Decoder` calls the model's own forward. Both give the same logits.
"""

import math
import operator
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue
from threading import BrokenBarrierError, Lock
from typing import NamedTuple

import numpy as np

from numllama import ops
from numllama.backend import Array, quiet
from numllama.generation.gemv import PACKED, gemvs
from numllama.generation.kv_cache import KVCache
from numllama.model import Transformer
from numllama.model.parameters import count_parameters
from numllama.ops.rope_scaling import depends_on_length
from numllama.system.blas import one_blas_thread
from numllama.system.processes import available_cores

# A barrier takes some 50 microseconds, the time of a million multiplications on one core; and threads wait for the GIL.
SHARED_PRODUCTS = 10**7  # the fewest multiplications between two barriers
TABLE = 256  # positions of RoPE's table that are computed at a time


class Layer(NamedTuple):
    """Gains of a layer's norms, as columns, and its products: functions that write to the shard's buffers."""

    attn_norm: Array
    qkv: Callable[[], object]
    wo: Callable[[], object]
    ffn_norm: Array
    gate_up: Callable[[], object]
    w_down: Callable[[], object]


class Decoder:
    """Logits for the next token, step after step.

    Parameters
    ----------
    model : Transformer
    kv_cache : KVCache
        Holds the prompt; each step adds a token to it.
    """

    def __init__(self, model: Transformer, kv_cache: KVCache) -> None:
        self.model, self.cache = model, kv_cache
        self.plain = is_plain(model)
        if not self.plain:
            return
        c, B = model.config, kv_cache.batch_size
        n, self.limits_blas = shard_count(model, B), B > 1 and not has_packed_weights(model)
        self.logits = np.empty((B, c.vocab_size), model.compute_dtype)
        branches = columns((2, n, c.dim, B), model)
        self.shards = [DecoderShard(model, kv_cache, i, n, branches, self.logits) for i in range(n)]
        self.pool = ThreadPoolExecutor(n - 1) if n > 1 else None

    def step(self, tokens: np.ndarray) -> Array:
        """Logits (B, V) after one more token in each sequence, (B,). The next step may overwrite them."""
        if not self.plain:
            with quiet():
                return self.model.forward(tokens[:, None], kv_cache=self.cache, n_last=1)[:, 0]
        self.cache.reserve(len(tokens), 1)
        with one_blas_thread() if self.limits_blas else nullcontext():
            error = self._run(tokens)
        if error:
            raise error
        self.cache.advance(tokens[:, None])
        return self.logits

    def _run(self, tokens: np.ndarray) -> BaseException | None:
        """Run all shards; returns the first error, if any."""
        if self.pool is None:
            return self.shards[0].run(tokens, None)
        barrier = Barrier(len(self.shards))
        others = [self.pool.submit(shard.run, tokens, barrier) for shard in self.shards[1:]]
        errors = [self.shards[0].run(tokens, barrier), *(other.result() for other in others)]
        causes_first = sorted(filter(None, errors), key=lambda error: isinstance(error, BrokenBarrierError))
        return causes_first[0] if causes_first else None


class DecoderShard:
    """One core's share of a token: some key heads and their queries, some hidden units, some of the vocabulary.

    Parameters
    ----------
    model : Transformer
    kv_cache : KVCache
    i, n : int
        Index and number of shards.
    branches : array, shape (2, n, C, B)
        The shards' outputs of attention and of the feed-forward block, to be added to the residual stream.
    logits : array, shape (B, V)
    """

    def __init__(self, model: Transformer, kv_cache: KVCache, i: int, n: int, branches: Array, logits: Array) -> None:
        c, B, params, dtype = model.config, kv_cache.batch_size, model.params, model.compute_dtype
        self.model, self.cache, self.i, self.branches = model, kv_cache, i, branches
        sizes = c.n_kv_heads, c.ffn_dim, c.vocab_size
        self.heads, units, tokens = (slice(size * i // n, size * (i + 1) // n) for size in sizes)
        C, D, R, F, V = c.dim, c.head_dim, c.n_heads // c.n_kv_heads, units.stop - units.start, tokens.stop - tokens.start
        K = self.heads.stop - self.heads.start
        H, of_k, of_q = R * K, rows(self.heads, D), rows(self.heads, R * D)
        buffer = lambda *shape: np.empty(shape, dtype)  # noqa: E731
        column = lambda size: columns((size, B), model)  # noqa: E731
        product = PACKED[model.dtype].product if has_packed_weights(model) else gemvs
        number = lambda value: np.array(value, dtype)  # noqa: E731      a Python number is converted at each call
        part = (lambda matrix, place: matrix) if n == 1 else operator.getitem

        self.x, self.n, self.rms = column(C), column(C), buffer(B)
        self.sequences, self.eps, self.per_row = self.x.T, number(c.norm_eps), number(1 / C)
        self.qkv, self.gate_up, self.hidden = column((H + 2 * K) * D), column(2 * F), column(F)
        self.gate, self.up, self.half, self.one = self.gate_up[:F], self.gate_up[F:], number(0.5), number(1)
        self.columns, self.logits = column(V), logits[:, tokens]

        # Queries, then keys, with their pairs of components as an axis; and the same with each pair reversed.
        pairs, axis = ((2, D // 2), -3) if c.rope_layout == "half" else ((D // 2, 2), -2)
        self.qk = self.qkv[: (H + K) * D].reshape(H + K, *pairs, B)
        self.qk_turned = np.flip(self.qk, axis)
        self.rotated, self.term = buffer(*self.qk.shape), buffer(*self.qk.shape)
        q, k = np.split(self.rotated.reshape(-1, B), [H * D])
        self.k, self.v = (x.reshape(K, D, B).transpose(2, 0, 1) for x in (k, self.qkv[(H + K) * D :]))         # (B, K, D)
        self.q: Array
        self.q_rows, self.q, self.out, self.mixed = q.T, buffer(B, K, R, D), buffer(B, K, R, D), column(H * D)
        if B == 1:                                                         # a column has a row's memory layout
            self.q, self.mixed = q.reshape(1, K, R, D), self.out.reshape(H * D, 1)
        scale = np.repeat([1 / math.sqrt(D), 1], [H, K])                   # the rotation of queries includes the scores' scale
        self.turns_change = depends_on_length(c.rope_scaling)              # a longer sequence has another table
        self.scale, self.turn, self.table = scale.astype(dtype).reshape(-1, 1, 1, 1), buffer(2, *self.qk.shape), range(0)

        self.layers = []
        for layer, w in enumerate(params.blocks):
            name = f"blocks.{layer}."
            qkv = [params.joined(name + "wq", name + "wv")] if n == 1 else [w["wq"][of_q], w["wk"][of_k], w["wv"][of_k]]
            gate_up = [params.joined(name + "w_gate", name + "w_up")] if n == 1 else [w["w_gate"][units], w["w_up"][units]]
            self.layers.append(
                Layer(
                    attn_norm=w["attn_norm"].astype(dtype, copy=False)[:, None],
                    qkv=product(qkv, self.n, self.qkv),
                    wo=product([part(w["wo"], (slice(None), of_q))], self.mixed, branches[0, i]),
                    ffn_norm=w["ffn_norm"].astype(dtype, copy=False)[:, None],
                    gate_up=product(gate_up, self.n, self.gate_up),
                    w_down=product([part(w["w_down"], (slice(None), units))], self.hidden, branches[1, i]),
                )
            )
        head = params["embed" if c.tie_embeddings else "head"]
        self.head = product([part(head, tokens)], self.n, self.columns)
        self.norm = params["norm"].astype(dtype, copy=False)[:, None]

    def run(self, tokens: np.ndarray, barrier: "Barrier | None") -> BaseException | None:
        """Compute this shard of a step; returns an error, which breaks the barrier for the other shards."""
        try:
            with quiet():  # error states are per thread
                self._forward(tokens, barrier)
        except BaseException as error:
            if barrier is not None:
                barrier.abort()
            return error
        return None

    def _forward(self, tokens: np.ndarray, barrier: "Barrier | None") -> None:
        """The model from tokens to logits, line by line as in `model.block`."""
        x, cache = self.x, self.cache
        mixed, fed = self.branches
        self._rope()
        slots, hidden = self._visible()
        x[...] = self.model.params["embed"][tokens].T
        stored = cache.keys[:, :, self.heads, slots], cache.values[:, :, self.heads, slots]            # (L, B, K, S, D)
        for w, k, v in zip(self.layers, *stored, strict=True):
            self._rmsnorm(w.attn_norm)
            w.qkv()
            self._attention(k, v, hidden)
            w.wo()
            self._add(mixed, barrier)
            self._rmsnorm(w.ffn_norm)
            w.gate_up()
            self._swiglu()
            w.w_down()
            self._add(fed, barrier)
        self._rmsnorm(self.norm)
        self.head()
        np.copyto(self.logits, self.columns.T)

    def _add(self, branches: Array, barrier: "Barrier | None") -> None:
        """Add all shards of a branch to this shard's copy of the residual stream, once all are computed."""
        if barrier is not None:
            barrier.wait(self.i)
        for branch in branches:
            np.add(self.x, branch, self.x)

    def _rmsnorm(self, weight: Array) -> None:
        """n = weight · x / rms(x), column by column."""
        n, rms = self.n, self.rms
        np.vecdot(self.sequences, self.sequences, rms)
        np.multiply(rms, self.per_row, rms)
        np.add(rms, self.eps, rms)
        np.sqrt(rms, rms)
        np.divide(self.x, rms, n)
        np.multiply(n, weight, n)

    def _swiglu(self) -> None:
        """hidden = silu(gate) · up, with g = gate/2:  silu(2g) = g·(1 + tanh g)."""
        gate, hidden = self.gate, self.hidden
        np.multiply(gate, self.half, gate)
        np.tanh(gate, hidden)
        np.add(hidden, self.one, hidden)
        np.multiply(hidden, gate, hidden)
        np.multiply(hidden, self.up, hidden)

    def _attention(self, k: Array, v: Array, hidden: Array | None) -> None:
        """Store this step's key and value at the end of k and v (B, K, S, D), then mix the values that each query sees."""
        B, K, R, D = self.q.shape
        np.multiply(self.qk, self.turn[0], self.rotated)
        np.multiply(self.qk_turned, self.turn[1], self.term)
        np.add(self.rotated, self.term, self.rotated)
        k[:, :, -1], v[:, :, -1] = self.k, self.v
        if B > 1:
            self.q.reshape(B, K * R * D)[...] = self.q_rows
        p = np.matmul(self.q, k.swapaxes(2, 3))                            # (B, K, R, S): scores
        if hidden is not None:
            np.copyto(p, -math.inf, where=hidden)
        np.subtract(p, np.maximum.reduce(p, -1, keepdims=True), p)
        np.exp(p, p)
        np.matmul(p, v, self.out)
        np.divide(self.out, np.add.reduce(p, -1, keepdims=True), self.out)
        if B > 1:
            self.mixed[...] = self.out.reshape(B, K * R * D).T

    # -------------------------------------------------------------------------------------------- positions

    def _visible(self) -> tuple[slice, Array | None]:
        """The slots that any sequence sees, and a mask (B, 1, 1, S) of those hidden from each; None if none is hidden."""
        first, _ = self.cache.intervals(1)
        stop = self.cache.used + 1
        if first is None:
            return slice(0, stop), None
        begin = int(first.min())
        hidden = np.arange(begin, stop) < first                            # (B, S); all see up to `stop`
        return slice(begin, stop), hidden[:, None, None] if hidden.any() else None

    def _rope(self) -> None:
        """Compute the cosines and sines that rotate queries and keys at this step, (2, H + K, pairs, B)."""
        positions = self.cache.positions(1).ravel().tolist()               # 1 or B
        table = self.table
        if not table.start <= min(positions) <= max(positions) < table.stop or self.turns_change:
            table = self.table = range(min(positions), max(positions) + (1 if self.turns_change else TABLE))
            self.turns = self._turns(np.array(table))
        turns = self.turns[..., [position - table.start for position in positions]]     # (2, 1, pairs, 1 or B)
        np.multiply(turns, self.scale, self.turn)

    def _turns(self, positions: np.ndarray) -> Array:
        """Cosines and sines in the layout of the pairs, (2, 1, pairs, positions)."""
        c = self.model.config
        table = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, self.model.compute_dtype)
        cos, sin = (part.T for part in table)                              # (D/2, positions)
        axis = 0 if c.rope_layout == "half" else 1
        return np.stack([np.stack([cos, cos], axis), np.stack([-sin, sin], axis)])[:, None]


class Barrier:
    """As :class:`threading.Barrier`, for threads 0 to n - 1, in half the time: a queue wakes a thread faster than a condition."""

    def __init__(self, n: int) -> None:
        self.n, self.arrived, self.lock = n, 0, Lock()
        self.gates: list[SimpleQueue[bool]] = [SimpleQueue() for _ in range(n)]

    def wait(self, i: int) -> None:
        """Thread i has arrived; return when all have."""
        with self.lock:
            self.arrived = (self.arrived + 1) % self.n
            is_last = self.arrived == 0
        if is_last:
            self._open(True, but=i)
        elif not self.gates[i].get():
            raise BrokenBarrierError

    def abort(self) -> None:
        """A thread has failed: the others raise BrokenBarrierError."""
        self._open(False)

    def _open(self, all_arrived: bool, but: int | None = None) -> None:
        for i, gate in enumerate(self.gates):
            if i != but:
                gate.put(all_arrived)


def columns(shape: tuple[int, ...], model: Transformer) -> Array:
    """A new array (..., size, B), whose memory has the order of the model's products: oneDNN keeps a sequence in one piece."""
    if has_packed_weights(model):
        return np.empty((*shape[:-2], shape[-1], shape[-2]), model.compute_dtype).swapaxes(-1, -2)
    return np.empty(shape, model.compute_dtype)


def has_packed_weights(model: Transformer) -> bool:
    """Whether the weights are stored in bfloat16 or int8, and this CPU multiplies that."""
    return model.dtype in PACKED and model.compute_dtype == np.float32 and PACKED[model.dtype].is_fast()


def is_plain(model: Transformer) -> bool:
    """Whether this is a Llama on a CPU, without an adapter, with products in the dtype of its weights."""
    c = model.config
    if model.adapter is not None or not c.is_classic:
        return False
    llama = (c.norm, c.positions, c.ffn, c.qk_norm, c.bias) == ("rmsnorm", "rope", "swiglu", None, False)
    has_products = model.params.flat.dtype == model.compute_dtype or has_packed_weights(model)
    return llama and isinstance(model.params.flat, np.ndarray) and has_products


def shard_count(model: Transformer, B: int) -> int:
    """The number of shards: one for each core, if there is enough work between two barriers, and unless oneDNN has threads."""
    config = model.config
    if B == 1 or has_packed_weights(model) or count_parameters(config) * B < SHARED_PRODUCTS * 2 * config.n_layers:
        return 1
    return min(available_cores(), config.n_kv_heads, config.ffn_dim, config.vocab_size)


def rows(heads: slice, size: int) -> slice:
    """The rows of a matrix that belong to some heads."""
    return slice(heads.start * size, heads.stop * size)
