"""Decoder: one new token of each sequence on a GPU, recorded once as a CUDA graph, then replayed.

A token of a small model takes about a hundred launches, and the host needs longer to launch them than the GPU to run them. A
graph is a single launch. The values that change from token to token are in device memory, where the sampling kernel updates them:
the tokens, their positions, and their slots in the KV cache. So the host only reads the sampled tokens. It uploads new values if
they change in another way: at the start, after a window has moved, or for tokens that the GPU did not sample.

The first token runs launch by launch, which fills the memory pool; the second is recorded. If the cache grows, its addresses
change, and a new graph is recorded. A step that cannot be recorded runs launch by launch: the same kernels, the same bits.
"""

import math
import warnings
from typing import Any

import numpy as np

from numllama import ops
from numllama.backend import Array, real_dtype
from numllama.checks import checked_ids
from numllama.cuda import launch
from numllama.cuda.gemm import gemm
from numllama.cuda.launch import int32
from numllama.cuda.sample import Sampler
from numllama.cuda.stream import StagingBuffers, stream
from numllama.ops.rope_scaling import depends_on_length

MAX_HEAD = 256        # largest head size: a lane keeps its part of query and sum in registers
QUERY_BYTES = 128     # at most, of the block's queries per lane
MOST_PARTS = 32       # parts of the keys of a sequence, at most
LEAST_KEYS = 64       # per part, when the cache is full
INT32 = np.dtype(np.int32)
ROPE = {"half": 1, "interleaved": 2}
QK_NORM = {None: 0, "rms": 1, "l2": 2}


def decoder(model: Any, kv_cache: Any, sampler: Any = None) -> "Decoder | None":
    """A decoder for a model on a GPU; None for models that :mod:`numllama.generation.decode` decodes."""
    on_gpu = launch.runs_here((model.weights.flat,))
    return Decoder(model, kv_cache, sampler) if on_gpu and Decoder.supports(model) else None


class Decoder:
    """Logits for the next token, step after step, as :class:`numllama.generation.decode.Decoder` on a CPU.

    Parameters
    ----------
    model : Transformer
    kv_cache : KVCache
        Holds the prompt; each step adds a token to it.
    sampler : Sampler, optional
        Samples from the logits as part of the step.
    graph : bool
        Record the second step and replay it afterwards.

    Attributes
    ----------
    logits : array, shape (B, V)
    launches : int
        Number of graphs launched.
    """

    def __init__(self, model: Any, kv_cache: Any, sampler: Sampler | None = None, graph: bool = True) -> None:
        c, B = model.config, kv_cache.batch_size
        self.model, self.cache, self.sampler = model, kv_cache, sampler
        self.stream, self.real = stream(), real_dtype(model.compute_dtype)
        self.launches, self._may_record, self._is_warm, self._replay = 0, graph, False, None
        self._keys: Array = None
        like = model.weights.flat
        with self.stream.entered():
            rows = dict.fromkeys(("tokens", "slots", "firsts", "positions"), ((B,), INT32))
            self.staged = StagingBuffers(like, **rows, table_start=((), INT32))
            self.logits = launch.empty(like, (B, c.vocab_size), model.compute_dtype)
        self.blocks, self.ends = model._blocks(), model._ends()        # with an adapter's updates
        self.table = range(0)
        self.cos: Array = None
        self.sin: Array = None
        self._tiling()

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the kernels decode this model."""
        c, flat = model.config, model.weights.flat
        fits = flat.dtype == model.compute_dtype and c.head_dim <= MAX_HEAD and c.is_classic
        return launch.backend.owns(flat) and fits and not depends_on_length(c.rope_scaling)

    def step(self, tokens: np.ndarray) -> Array:
        """Logits (B, V) after one more token in each sequence, (B,). The next step overwrites them."""
        cache = self.cache
        cache.reserve(len(tokens), 1)
        with self.stream.entered(), checked_ids():
            self._prepare(tokens)
            if self.sampler is not None:
                self.sampler.prepare()
            if self._is_warm and self._may_record and self._replay is None:
                self._record()
            if self._replay is not None:
                self.launches += 1
                self._replay()
            else:
                self._launch_all()
        self._is_warm = True
        if self.sampler is not None:
            self.sampler.drawn_from = self.logits
            for name in ("slots", "positions"):                        # as the kernel has done
                self.staged.host[name] += 1
        cache.advance(tokens[:, None])
        return self.logits

    # -------------------------------------------------------------------------------------------- between steps

    def _prepare(self, tokens: np.ndarray) -> None:
        """Upload tokens and positions, unless the device sampled these tokens and has advanced its counters."""
        cache, host = self.cache, self.staged.host
        if self._keys is not cache.keys:                               # the cache has grown
            self._replay, self._keys, self.table = None, cache.keys, range(0)
            self._part_buffers()
        positions = cache.length - cache.starts
        now = dict(
            slots=np.full(len(tokens), cache.used), firsts=(cache.starts - cache.dropped).clip(0), positions=positions,
        )  # fmt: skip
        drawn = self.sampler.drawn_last if self.sampler is not None and self._is_warm else None
        is_known = drawn is not None and bool((drawn == tokens).all()) and all((host[n] == now[n]).all() for n in now)
        if self.model.config.positions == "rope":
            is_known &= self._turns(int(positions.min()), int(positions.max()))
        if not is_known:
            for name, values in now.items():
                host[name][...] = values
            host["tokens"][...] = tokens
            self.staged.upload()

    def _turns(self, least: int, most: int) -> bool:
        """Make sure that RoPE's table has these positions; returns whether it already did."""
        table = self.table
        if table.start <= least and most < table.stop:
            return True
        c, xp = self.model.config, self.model.xp
        rows = self.cache.capacity + most - least + 1
        if len(table) < rows:
            shape = (rows, c.head_dim // 2)
            self.cos, self.sin = (launch.empty(self.logits, shape, self.real) for _ in range(2))
            self._replay = None                                        # the graph has the old addresses
        self.table = range(least, least + len(self.cos))
        positions = xp.arange(self.table.start, self.table.stop)
        cos, sin = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, self.real)
        self.cos[...], self.sin[...] = cos, sin
        self.staged.host["table_start"][...] = least
        return False

    def _record(self) -> None:
        try:
            self._replay = self.stream.record(self._launch_all)
        except Exception as error:
            self._may_record = False
            message = f"decoding could not be recorded as a CUDA graph, and runs launch by launch: {error}"
            warnings.warn(message, stacklevel=3)

    # -------------------------------------------------------------------------------------------- the step

    def _launch_all(self) -> None:
        """The model from tokens to logits, as in `model.block`; the host waits for no launch."""
        c, w, staged = self.model.config, self.ends, self.staged.device
        x, _ = ops.embedding_forward(staged["tokens"], w["embed"])           # (B, C)
        if c.positions == "learned":
            x = x + ops.embedding_forward(staged["positions"], w["pos_embed"])[0]
        branch = None
        for i, block in enumerate(self.blocks):
            x, n = self._add_norm(x, branch, block, "attn_norm")
            mixed = self._attention(i, *self._linears(n, block, "wq", "wk", "wv"))         # (B, H·D)
            x, n = self._add_norm(x, self._linear(mixed, block, "wo"), block, "ffn_norm")
            branch = self._linear(self._activation(n, block), block, "w_down")
        _, n = self._add_norm(x, branch, w, "norm")
        gemm(n, w["embed" if c.tie_embeddings else "head"].T, self.logits)
        if self.sampler is not None:
            self.sampler.launch(self.logits, staged["tokens"], staged["slots"], staged["positions"])

    def _add_norm(self, x: Array, branch: Array | None, w: Any, name: str) -> tuple[Array, Array]:
        """Add a branch to the residual stream; returns the sum and its norm."""
        eps = self.model.config.norm_eps
        if self.model.config.norm == "layernorm":
            x = x if branch is None else x + branch
            return x, ops.layernorm_forward(x, w[name], w[f"{name}_bias"], eps)[0]
        if branch is None:
            return x, ops.rmsnorm_forward(x, w[name], eps)[0]
        return ops.add_rmsnorm_forward(x, branch, w[name], eps)[0]

    def _linear(self, x: Array, w: dict, name: str) -> Array:
        """A linear map, with its bias and an adapter's update, if any."""
        out, _ = ops.linear_forward(x, w[name], w.get(f"{name}_bias"))
        if f"{name}_lora_a" in w:
            out += ops.lora_forward(x, w[f"{name}_lora_a"], w[f"{name}_lora_b"], w[f"{name}_lora_scale"])[0]
        return out

    def _linears(self, x: Array, w: dict, *names: str) -> tuple[Array, ...]:
        """Several maps of one input as one product, unless an adapter updates one of them."""
        if any(f"{name}_lora_a" in w for name in names):
            return tuple(self._linear(x, w, name) for name in names)
        biases = tuple(w[f"{name}_bias"] for name in names) if f"{names[0]}_bias" in w else None
        return ops.linears_forward(x, tuple(w[name] for name in names), biases)[0]

    def _activation(self, n: Array, w: dict) -> Array:
        """The input of w_down, (B, F)."""
        if self.model.config.ffn == "gelu":
            return ops.gelu_forward(self._linear(n, w, "w_up"))[0]
        return ops.swiglu_forward(*self._linears(n, w, "w_gate", "w_up"))[0]

    def _attention(self, i: int, q: Array, k: Array, v: Array) -> Array:
        """Rotate queries and keys, store keys and values, and mix the values that each query sees: (B, H·D)."""
        c, cache, staged, B = self.model.config, self.cache, self.staged.device, len(q)
        D, H, K, S = c.head_dim, c.n_heads, c.n_kv_heads, cache.capacity
        keys, values = cache.keys[i], cache.values[i]
        q_stride, kv_stride = (int32(x.strides[0] // x.itemsize) if B > 1 else int32(0) for x in (q, k))
        norms = [self.blocks[i][name] if c.qk_norm == "rms" else None for name in ("q_norm", "k_norm")]
        args = [
            *map(launch.strided, (q, k, v)), keys, values, *norms, self.cos, self.sin, staged["slots"], staged["positions"],
            staged["table_start"], int32(H), int32(K), int32(S), q_stride, kv_stride, self.real.type(c.norm_eps),
        ]  # fmt: skip
        launch.launch("decode", "rope_append", (launch.blocks(H + 2 * K, 4), B), 128, args, **self.defines)
        out, window = launch.empty(q, (B, H * D), q.dtype), int32(cache.window or 0)
        scale = self.real.type(math.log2(math.e) / math.sqrt(D))
        args = [
            out, self.sums, self.tops, launch.strided(q), keys, values, staged["slots"], staged["firsts"],
            int32(H), int32(K), int32(S), q_stride, window, int32(self.parts), scale,
        ]  # fmt: skip
        grid = (self.parts, K * self.tiles, B)
        launch.launch("decode", "attention_decode", grid, 128, args, self.shared_bytes, **self.defines)
        if self.parts > 1:
            args = [out, self.sums, self.tops, staged["slots"], staged["firsts"], int32(H), int32(S), window, int32(self.parts)]
            launch.launch("decode", "attention_sum", (H, B), 128, args, **self.defines)
        return out

    # -------------------------------------------------------------------------------------------- how the work is cut

    def _tiling(self) -> None:
        """Choose lanes per key and query heads per block: see kernels/decode.cu."""
        c, dtype = self.model.config, self.model.compute_dtype
        D, R = c.head_dim, c.n_heads // c.n_kv_heads
        n = 16 // dtype.itemsize
        width = 1 if D % n else n                                      # so rows of the cache begin at multiples of 16 bytes
        lanes = min(32, 1 << (launch.blocks(D, width) - 1).bit_length())
        numbers = width * launch.blocks(D, width * lanes)
        rows = min(R, max(1, QUERY_BYTES // (numbers * self.real.itemsize)))
        self.tiles = launch.blocks(R, rows)
        self.shared_bytes = 128 // lanes * rows * (D + 2) * self.real.itemsize
        rope = ROPE[c.rope_layout] if c.positions == "rope" else 0
        self.defines = dict(DTYPE=dtype, WIDTH=width, D=D, ROWS=rows, LANES=lanes, QK_NORM=QK_NORM[c.qk_norm], ROPE=rope)

    def _part_buffers(self) -> None:
        """Choose the number of parts of each sequence's keys, and allocate their partial sums."""
        c, B = self.model.config, self.cache.batch_size
        self.parts = min(MOST_PARTS, launch.blocks(self.cache.capacity, LEAST_KEYS))
        self.sums = self.tops = None
        if self.parts > 1:
            shape = B, c.n_heads, self.parts
            self.sums, self.tops = (launch.empty(self.logits, (*shape, size), self.real) for size in (c.head_dim, 2))

