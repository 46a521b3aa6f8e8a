"""Sampler: `generation/sampling.py` on a GPU, by `kernels/sample.cu`.

The host draws uniform numbers from each sequence's own generator, and uploads them for many tokens at a time. It reads
back only a few numbers per sequence and token.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from numllama.backend import TWO_BYTES, Array, real_dtype, xp_of
from numllama.cuda import launch
from numllama.cuda.launch import int32
from numllama.cuda.stream import StagingBuffers, stream

AHEAD = 64  # tokens whose uniform numbers are uploaded together
LONG_ROW = 4096


def sampler(logits: Any, *settings: Any) -> "Sampler | None":
    """A sampler for logits on a GPU; None if :mod:`numllama.generation.sampling` must sample from them."""
    on_gpu = launch.runs_here((logits,))
    return Sampler(logits, *settings) if on_gpu and Sampler.supports(logits) else None


class Draws(NamedTuple):
    """Tokens (B,) and their log-probabilities."""

    ids: np.ndarray
    logprobs: np.ndarray


class Sampler:
    """Draws tokens from logits on a GPU.

    Parameters
    ----------
    logits : array, shape (B, V)
        An example of the shape and dtype of all later logits.
    config : SamplingConfig
    generators : sequence of B numpy.random.Generator
        Each draws one number per token, or none if the temperature is 0.
    seen : boolean array, shape (B, V), or None
        Tokens that the repetition penalty applies to; drawn tokens are added.
    logprobs : bool
    check : callable
        Called with logits whose maximum is not finite in some row; raises an error.

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
        self.drawn_from: Array = None  # logits that a step has already sampled from
        self.drawn_last: np.ndarray | None = None
        with self.stream.entered():
            self.seen = None if seen is None else seen.view(np.uint8)
            self.result = launch.empty(logits, (3, self.B), np.float64)
            self.scratch = launch.empty(logits, (self.B, self.V), real_dtype(self.dtype))
            buffers = dict(uniforms=((AHEAD, self.B), np.dtype(np.float64)), drawn=((self.B,), np.dtype(np.int32)))
            self.staged = StagingBuffers(logits, **buffers)
        self._left = 0

    @staticmethod
    def supports(logits: Array) -> bool:
        """Whether there is a kernel for logits like these."""
        return logits.dtype in (np.float32, np.float64, *TWO_BYTES) and launch.row_stride(logits) is not None

    def draw(self, logits: Array) -> Draws:
        """Draw a token for each row, unless a step has already done so; returns tokens and log-probabilities."""
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
        self.drawn_last = drawn = ids.astype(np.int64)
        return Draws(drawn, chances)

    def prepare(self) -> None:
        """Make sure that the GPU has random numbers; called before each launch or replay."""
        if self.config.is_greedy:
            return
        if self._left == 0:
            host, self._left = self.staged.host, AHEAD
            for column, generator in zip(host["uniforms"].T, self.generators, strict=True):
                column[...] = deepcopy(generator).random(AHEAD)
            host["drawn"][...] = 0
            self.staged.upload()
        self._left -= 1

    def launch(self, logits: Array, tokens: Any = None, slots: Any = None, positions: Any = None) -> None:
        """Draw tokens. If given, `tokens` (B,) receives them, and `slots` and `positions` are incremented."""
        c, real, staged = self.config, real_dtype(self.dtype).type, self.staged.device
        args = [
            self.result, tokens, self.scratch, launch.strided(logits), self.seen, staged["uniforms"], staged["drawn"], slots,
            positions, int32(self.B), int32(self.V), int32(launch.row_stride(logits) or 0),
            real(0 if c.is_greedy else c.temperature), real(c.repetition_penalty),
            int32(min(c.top_k or 0, self.V)), np.float64(-1 if c.top_p is None else 1 - c.top_p),
            real(-1 if c.min_p is None else c.min_p), int32(self.logprobs),
        ]  # fmt: skip
        launch.launch("sample", "sample", self.B, 1024 if self.V >= LONG_ROW else 128, args, DTYPE=self.dtype)

    def take(self, rows: np.ndarray, logits: Array) -> "Sampler":
        """A sampler for these rows only."""
        seen = None
        if self.seen is not None:
            with self.stream.entered():
                seen = self.seen[xp_of(self.seen).asarray(rows)].view(bool)
        return Sampler(logits, self.config, [self.generators[row] for row in rows], seen, self.logprobs, self.check)
