"""One new token for each sequence: the model's forward pass, on a CPU as few calls as possible.

Decoding one sequence is a pass over all weights, and the speed of memory is the limit, as long as nothing is in the way. A small
model's products take microseconds, and so does each call from Python. So `Decoder` runs the very formulas of `ops` in place, in
buffers and on views that are made once:

- A sequence is a *column*: activations are (C, B), and a product, weight @ x, reads the weight in the order in which it lies.
- wq|wk|wv and w_gate|w_up lie next to each other: each is one product.
- One column is left to BLAS, whose threads wait for the next product, and are there at once (see `complex_product`).
- For several columns a weight is cut into blocks of rows (`blocks`): BLAS multiplies a small matrix as it is, where it would
  first copy all of a large one into another order, which takes longer than the few columns' products. Blocks of what is large,
  such as the head, are shared out to one thread of ours for each core.

What `Decoder` does not know (anything but a Llama on a CPU), the model's own forward does. Both give the same logits.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np

from numllama import ops
from numllama.backend import Array
from numllama.generation.kv_cache import KVCache
from numllama.model import Transformer
from numllama.processes import available_cores
from numllama.training.parallel import blas, one_blas_thread

# Waking another thread takes some 50 microseconds, in which a core makes half as many multiplications: less is not worth it.
SHARED_PRODUCTS = 5 * 10**6
# OpenBLAS multiplies matrices as they are up to a million multiplications, and rows by the dozen.
SMALL_PRODUCT, FEWEST_ROWS, MOST_ROWS = 10**6, 16, 200
# OpenBLAS's threads share a product with one column from so many real multiplications on; a complex one is worth it much earlier.
REAL_PRODUCTS, COMPLEX_PRODUCTS = 460_800, 50_000
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
        if self.plain:
            self._prepare()

    def step(self, tokens: np.ndarray) -> Array:
        """Logits (B, V) after one more token in each sequence, (B,). The next step may overwrite them."""
        if not self.plain:
            return self.model.forward(tokens[:, None], kv_cache=self.cache, last=1)[:, 0]
        self.cache.reserve(len(tokens), 1)
        with one_blas_thread() if len(tokens) > 1 else nullcontext():
            self._forward(tokens)
        self.cache.advance(tokens[:, None])
        return self.logits

    # -------------------------------------------------------------------------------------------- made once

    def _prepare(self) -> None:
        c, B, params, dtype = self.model.config, self.cache.batch_size, self.model.params, self.model.dtype
        C, D, H, K, F = c.dim, c.head_dim, c.n_heads, c.n_kv_heads, c.ffn_dim
        R = H // K
        self.helpers = available_cores() - 1
        self.pool = ThreadPoolExecutor(max(1, self.helpers))
        buffer = lambda *shape: np.empty(shape, dtype)  # noqa: E731
        number = lambda value: np.array(value, dtype)  # noqa: E731      a Python number is converted again at each call

        self.x, self.n, self.branch, self.rms = buffer(C, B), buffer(C, B), buffer(C, B), buffer(B)
        self.rows, self.eps, self.per_row = self.x.T, number(c.norm_eps), number(1 / C)
        self.qkv, self.gate_up, self.hidden = buffer((H + 2 * K) * D, B), buffer(2 * F, B), buffer(F, B)
        self.gate, self.up, self.half, self.one = self.gate_up[:F], self.gate_up[F:], number(0.5), number(1)
        self.columns = buffer(c.vocab_size, B)
        self.logits = self.columns.T if B == 1 else buffer(B, c.vocab_size)

        # Queries and keys, one behind the other, with their pairs of components as an axis, and with each pair turned around.
        pairs, axis = ((2, D // 2), -3) if c.rope_layout == "half" else ((D // 2, 2), -2)
        self.qk = self.qkv[: (H + K) * D].reshape(H + K, *pairs, B)
        self.qk_turned = np.flip(self.qk, axis)
        self.rotated, self.term = buffer(*self.qk.shape), buffer(*self.qk.shape)
        q, k = np.split(self.rotated.reshape(-1, B), [H * D])
        self.k, self.v = (x.reshape(K, D, B).transpose(2, 0, 1) for x in (k, self.qkv[(H + K) * D :]))         # (B, K, D)
        self.q_columns, self.q, self.out = q.T, buffer(B, K, R, D), buffer(B, K, R, D)
        self.mixed = buffer(H * D, B)
        if B == 1:                                                         # a column is a row as well
            self.q, self.mixed = q.reshape(1, K, R, D), self.out.reshape(H * D, 1)
        scale = np.repeat([1 / math.sqrt(D), 1], [H, K])                   # the scores' scale is part of the queries' turn
        self.scale = scale.astype(dtype).reshape(-1, 1, 1, 1)
        self.turn = buffer(2, *self.qk.shape)
        self.table = range(0)

        def weight(first: str, last: str, x: Array, out: Array) -> Callable[[], None]:
            return self._product(params.joined(first, last), x, out)

        self.layers = []
        for i in range(c.n_layers):
            name = f"blocks.{i}."
            layer = SimpleNamespace(
                attn_norm=params[name + "attn_norm"][:, None],
                qkv=weight(name + "wq", name + "wv", self.n, self.qkv),
                wo=weight(name + "wo", name + "wo", self.mixed, self.branch),
                ffn_norm=params[name + "ffn_norm"][:, None],
                gate_up=weight(name + "w_gate", name + "w_up", self.n, self.gate_up),
                w_down=weight(name + "w_down", name + "w_down", self.hidden, self.branch),
            )
            self.layers.append(layer)
        head = "embed" if c.tie_embeddings else "head"
        self.head, self.norm = weight(head, head, self.n, self.columns), params["norm"][:, None]

    def _product(self, weight: Array, x: Array, out: Array) -> Callable[[], None]:
        """out = weight @ x, for arrays that stay where they are."""
        B = x.shape[1]
        if B == 1 and COMPLEX_PRODUCTS <= weight.size < REAL_PRODUCTS and weight.shape[1] % 2 == 0 and openblas_threads() > 1:
            return complex_product(weight, x, out)
        if B == 1:
            return partial(np.matmul, weight, x[:, 0], out[:, 0])
        weight = blocks(weight, B)
        out = out.reshape(*weight.shape[:2], B)
        if len(weight) > self.helpers:
            work, n = lambda rows: np.matmul(weight[rows], x, out[rows]), len(weight)
        else:
            work, n = lambda rows: np.matmul(weight[:, rows], x, out[:, rows]), weight.shape[1]
        return partial(self._share, work, n, weight.size * B)

    # -------------------------------------------------------------------------------------------- each step

    def _forward(self, tokens: np.ndarray) -> None:
        """The model, line by line as in `model.block`, from tokens to logits."""
        x, branch, cache = self.x, self.branch, self.cache
        self._rope()
        keys, hidden = self._visible()
        x[...] = self.model.params["embed"][tokens].T
        stored = (cache.keys[:, :, :, keys], cache.values[:, :, :, keys])               # (L, B, K, S, D)
        for w, k, v in zip(self.layers, *stored, strict=True):
            self._rmsnorm(w.attn_norm)
            w.qkv()
            self._attention(k, v, hidden)
            w.wo()
            np.add(x, branch, x)
            self._rmsnorm(w.ffn_norm)
            w.gate_up()
            self._swiglu()
            w.w_down()
            np.add(x, branch, x)
        self._rmsnorm(self.norm)
        self.head()
        if len(tokens) > 1:
            self._share(self._turn, len(self.columns), 16 * self.columns.size)          # each a step through memory

    def _rmsnorm(self, weight: Array) -> None:
        """n = weight · x / rms(x), column by column."""
        n, rms = self.n, self.rms
        np.vecdot(self.rows, self.rows, rms)
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

    def _turn(self, tokens: slice) -> None:
        """Logits by rows, one for each sequence."""
        np.copyto(self.logits[:, tokens], self.columns[tokens].T)

    def _attention(self, k: Array, v: Array, hidden: Array | None) -> None:
        """Store this step's key and value as the last of k and v (B, K, S, D), and mix the values that each query sees."""
        B, K, R, D = self.q.shape
        np.multiply(self.qk, self.turn[0], self.rotated)
        np.multiply(self.qk_turned, self.turn[1], self.term)
        np.add(self.rotated, self.term, self.rotated)
        k[:, :, -1], v[:, :, -1] = self.k, self.v
        if B == 1:
            attend(self.q, k, v, hidden, self.out)
            return
        self.q.reshape(B, K * R * D)[...] = self.q_columns

        def share(rows: slice) -> None:
            attend(self.q[rows], k[rows], v[rows], None if hidden is None else hidden[rows], self.out[rows])

        self._share(share, B, 8 * R * (k.size + v.size))                   # small products are slow
        self.mixed[...] = self.out.reshape(B, -1).T

    def _share(self, work: Callable[[slice], None], n: int, products: int) -> None:
        """Let each core do a part of n, if it is as much work as that many multiplications."""
        parts = min(n, self.helpers + 1) if products >= SHARED_PRODUCTS else 1
        if parts == 1:
            work(slice(0, n))
            return
        bounds = [n * i // parts for i in range(parts + 1)]
        waiting = [self.pool.submit(work, slice(*bounds[i : i + 2])) for i in range(1, parts)]
        work(slice(*bounds[:2]))
        for part in waiting:
            part.result()

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


def attend(q: Array, k: Array, v: Array, hidden: Array | None, out: Array) -> None:
    """out = softmax(q kᵀ) v:  q and out (B, K, R, D), k and v (B, K, S, D)."""
    p = np.matmul(q, k.swapaxes(2, 3))                                     # (B, K, R, S): scores
    if hidden is not None:
        np.copyto(p, -math.inf, where=hidden)
    np.subtract(p, np.maximum.reduce(p, -1, keepdims=True), p)
    np.exp(p, p)
    np.matmul(p, v, out)
    np.divide(out, np.add.reduce(p, -1, keepdims=True), out)


def openblas_threads() -> int:
    """How many threads NumPy's products have, if they are OpenBLAS's."""
    return max((library["num_threads"] for library in blas().info() if library["internal_api"] == "openblas"), default=0)


def complex_product(weight: Array, x: Array, out: Array) -> Callable[[], None]:
    """out = weight @ x for one column, by complex numbers: two neighbours are one, and ac + bd is the real part of (a + ib)(c − id).

    It is the same sum over the same memory. But BLAS shares it among its threads, where a real product of this size has only one.
    """
    dtype = np.result_type(weight, np.complex64)
    pairs, x = weight.view(dtype), x[:, 0].view(dtype)                     # (O, I/2), (I/2,)
    conjugate, sums = np.empty_like(x), np.empty(len(weight), dtype)
    real = sums.real[:, None]

    def run() -> None:
        np.conjugate(x, conjugate)
        np.matmul(pairs, conjugate, sums)
        np.copyto(out, real)

    return run


def is_plain(model: Transformer) -> bool:
    """Whether this is a Llama, on a CPU, with weights in the dtype that it computes in."""
    c = model.config
    llama = (c.norm, c.positions, c.ffn, c.qk_norm, c.bias) == ("rmsnorm", "rope", "swiglu", None, False)
    return llama and isinstance(model.params.flat, np.ndarray) and model.params.flat.dtype == model.dtype


def blocks(weight: Array, B: int) -> Array:
    """A weight (O, I) as blocks of rows (n, O/n, I), a view: small enough for products with B columns as they lie."""
    O, I = weight.shape  # noqa: E741
    if B == 1:
        return weight[None]
    most = min(MOST_ROWS, SMALL_PRODUCT // (I * B))
    rows = max((rows for rows in range(FEWEST_ROWS, most + 1) if O % rows == 0), default=O)
    return weight.reshape(-1, rows, I)
