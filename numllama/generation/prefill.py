"""Prefill: compute the keys and values of a prompt, on all cores.

A prompt is cut into consecutive slices, one for each core. Tokens attend only to earlier tokens, so the slices go through the
model in parallel. In each layer a slice attends only after the slices before it have stored their keys; the first never waits.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Condition

import numpy as np

from numllama.backend import Array, quiet
from numllama.generation.decode import has_packed_weights
from numllama.generation.kv_cache import KVCache
from numllama.model import ModelConfig, Transformer
from numllama.ops.rope_scaling import depends_on_length
from numllama.system.blas import one_blas_thread
from numllama.system.machine import keep_more_memory
from numllama.system.processes import available_cores

CHUNK_TOKENS = 2048  # tokens computed at a time, over all sequences and cores: bounds the memory for activations
SLICE_TOKENS = 256  # the fewest tokens of a slice: below, BLAS's threads share a product better than ours share the prompt


def prefill(model: Transformer, tokens: np.ndarray, kv_cache: KVCache) -> Array:
    """Add tokens (B, T) to a cache; returns the logits after the last one, (B, V)."""
    B, T = tokens.shape
    keep_more_memory()  # a layer's activations are the next one's buffers
    whole = depends_on_length(model.config.rope_scaling)  # of one table for all of the prompt
    step = T if whole else max(1, min(CHUNK_TOKENS // B, model.config.max_seq_len))
    logits = None
    for begin in range(0, T, step):
        logits = _chunk(model, tokens[:, begin : begin + step], kv_cache)
    assert logits is not None  # T is at least 1
    return logits[:, -1]


def _chunk(model: Transformer, tokens: np.ndarray, kv_cache: KVCache) -> Array:
    B, T = tokens.shape
    has_slices = model.xp is np and not has_packed_weights(model)          # oneDNN's threads share its products better
    has_slices &= not depends_on_length(model.config.rope_scaling)
    n = min(available_cores(), B * T // SLICE_TOKENS, T) if has_slices else 1
    if n < 2:
        return model.forward(tokens, kv_cache=kv_cache, n_last=1)
    kv_cache.reserve(B, T)
    gate = LayerGate(n)
    bounds = balanced_cuts(T, n, kv_cache.used, model.config)
    slices = [PromptSlice(kv_cache, gate, i, *bounds[i : i + 2]) for i in range(n)]

    def run(i: int) -> Array | None:
        try:
            with quiet():  # error states are per thread
                return model.forward(tokens[:, bounds[i] : bounds[i + 1]], kv_cache=slices[i], n_last=int(i == n - 1))
        except BaseException as error:
            gate.fail(error)
            return None

    with one_blas_thread(), ThreadPoolExecutor(n - 1) as pool:
        for i in range(n - 1):
            pool.submit(run, i)
        logits = run(n - 1)
    if gate.error:
        raise gate.error
    kv_cache.advance(tokens)
    return logits


def balanced_cuts(T: int, n: int, before: int, config: ModelConfig) -> list[int]:
    """Bounds of n slices of T tokens that take the same time, if `before` tokens precede them.

    A token's work grows with the keys that it sees. That of the first t tokens is  t + ((before + t)² − before²) / 2E  where
    attending to E keys takes as long as the rest of the model. Attention's products are small, and four times slower than those
    with the weights.
    """
    c = config
    weights = c.dim * (2 * (c.n_heads + c.n_kv_heads) * c.head_dim + 3 * c.ffn_dim)
    E = weights / (4 * 2 * c.n_heads * c.head_dim)
    t = np.arange(T + 1)
    work = t + ((before + t) ** 2 - before**2) / (2 * E)
    cuts = np.searchsorted(work, work[-1] * np.arange(1, n) / n)
    return [0, *(int(cut.clip(i, T - n + i)) for i, cut in enumerate(cuts, start=1)), T]     # at least one token each


class LayerGate:
    """Lets each slice of a prompt attend in a layer once the slices before it have stored their keys there."""

    def __init__(self, n: int) -> None:
        self.layers = [0] * n  # how many layers of each slice are stored
        self.error: BaseException | None = None
        self.changed = Condition()

    def stored(self, i: int) -> None:
        """Slice i has stored one more layer; wait until the slices before it have stored it too."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or i == 0 or self.layers[i - 1] > self.layers[i])
            if self.error:
                raise RuntimeError("another slice of the prompt failed")
            self.layers[i] += 1
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """A slice has failed: wake all that wait."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()


class PromptSlice:
    """The cache for one slice of the prompt, whose tokens come `begin` after those that the cache counts."""

    def __init__(self, cache: KVCache, gate: LayerGate, i: int, begin: int, stop: int) -> None:
        self.cache, self.gate, self.i, self.begin, self.stop = cache, gate, i, begin, stop

    def reserve(self, B: int, T: int) -> None:
        """Check the shape only: the room for all slices is reserved already."""
        if (self.cache.batch_size, self.stop - self.begin) != (B, T):
            raise ValueError(f"tokens has shape {(B, T)}, but this slice has {self.stop - self.begin} of the prompt's tokens")

    def positions(self, T: int) -> Array:
        """See :meth:`KVCache.positions`."""
        return self.cache.positions(T, self.begin)

    def intervals(self, T: int, window: int | None = None) -> tuple[Array | None, Array | None]:
        """See :meth:`KVCache.intervals`."""
        return self.cache.intervals(T, window, self.begin)

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """See :meth:`KVCache.append`; returns once all earlier keys are stored."""
        stored = self.cache.append(layer, k, v, self.begin)
        self.gate.stored(self.i)
        return stored

    def advance(self, tokens: np.ndarray) -> None:
        """Do nothing: the cache counts the tokens when all slices are done."""
