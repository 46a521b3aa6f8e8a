"""Prefill: a prompt's keys and values into the cache, on all cores.

A prompt is cut into pieces, one behind the other, and each core takes one. A token looks back only. So the pieces can go through
the model side by side, as long as none attends in a layer before those in front of it have stored their keys there; and the
first one never waits.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Condition

import numpy as np

from numllama.backend import Array, quiet
from numllama.generation.kv_cache import KVCache
from numllama.model import ModelConfig, Transformer
from numllama.system.blas import one_blas_thread
from numllama.system.machine import keep_more_memory
from numllama.system.processes import available_cores

ROUND_TOKENS = 2048  # are computed at a time, over all sequences and cores: it bounds the memory for activations
PIECE_TOKENS = 256  # at least: up to there the threads of BLAS are better at sharing a product than ours at sharing all


def prefill(model: Transformer, tokens: np.ndarray, kv_cache: KVCache) -> Array:
    """Bring tokens (B, T) into a cache, behind what it holds; returns the logits after the last, (B, V)."""
    B, T = tokens.shape
    keep_more_memory()  # a layer's activations are the next one's buffers
    step = max(1, min(ROUND_TOKENS // B, model.config.max_seq_len))
    for begin in range(0, T, step):
        logits = _round(model, tokens[:, begin : begin + step], kv_cache)
    return logits[:, -1]


def _round(model: Transformer, tokens: np.ndarray, kv_cache: KVCache) -> Array:
    B, T = tokens.shape
    n = min(available_cores(), B * T // PIECE_TOKENS, T) if model.xp is np else 1
    if n < 2:
        return model.forward(tokens, kv_cache=kv_cache, last=1)
    kv_cache.reserve(B, T)
    queue = Queue(n)
    bounds = fair(T, n, kv_cache.used, model.config)
    pieces = [Piece(kv_cache, queue, i, *bounds[i : i + 2]) for i in range(n)]

    def run(i: int) -> Array | None:
        try:
            with quiet():  # of this thread
                return model.forward(tokens[:, bounds[i] : bounds[i + 1]], kv_cache=pieces[i], last=int(i == n - 1))
        except BaseException as error:
            queue.fail(error)
            return None

    with one_blas_thread(), ThreadPoolExecutor(n - 1) as pool:
        for i in range(n - 1):
            pool.submit(run, i)
        logits = run(n - 1)
    if queue.error:
        raise queue.error
    kv_cache.advance(tokens)
    return logits


def fair(T: int, n: int, before: int, config: ModelConfig) -> list[int]:
    """Where to cut T tokens behind `before` others into n pieces that take equally long.

    A token's work grows with the keys that it sees: up to t tokens together it is  t + ((before + t)² − before²) / 2E  if E keys
    take as long as all else. Attention's products are small, and four times slower than those with the weights.
    """
    c = config
    weights = c.dim * (2 * (c.n_heads + c.n_kv_heads) * c.head_dim + 3 * c.ffn_dim)
    E = weights / (4 * 2 * c.n_heads * c.head_dim)
    t = np.arange(T + 1)
    work = t + ((before + t) ** 2 - before**2) / (2 * E)
    cuts = np.searchsorted(work, work[-1] * np.arange(1, n) / n)
    return [0, *(int(cut.clip(i, T - n + i)) for i, cut in enumerate(cuts, start=1)), T]     # at least one token each


class Queue:
    """How many layers each piece has stored its keys in."""

    def __init__(self, n: int) -> None:
        self.layers = [0] * n
        self.error: BaseException | None = None
        self.changed = Condition()

    def stored(self, i: int) -> None:
        """Piece i has stored one more layer; wait until those in front of it have, too."""
        with self.changed:
            self.changed.wait_for(lambda: self.error or i == 0 or self.layers[i - 1] > self.layers[i])
            if self.error:
                raise RuntimeError("another piece of the prompt failed")
            self.layers[i] += 1
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """A piece has failed: no other waits for it."""
        with self.changed:
            self.error = self.error or error
            self.changed.notify_all()


class Piece:
    """The cache as one piece of the prompt sees it: what it asks for is `ahead` of where the cache ends."""

    def __init__(self, cache: KVCache, queue: Queue, i: int, begin: int, stop: int) -> None:
        self.cache, self.queue, self.i, self.begin, self.stop = cache, queue, i, begin, stop

    def reserve(self, B: int, T: int) -> None:
        """The room for all pieces is there."""
        if (self.cache.batch_size, self.stop - self.begin) != (B, T):
            raise ValueError(f"tokens has shape {(B, T)}, but this piece has {self.stop - self.begin} of the prompt's tokens")

    def positions(self, T: int) -> Array:
        """As the cache's."""
        return self.cache.positions(T, self.begin)

    def intervals(self, T: int) -> tuple[Array | None, Array | None]:
        """As the cache's."""
        return self.cache.intervals(T, self.begin)

    def append(self, layer: int, k: Array, v: Array) -> tuple[Array, Array]:
        """As the cache's, once all keys in front are there."""
        stored = self.cache.append(layer, k, v, self.begin)
        self.queue.stored(self.i)
        return stored

    def advance(self, tokens: np.ndarray) -> None:
        """The cache counts them when all pieces are done."""
