"""Decoder: one new token for each sequence, on a GPU: recorded once as a CUDA graph, then replayed.

A token of a small model is some hundred launches, and the host takes longer to make them than the GPU to run them. A graph is
launched at once. Whatever changes from token to token lies in device memory, where the sampling kernel itself counts it up: the
tokens, their positions, and the slots of the KV cache that their keys belong in. So the host sends nothing, and reads what was
drawn. It writes all that anew where it has changed otherwise: at the start, after a window has moved, or for tokens of its own.

The first token runs launch by launch, which leaves room in the pool of memory; the second is recorded. Where the cache has grown,
addresses have changed, and a new graph is recorded. What cannot be recorded runs launch by launch: the same kernels, the same
bits.
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

MAX_HEAD = 256        # of a head, so that a lane's part of query and sum stays in registers
QUERY_BYTES = 128     # that a lane has of its block's queries, at most
MOST_PARTS = 32       # of a sequence's keys
LEAST_KEYS = 64       # of a part, when the cache is full
ROPE = {"half": 1, "interleaved": 2}
QK_NORM = {None: 0, "rms": 1, "l2": 2}


def decoder(model: Any, kv_cache: Any, sampler: Any = None) -> "Decoder | None":
    """What decodes a token on a GPU, and draws the next one; None where :mod:`numllama.generation.decode` does."""
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
        Draws from the logits as part of the step.
    graph : bool
        Record the second step, and replay it from then on.

    Attributes
    ----------
    logits : array, shape (B, V)
    launches : int
        How many graphs were launched.
    """

    def __init__(self, model: Any, kv_cache: Any, sampler: Sampler | None = None, graph: bool = True) -> None:
        c, B = model.config, kv_cache.batch_size
        self.model, self.cache, self.sampler = model, kv_cache, sampler
        self.stream, self.real = stream(), real_dtype(model.dtype)
        self.launches, self._may_record, self._is_warm, self._replay = 0, graph, False, None
        self._keys: Array = None
        like = model.weights.flat
        with self.stream.entered():
            rows = dict.fromkeys(("tokens", "slots", "firsts", "positions"), ((B,), np.int32))
            self.told = StagingBuffers(like, **rows, table_start=((), np.int32))
            self.logits = launch.empty(like, (B, c.vocab_size), model.dtype)
        self.blocks = model._blocks()                                  # an adapter's updates among them
        self.scale = model.adapter.config.scale if model.adapter else 1.0
        self.table = range(0)
        self.cos = self.sin = None
        self._tiling()

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether the kernels decode this model."""
        flat = model.weights.flat
        return launch.backend.owns(flat) and flat.dtype == model.dtype and model.config.head_dim <= MAX_HEAD

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
            for name in ("slots", "positions"):                        # as the kernel has counted
                self.told.host[name] += 1
        cache.advance(tokens[:, None])
        return self.logits

    # -------------------------------------------------------------------------------------------- between the steps

    def _prepare(self, tokens: np.ndarray) -> None:
        """Tell the device where the sequences stand, unless it is one slot further, and the tokens, unless it has drawn them."""
        cache, host = self.cache, self.told.host
        if self._keys is not cache.keys:                               # the cache has grown
            self._replay, self._keys, self.table = None, cache.keys, range(0)
            self._part_buffers()
        positions = cache.length - cache.starts
        now = dict(
            slots=np.full(len(tokens), cache.used), firsts=(cache.starts - cache.dropped).clip(0), positions=positions,
        )  # fmt: skip
        is_own = self.sampler is not None and self.sampler.drawn_last is not None and self._is_warm
        is_known = is_own and (self.sampler.drawn_last == tokens).all() and all((host[n] == now[n]).all() for n in now)
        if self.model.config.positions == "rope":
            is_known &= self._turns(int(positions.min()), int(positions.max()))
        if not is_known:
            for name, values in now.items():
                host[name][...] = values
            host["tokens"][...] = tokens
            self.told.upload()

    def _turns(self, least: int, most: int) -> bool:
        """See to it that these positions are in RoPE's table; whether they were."""
        table = self.table
        if table.start <= least and most < table.stop:
            return True
        c, xp = self.model.config, self.model.xp
        rows = self.cache.capacity + most - least + 1
        if len(table) < rows:
            shape = (rows, c.head_dim // 2)
            self.cos, self.sin = (launch.empty(self.logits, shape, self.real) for _ in range(2))
            self._replay = None                                        # it has the addresses of the old ones
        self.table = range(least, least + len(self.cos))
        positions = xp.arange(self.table.start, self.table.stop)
        cos, sin = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, self.real)
        self.cos[...], self.sin[...] = cos, sin
        self.told.host["table_start"][...] = least
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
        """The model, line by line as in `model.block`, from tokens to logits: launches only, none of which the host waits for."""
        c, w, told = self.model.config, self.model.weights, self.told.device
        x, _ = ops.embedding_forward(told["tokens"], w["embed"])           # (B, C)
        if c.positions == "learned":
            x = x + ops.embedding_forward(told["positions"], w["pos_embed"])[0]
        branch = None
        for i, block in enumerate(self.blocks):
            x, n = self._add_norm(x, branch, block, "attn_norm")
            mixed = self._attention(i, *self._linears(n, block, "wq", "wk", "wv"))         # (B, H·D)
            x, n = self._add_norm(x, self._linear(mixed, block, "wo"), block, "ffn_norm")
            branch = self._linear(self._activation(n, block), block, "w_down")
        _, n = self._add_norm(x, branch, w, "norm")
        gemm(n, w["embed" if c.tie_embeddings else "head"].T, self.logits)
        if self.sampler is not None:
            self.sampler.launch(self.logits, told["tokens"], told["slots"], told["positions"])

    def _add_norm(self, x: Array, branch: Array | None, w: Any, name: str) -> tuple[Array, Array]:
        """The residual stream with a branch, and the norm of it."""
        eps = self.model.config.norm_eps
        if self.model.config.norm == "layernorm":
            x = x if branch is None else x + branch
            return x, ops.layernorm_forward(x, w[name], w[f"{name}_bias"], eps)[0]
        if branch is None:
            return x, ops.rmsnorm_forward(x, w[name], eps)[0]
        return ops.add_rmsnorm_forward(x, branch, w[name], eps)[0]

    def _linear(self, x: Array, w: dict, name: str) -> Array:
        """A linear map, with its bias and an adapter's update where there are any."""
        out, _ = ops.linear_forward(x, w[name], w.get(f"{name}_bias"))
        if f"{name}_lora_a" in w:
            out += ops.lora_forward(x, w[f"{name}_lora_a"], w[f"{name}_lora_b"], self.scale)[0]
        return out

    def _linears(self, x: Array, w: dict, *names: str) -> tuple[Array, ...]:
        """Several maps of one input: one product, where an adapter has no part in them."""
        if any(f"{name}_lora_a" in w for name in names):
            return tuple(self._linear(x, w, name) for name in names)
        biases = tuple(w[f"{name}_bias"] for name in names) if f"{names[0]}_bias" in w else None
        return ops.linears_forward(x, tuple(w[name] for name in names), biases)[0]

    def _activation(self, n: Array, w: dict) -> Array:
        """What w_down reads, (B, F)."""
        if self.model.config.ffn == "gelu":
            return ops.gelu_forward(self._linear(n, w, "w_up"))[0]
        return ops.swiglu_forward(*self._linears(n, w, "w_gate", "w_up"))[0]

    def _attention(self, i: int, q: Array, k: Array, v: Array) -> Array:
        """Turn queries and keys, store keys and values, and mix the values that each query sees: (B, H·D)."""
        c, cache, told, B = self.model.config, self.cache, self.told.device, len(q)
        D, H, K, S = c.head_dim, c.n_heads, c.n_kv_heads, cache.capacity
        keys, values = cache.keys[i], cache.values[i]
        q_stride, kv_stride = (int32(x.strides[0] // x.itemsize) if B > 1 else int32(0) for x in (q, k))
        norms = [self.blocks[i][name] if c.qk_norm == "rms" else None for name in ("q_norm", "k_norm")]
        args = [
            *map(launch.strided, (q, k, v)), keys, values, *norms, self.cos, self.sin, told["slots"], told["positions"],
            told["table_start"], int32(H), int32(K), int32(S), q_stride, kv_stride, self.real.type(c.norm_eps),
        ]  # fmt: skip
        launch.launch("decode", "rope_append", (launch.blocks(H + 2 * K, 4), B), 128, args, **self.defines)
        out, window = launch.empty(q, (B, H * D), q.dtype), int32(cache.window or 0)
        scale = self.real.type(math.log2(math.e) / math.sqrt(D))
        args = [
            out, self.sums, self.tops, launch.strided(q), keys, values, told["slots"], told["firsts"],
            int32(H), int32(K), int32(S), q_stride, window, int32(self.parts), scale,
        ]  # fmt: skip
        grid = (self.parts, K * self.tiles, B)
        launch.launch("decode", "attention_decode", grid, 128, args, self.shared_bytes, **self.defines)
        if self.parts > 1:
            args = [out, self.sums, self.tops, told["slots"], told["firsts"], int32(H), int32(S), window, int32(self.parts)]
            launch.launch("decode", "attention_sum", (H, B), 128, args, **self.defines)
        return out

    # -------------------------------------------------------------------------------------------- how the work is cut

    def _tiling(self) -> None:
        """Lanes for a key, query heads for a block: see kernels/decode.cu."""
        c, dtype = self.model.config, self.model.dtype
        D, R = c.head_dim, c.n_heads // c.n_kv_heads
        n = 16 // dtype.itemsize
        width = 1 if D % n else n                                      # rows of the cache then begin at multiples of 16 bytes
        lanes = min(32, 1 << (launch.blocks(D, width) - 1).bit_length())
        numbers = width * launch.blocks(D, width * lanes)
        rows = min(R, max(1, QUERY_BYTES // (numbers * self.real.itemsize)))
        self.tiles = launch.blocks(R, rows)
        self.shared_bytes = 128 // lanes * rows * (D + 2) * self.real.itemsize
        rope = ROPE[c.rope_layout] if c.positions == "rope" else 0
        self.defines = dict(DTYPE=dtype, WIDTH=width, D=D, ROWS=rows, LANES=lanes, QK_NORM=QK_NORM[c.qk_norm], ROPE=rope)

    def _part_buffers(self) -> None:
        """Into how many parts the keys of a sequence are cut, and room for what each adds."""
        c, B = self.model.config, self.cache.batch_size
        self.parts = min(MOST_PARTS, launch.blocks(self.cache.capacity, LEAST_KEYS))
        self.sums = self.tops = None
        if self.parts > 1:
            shape = B, c.n_heads, self.parts
            self.sums, self.tops = (launch.empty(self.logits, (*shape, size), self.real) for size in (c.head_dim, 2))

