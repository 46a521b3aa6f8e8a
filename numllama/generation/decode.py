"""One new token for each sequence: the model's forward pass, on a CPU as few calls as possible.

Decoding one sequence is a pass over all weights, and the speed of memory is the limit, as long as nothing is in the way. A small
model's products take microseconds, and so does each call from Python. So a `Part` runs the very formulas of `ops` in place, in
buffers and on views that are made once:

- A sequence is a *column*: activations are (C, B), and a product, weight @ x, reads the weight in the order in which it lies.
- wq|wk|wv and w_gate|w_up lie next to each other: each is one product.
- One column is left to BLAS, whose threads wait for the next product, and are there at once (`products.complex_product`).
- For several columns a weight is cut into blocks of rows (`products.blocks`): BLAS multiplies a small matrix as it is, where it
  would first copy all of a large one into another order, which takes longer than the few columns' products.
- Cores share several columns as Shoeybi et al. 2019 share a model among GPUs: each has some heads, some hidden units and some of
  the vocabulary, and computes its part of both branches of a layer, which then add up. They meet twice in a layer.

What `Decoder` does not know (anything but a Llama on a CPU), the model's own forward does. Both give the same logits.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from queue import SimpleQueue
from threading import Lock
from types import SimpleNamespace

import numpy as np

from numllama import ops
from numllama.backend import Array, quiet
from numllama.generation.kv_cache import KVCache
from numllama.generation.gemv import product, products
from numllama.model import ModelConfig, Transformer
from numllama.model.parameters import count_parameters
from numllama.system.blas import one_blas_thread
from numllama.system.processes import available_cores

# To meet takes some 50 microseconds, in which a core makes a million multiplications; and threads wait for Python's lock, too.
SHARED_PRODUCTS = 10**7  # between two meetings, at least
TABLE = 256  # positions of RoPE's table that are computed at a time


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
        n = part_count(c, B)
        self.logits = np.empty((B, c.vocab_size), model.dtype)
        branches = np.empty((2, n, c.dim, B), model.dtype)
        self.parts = [Part(model, kv_cache, i, n, branches, self.logits) for i in range(n)]
        self.pool = ThreadPoolExecutor(n - 1) if n > 1 else None

    def step(self, tokens: np.ndarray) -> Array:
        """Logits (B, V) after one more token in each sequence, (B,). The next step may overwrite them."""
        if not self.plain:
            with quiet():
                return self.model.forward(tokens[:, None], kv_cache=self.cache, last=1)[:, 0]
        self.cache.reserve(len(tokens), 1)
        meeting = Meeting(len(self.parts))
        with one_blas_thread() if len(tokens) > 1 else nullcontext():
            others = [self.pool.submit(part.run, tokens, meeting) for part in self.parts[1:]]
            self.parts[0].run(tokens, meeting)
            for other in others:
                other.result()
        if meeting.error:
            raise meeting.error
        self.cache.advance(tokens[:, None])
        return self.logits


class Part:
    """What one core does for a token: some key heads and their queries, some hidden units, some of the vocabulary.

    Parameters
    ----------
    model : Transformer
    kv_cache : KVCache
    i, n : int
        Which part, and of how many.
    branches : array, shape (2, n, C, B)
        What the parts of attention and of the feed-forward block add to the residual stream.
    logits : array, shape (B, V)
    """

    def __init__(self, model: Transformer, kv_cache: KVCache, i: int, n: int, branches: Array, logits: Array) -> None:
        c, B, params, dtype = model.config, kv_cache.batch_size, model.params, model.dtype
        self.model, self.cache, self.i, self.branches = model, kv_cache, i, branches
        sizes = c.n_kv_heads, c.ffn_dim, c.vocab_size
        self.heads, units, tokens = (slice(size * i // n, size * (i + 1) // n) for size in sizes)
        C, D, R, F, V = c.dim, c.head_dim, c.n_heads // c.n_kv_heads, units.stop - units.start, tokens.stop - tokens.start
        K = self.heads.stop - self.heads.start
        H, of_k, of_q = R * K, rows(self.heads, D), rows(self.heads, R * D)
        buffer = lambda *shape: np.empty(shape, dtype)  # noqa: E731
        number = lambda value: np.array(value, dtype)  # noqa: E731      a Python number is converted again at each call

        self.x, self.n, self.rms = buffer(C, B), buffer(C, B), buffer(B)
        self.sequences, self.eps, self.per_row = self.x.T, number(c.norm_eps), number(1 / C)
        self.qkv, self.gate_up, self.hidden = buffer((H + 2 * K) * D, B), buffer(2 * F, B), buffer(F, B)
        self.gate, self.up, self.half, self.one = self.gate_up[:F], self.gate_up[F:], number(0.5), number(1)
        self.columns, self.logits = buffer(V, B), logits[:, tokens]

        # Queries and keys, one behind the other, with their pairs of components as an axis, and with each pair turned around.
        pairs, axis = ((2, D // 2), -3) if c.rope_layout == "half" else ((D // 2, 2), -2)
        self.qk = self.qkv[: (H + K) * D].reshape(H + K, *pairs, B)
        self.qk_turned = np.flip(self.qk, axis)
        self.rotated, self.term = buffer(*self.qk.shape), buffer(*self.qk.shape)
        q, k = np.split(self.rotated.reshape(-1, B), [H * D])
        self.k, self.v = (x.reshape(K, D, B).transpose(2, 0, 1) for x in (k, self.qkv[(H + K) * D :]))         # (B, K, D)
        self.q_rows, self.q, self.out, self.mixed = q.T, buffer(B, K, R, D), buffer(B, K, R, D), buffer(H * D, B)
        if B == 1:                                                         # a column is a row as well
            self.q, self.mixed = q.reshape(1, K, R, D), self.out.reshape(H * D, 1)
        scale = np.repeat([1 / math.sqrt(D), 1], [H, K])                   # the scores' scale is part of the queries' turn
        self.scale, self.turn, self.table = scale.astype(dtype).reshape(-1, 1, 1, 1), buffer(2, *self.qk.shape), range(0)

        self.layers = []
        for layer, w in enumerate(params.blocks):
            name, whole = f"blocks.{layer}.", n == 1
            qkv = [params.joined(name + "wq", name + "wv")] if whole else [w["wq"][of_q], w["wk"][of_k], w["wv"][of_k]]
            gate_up = [params.joined(name + "w_gate", name + "w_up")] if whole else [w["w_gate"][units], w["w_up"][units]]
            self.layers.append(
                SimpleNamespace(
                    attn_norm=w["attn_norm"][:, None],
                    qkv=products(qkv, self.n, self.qkv),
                    wo=product(w["wo"][:, of_q], self.mixed, branches[0, i]),
                    ffn_norm=w["ffn_norm"][:, None],
                    gate_up=products(gate_up, self.n, self.gate_up),
                    w_down=product(w["w_down"][:, units], self.hidden, branches[1, i]),
                )
            )
        head = params["embed" if c.tie_embeddings else "head"]
        self.head, self.norm = product(head[tokens], self.n, self.columns), params["norm"][:, None]

    def run(self, tokens: np.ndarray, meeting: "Meeting") -> None:
        """This part of a step; an error is the whole meeting's."""
        try:
            with quiet():  # of this thread
                self._forward(tokens, meeting)
        except BaseException as error:
            meeting.fail(error)

    def _forward(self, tokens: np.ndarray, meeting: "Meeting") -> None:
        """The model, line by line as in `model.block`, from tokens to logits."""
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
            self._add(mixed, meeting)
            self._rmsnorm(w.ffn_norm)
            w.gate_up()
            self._swiglu()
            w.w_down()
            self._add(fed, meeting)
        self._rmsnorm(self.norm)
        self.head()
        np.copyto(self.logits, self.columns.T)

    def _add(self, branches: Array, meeting: "Meeting") -> None:
        """Add all parts of a branch to the residual stream, each of us to its own copy, once all have theirs."""
        meeting.wait(self.i)
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
        """Store this step's key and value as the last of k and v (B, K, S, D), and mix the values that each query sees."""
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

    # -------------------------------------------------------------------------------------------- where it stands

    def _visible(self) -> tuple[slice, Array | None]:
        """The slots that some sequence sees, and where they are hidden from one (B, 1, 1, S), None if nowhere."""
        first, _ = self.cache.intervals(1)
        stop = self.cache.used + 1
        if first is None:
            return slice(0, stop), None
        begin = int(first.min())
        hidden = np.arange(begin, stop) < first                            # (B, S); all see up to `stop`
        return slice(begin, stop), hidden[:, None, None] if hidden.any() else None

    def _rope(self) -> None:
        """What turns queries and keys at this step: cosines and sines (2, H + K, pairs, B)."""
        positions = self.cache.positions(1).ravel().tolist()               # 1 or B
        table = self.table
        if not table.start <= min(positions) <= max(positions) < table.stop:
            table = self.table = range(min(positions), max(positions) + TABLE)
            self.turns = self._turns(np.array(table))
        turns = self.turns[..., [position - table.start for position in positions]]     # (2, 1, pairs, 1 or B)
        np.multiply(turns, self.scale, self.turn)

    def _turns(self, positions: np.ndarray) -> Array:
        """Cosines and sines in the order of the pairs, (2, 1, pairs, positions)."""
        c = self.model.config
        table = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, self.model.dtype)
        cos, sin = (part.T for part in table)                              # (D/2, positions)
        axis = 0 if c.rope_layout == "half" else 1
        return np.stack([np.stack([cos, cos], axis), np.stack([-sin, sin], axis)])[:, None]


class Meeting:
    """Where the parts of one step wait for each other."""

    def __init__(self, n: int) -> None:
        self.n, self.arrived, self.error = n, 0, None
        self.lock, self.gates = Lock(), [SimpleQueue() for _ in range(n)]

    def wait(self, i: int) -> None:
        """Part i is here; go on when all are."""
        if self.n == 1:
            return
        with self.lock:
            self.arrived = (self.arrived + 1) % self.n
            is_last = self.arrived == 0
        if is_last:
            self._open(True, but=i)
        elif not self.gates[i].get():
            raise RuntimeError("another part of the step failed")

    def fail(self, error: BaseException) -> None:
        """A part has failed: no other waits for it."""
        with self.lock:
            self.error = self.error or error
        self._open(False)

    def _open(self, all_are_here: bool, but: int | None = None) -> None:
        for i, gate in enumerate(self.gates):
            if i != but:
                gate.put(all_are_here)


def is_plain(model: Transformer) -> bool:
    """Whether this is a Llama, on a CPU, without an adapter, with weights in the dtype that it computes in."""
    c = model.config
    if model.adapter is not None:
        return False
    llama = (c.norm, c.positions, c.ffn, c.qk_norm, c.bias) == ("rmsnorm", "rope", "swiglu", None, False)
    return llama and isinstance(model.params.flat, np.ndarray) and model.params.flat.dtype == model.dtype


def part_count(config: ModelConfig, B: int) -> int:
    """Into how many parts a step is cut: one for each core, if there is enough to do between two meetings."""
    if B == 1 or count_parameters(config) * B < SHARED_PRODUCTS * 2 * config.n_layers:
        return 1
    return min(available_cores(), config.n_kv_heads, config.ffn_dim, config.vocab_size)


def rows(heads: slice, size: int) -> slice:
    """Where some heads' rows stand in a matrix."""
    return slice(heads.start * size, heads.stop * size)
