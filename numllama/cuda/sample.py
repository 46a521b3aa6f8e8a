"""Sampler: what generation/sampling.py draws, drawn on the GPU; see kernels/sample.cu.

The host draws the uniform numbers, each sequence's with its own generator, and uploads those for many tokens at a time. What
comes back for a token are a few numbers for each sequence.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from numllama.backend import TWO_BYTES, Array, real_dtype, xp_of
from numllama.cuda import launch
from numllama.cuda.launch import int32
from numllama.cuda.stream import StagingBuffers, stream

AHEAD = 64  # tokens that uniform numbers are uploaded for at a time
LONG_ROW = 4096


def sampler(logits: Any, *settings: Any) -> "Sampler | None":
    """What draws from such logits on a GPU; None where :mod:`numllama.generation.sampling` does."""
    on_gpu = launch.runs_here((logits,))
    return Sampler(logits, *settings) if on_gpu and Sampler.supports(logits) else None


class Sampler:
    """Draws tokens from logits on a GPU.

    Parameters
    ----------
    logits : array, shape (B, V)
        Like those that will be drawn from.
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
        Afterwards as if each had given one number for each token, unless the temperature is 0.
    seen : boolean array, shape (B, V), or None
        What the repetition penalty is for; drawn tokens are added to it.
    logprobs : bool
    check : callable
        Called with logits of which one row has no finite maximum; raises.

    Attributes
    ----------
    result : array, shape (3, B)
        The tokens, their log-probabilities, and each row's largest logit.
    """

    def __init__(
        self,
        logits: Array,
        config: Any,
        generators: Sequence[np.random.Generator],
        seen: Array | None,
        logprobs: bool,
        check: Callable[[Array], None],
    ) -> None:
        self.config, self.generators, self.logprobs, self.check = config, list(generators), logprobs, check
        self.B, self.V = logits.shape
        self.dtype, self.stream = logits.dtype, stream()
        self.drawn_from: Array = None  # logits that a step has drawn from already
        self.drawn_last: np.ndarray | None = None
        with self.stream.entered():
            self.seen = None if seen is None else seen.view(np.uint8)
            self.result = launch.empty(logits, (3, self.B), np.float64)
            self.scratch = launch.empty(logits, (self.B, self.V), real_dtype(self.dtype))
            self.told = StagingBuffers(logits, uniforms=((AHEAD, self.B), np.float64), drawn=((self.B,), np.int32))
        self._left = 0

    @staticmethod
    def supports(logits: Array) -> bool:
        """Whether there is a kernel for logits like these."""
        return logits.dtype in (np.float32, np.float64, *TWO_BYTES) and launch.row_stride(logits) is not None

    def draw(self, logits: Array) -> tuple[np.ndarray, np.ndarray]:
        """A token for each row of logits, and its log-probability; drawn now, unless a step has already done so."""
        with self.stream.entered():
            if self.drawn_from is not logits:
                self.prepare()
                self.launch(logits.reshape(self.B, self.V))
            ids, chances, largest = self.result.get()
        self.drawn_from = None
        if not np.isfinite(largest).all():
            self.check(logits)
        if not self.config.is_greedy:
            for generator in self.generators:
                generator.random()
        self.drawn_last = ids.astype(np.int64)
        return self.drawn_last, chances

    def prepare(self) -> None:
        """Before each launch, or replay of one: let the GPU have random numbers."""
        if self.config.is_greedy:
            return
        if self._left == 0:
            host, self._left = self.told.host, AHEAD
            for column, generator in zip(host["uniforms"].T, self.generators, strict=True):
                column[...] = deepcopy(generator).random(AHEAD)
            host["drawn"][...] = 0
            self.told.upload()
        self._left -= 1

    def launch(self, logits: Array, tokens: Any = None, slots: Any = None, positions: Any = None) -> None:
        """Draw. What is given of `tokens` (B,) is written to, and of `slots` and `positions` counted up."""
        c, real, told = self.config, real_dtype(self.dtype).type, self.told.device
        args = [
            self.result, tokens, self.scratch, launch.strided(logits), self.seen, told["uniforms"], told["drawn"], slots,
            positions, int32(self.B), int32(self.V), int32(launch.row_stride(logits)),
            real(0 if c.is_greedy else c.temperature), real(c.repetition_penalty),
            int32(min(c.top_k or 0, self.V)), np.float64(-1 if c.top_p is None else 1 - c.top_p),
            real(-1 if c.min_p is None else c.min_p), int32(self.logprobs),
        ]  # fmt: skip
        launch.launch("sample", "sample", self.B, 1024 if self.V >= LONG_ROW else 128, args, DTYPE=self.dtype)

    def take(self, rows: np.ndarray, logits: Array) -> "Sampler":
        """A sampler of these rows, for logits of as many."""
        seen = None
        if self.seen is not None:
            with self.stream.entered():
                seen = self.seen[xp_of(self.seen).asarray(rows)].view(bool)
        return Sampler(logits, self.config, [self.generators[row] for row in rows], seen, self.logprobs, self.check)
