"""One new token for each sequence: the model's forward pass, on a CPU as few calls as possible.

Decoding one sequence is a pass over all weights, and the speed of memory is the limit, as long as nothing is in the way. A small
model's products take microseconds, and so does each call from Python. So `Decoder` runs the very formulas of `ops` in place, in
buffers and on views that are made once:

- A sequence is a *column*: activations are (C, B), and a product, weight @ x, reads the weight in the order in which it lies.
- wq|wk|wv and w_gate|w_up lie next to each other: each is one product.
- One column is left to BLAS, whose threads share every product: they wait for the next one, and are there at once.
- For several columns a weight is cut into blocks of rows (`blocks`): BLAS multiplies a small matrix as it is, where it would
  first copy all of a large one into another order, which takes longer than the few columns' products. Blocks of what is large,
  such as the head, are shared out to one thread of ours for each core.

What `Decoder` does not know (anything but a Llama on a CPU), the model's own forward does. Both give the same logits.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np

from numllama import ops
from numllama.backend import Array
from numllama.generation.kv_cache import KVCache
from numllama.model import Transformer
from numllama.processes import available_cores
from numllama.training.parallel import one_blas_thread

# Waking another thread takes some 50 microseconds, in which a core makes half as many multiplications: less is not worth it.
SHARED_PRODUCTS = 5 * 10**6
# OpenBLAS multiplies matrices as they are up to a million multiplications, and rows by the dozen.
SMALL_PRODUCT, FEWEST_ROWS, MOST_ROWS = 10**6, 16, 200
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

        self.x, self.n, self.branch, self.rms = buffer(C, B), buffer(C, B), buffer(C, B), buffer(1, B)
        self.qkv, self.mixed = buffer((H + 2 * K) * D, B), buffer(H * D, B)
        self.gate_up, self.hidden = buffer(2 * F, B), buffer(F, B)
        self.gate, self.up = self.gate_up[:F], self.gate_up[F:]
        self.q, self.out = buffer(B, K, R, D), buffer(B, K, R, D)
        self.columns, self.logits = buffer(c.vocab_size, B), buffer(B, c.vocab_size)

        # Of q and k: views of the projection, with their pairs of components as an axis, and with each pair turned around.
        pairs, axis = ((2, D // 2), -3) if c.rope_layout == "half" else ((D // 2, 2), -2)
        q, k, v = np.split(self.qkv, [H * D, (H + K) * D])
        self.q_pairs, self.k_pairs = q.reshape(H, *pairs, B), k.reshape(K, *pairs, B)
        self.q_turned, self.k_turned = np.flip(self.q_pairs, axis), np.flip(self.k_pairs, axis)
        self.v = v.reshape(K, D, B).transpose(2, 0, 1)                     # (B, K, D)
        self.table = slice(0, 0)

        def weight(first: str, last: str, out: Array) -> tuple[Array, Array]:
            cut = blocks(params.joined(first, last), B)
            return cut, out.reshape(*cut.shape[:2], B)

        self.layers = []
        for i in range(c.n_layers):
            name = f"blocks.{i}."
            layer = SimpleNamespace(
                attn_norm=params[name + "attn_norm"][:, None],
                qkv=weight(name + "wq", name + "wv", self.qkv),
                wo=weight(name + "wo", name + "wo", self.branch),
                ffn_norm=params[name + "ffn_norm"][:, None],
                gate_up=weight(name + "w_gate", name + "w_up", self.gate_up),
                w_down=weight(name + "w_down", name + "w_down", self.branch),
            )
            self.layers.append(layer)
        head = "embed" if c.tie_embeddings else "head"
        self.head, self.norm = weight(head, head, self.columns), params["norm"][:, None]

    # -------------------------------------------------------------------------------------------- each step

    def _forward(self, tokens: np.ndarray) -> None:
        """The model, line by line as in `model.block`, from tokens to logits."""
        turn, keys, hidden, x = self._rope(), *self._visible(), self.x
        x[...] = self.model.params["embed"][tokens].T
        for layer, w in enumerate(self.layers):
            self._rmsnorm(w.attn_norm)
            self._product(*w.qkv, self.n)
            self._attention(layer, turn, keys, hidden)
            self._product(*w.wo, self.mixed)
            np.add(x, self.branch, x)
            self._rmsnorm(w.ffn_norm)
            self._product(*w.gate_up, self.n)
            self._swiglu()
            self._product(*w.w_down, self.hidden)
            np.add(x, self.branch, x)
        self._rmsnorm(self.norm)
        self._product(*self.head, self.n)
        self._share(self._turn, len(self.columns), 16 * self.columns.size)                         # each a step through memory

    def _rmsnorm(self, weight: Array) -> None:
        """n = weight · x / rms(x), column by column."""
        x, n, rms = self.x, self.n, self.rms
        np.multiply(x, x, n)
        np.add.reduce(n, 0, None, rms, True)
        np.multiply(rms, 1 / len(x), rms)
        np.add(rms, self.model.config.norm_eps, rms)
        np.sqrt(rms, rms)
        np.divide(x, rms, n)
        np.multiply(n, weight, n)

    def _swiglu(self) -> None:
        """hidden = silu(gate) · up, with g = gate/2:  silu(2g) = g·(1 + tanh g)."""
        gate, hidden = self.gate, self.hidden
        np.multiply(gate, 0.5, gate)
        np.tanh(gate, hidden)
        np.add(hidden, 1, hidden)
        np.multiply(hidden, gate, hidden)
        np.multiply(hidden, self.up, hidden)

    def _product(self, weight: Array, out: Array, x: Array) -> None:
        """out = weight @ x, block by block."""
        products = weight.size * x.shape[1]
        if x.shape[1] == 1:
            np.matmul(weight, x, out)
        elif len(weight) > self.helpers:
            self._share(lambda rows: np.matmul(weight[rows], x, out[rows]), len(weight), products)
        else:
            self._share(lambda rows: np.matmul(weight[:, rows], x, out[:, rows]), weight.shape[1], products)

    def _turn(self, tokens: slice) -> None:
        """Logits by rows, one for each sequence."""
        np.copyto(self.logits[:, tokens], self.columns[tokens].T)

    def _attention(self, layer: int, turn: tuple, keys: slice, hidden: Array | None) -> None:
        """Store this step's keys and values, and mix the values that each query sees."""
        slot, cos, sin, q_cos, q_sin = self.cache.used, *turn
        B, K, R, D = self.q.shape
        k_cache, v_cache = self.cache.keys[layer], self.cache.values[layer]
        k = self.k_pairs * cos
        k += self.k_turned * sin
        k_cache[:, :, slot] = k.reshape(K, D, B).transpose(2, 0, 1)
        v_cache[:, :, slot] = self.v
        q = self.q_pairs * q_cos
        q += self.q_turned * q_sin
        self.q.reshape(B, K * R, D)[...] = q.reshape(K * R, D, B).transpose(2, 0, 1)
        k, v = k_cache[:, :, keys], v_cache[:, :, keys]

        def attend(rows: slice) -> None:
            p = np.matmul(self.q[rows], k[rows].swapaxes(2, 3))            # (b, K, R, S): scores
            if hidden is not None:
                np.copyto(p, -math.inf, where=hidden[rows])
            np.subtract(p, np.maximum.reduce(p, -1, keepdims=True), p)
            np.exp(p, p)
            out = self.out[rows]
            np.matmul(p, v[rows], out)
            np.divide(out, np.add.reduce(p, -1, keepdims=True), out)

        self._share(attend, B, 8 * R * (k.size + v.size))                  # small products are slow
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

    def _rope(self) -> tuple[Array, Array, Array, Array]:
        """Cosines and sines for keys, and for queries with the scale of the scores: (..., 1 or B), in the order of the pairs."""
        c = self.model.config
        positions = self.cache.positions(1).reshape(-1)                    # (1,) or (B,)
        if not self.table.start <= positions.min() <= positions.max() < self.table.stop:
            self.table = slice(int(positions.min()), int(positions.max()) + TABLE)
            every = np.arange(self.table.start, self.table.stop)
            self.cos, self.sin = ops.rope_table(every, c.head_dim, c.rope_theta, c.rope_scaling, self.model.dtype)
        cos, sin = (table[positions - self.table.start].T for table in (self.cos, self.sin))       # (D/2, 1 or B)
        axis = 0 if c.rope_layout == "half" else 1
        cos, sin = np.stack([cos, cos], axis), np.stack([-sin, sin], axis)
        scale = 1 / math.sqrt(c.head_dim)
        return cos, sin, cos * scale, sin * scale


def is_plain(model: Transformer) -> bool:
    """Whether this is a Llama, on a CPU, without an adapter, with weights in the dtype that it computes in."""
    c = model.config
    if model.adapter is not None:
        return False
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
