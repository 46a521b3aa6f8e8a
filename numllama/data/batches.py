"""Batches: windows of tokens for training and validation, and the sources that make them.

A batch is a function of the run's position, so any step can be repeated, and a resumed run needs no saved data state.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from numllama.data.epochs import epoch_windows
from numllama.data.token_files import TokenShards
from numllama.ops import IGNORE

VAL_STREAM = 2**32  # validation batches use random streams that no training step reaches
Rows = slice | np.ndarray | None


class Batch(NamedTuple):
    """Rows of tokens, and the token to predict at each position.

    Attributes
    ----------
    tokens, targets : integer arrays, shape (B, T)
        A target of -100 is ignored.
    segments : integer array, shape (B, T), optional
        The document of each token, where rows hold several.
    count : int
        Targets that are not ignored, in the whole batch, even if `tokens` holds only some of its rows.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None
    count: int

    def rows(self, rows: Rows) -> "Batch":
        """Select rows; the count stays that of the whole batch."""
        if rows is None:
            return self
        segments = None if self.segments is None else self.segments[rows]
        return Batch(self.tokens[rows], self.targets[rows], segments, self.count)


def counted(tokens: np.ndarray, targets: np.ndarray, segments: np.ndarray | None = None) -> Batch:
    """Make a whole batch and count its targets."""
    return Batch(tokens, targets, segments, int((targets != IGNORE).sum()))


class Position(NamedTuple):
    """A run's position in its data.

    Attributes
    ----------
    step : int
        The batch's training step, from 1.
    windows : int
        Windows taken by earlier steps.
    """

    step: int
    windows: int


class BatchSource(Protocol):
    """The source of a :class:`~numllama.training.Trainer`'s batches."""

    def batch(self, position: Position, rows: Rows = None) -> Batch:
        """The batch of a step, or some of its rows: a pure function of its arguments."""
        ...

    def validation(self, n: int | None = None) -> Iterator[Batch]:
        """`n` batches of the validation split, the same in every call; default the whole split, each target once."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Checksums by split, to identify the data."""
        ...


class TrainingData(Protocol):
    """Data for a :class:`~numllama.training.Trainer`: a :class:`~numllama.data.dataset.Dataset`, or conversations.

    Attributes
    ----------
    default_sampling : str
        See ``TrainConfig.sampling``.
    """

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> Any: ...
    @property
    def val(self) -> Any: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def default_sampling(self) -> str: ...

    def check(self, vocab_size: int, seq_len: int) -> None:
        """Raise DataError unless a model of this vocabulary can train on sequences of this length."""
        ...

    def batches(self, batch_size: int, seq_len: int, seed: int = 0, sampling: str = "random") -> BatchSource:
        """The data as batches of this shape."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """See :meth:`BatchSource.fingerprint`."""
        ...

    def val_rows(self, seq_len: int) -> int:
        """The number of rows in the whole validation split."""
        ...


class TokenBatches:
    """Batches of windows from a dataset's two token arrays.

    Parameters
    ----------
    data : Dataset
    batch_size, seq_len, seed : int
    sampling : str
        ``random`` positions, or ``epochs``, in which each window comes once.
    """

    def __init__(self, data: TrainingData, batch_size: int, seq_len: int, seed: int = 0, sampling: str = "random") -> None:
        self.data, self.batch_size, self.seq_len, self.seed, self.sampling = data, batch_size, seq_len, seed, sampling

    def batch(self, position: Position, rows: Rows = None) -> Batch:
        """The batch of a step, or some of its rows; only their tokens are read."""
        how = self.batch_size, self.seq_len, self.seed
        if self.sampling == "epochs":
            tokens, targets = epoch_batch(self.data.train, *how, position.windows, rows)
        else:
            tokens, targets = random_batch(self.data.train, *how, position.step, rows)
        return Batch(tokens, targets, None, self.batch_size * self.seq_len)    # in plain tokens every target counts

    def validation(self, n: int | None = None) -> Iterator[Batch]:
        """`n` random batches of the validation split, the same in every call; default the whole split, each target once."""
        val: Any = self.data.val
        if n is None:
            windows = all_windows(val, self.batch_size, self.seq_len)
        else:
            seq_len = min(self.seq_len, len(val) - 1)
            windows = (random_batch(val, self.batch_size, seq_len, self.seed, VAL_STREAM + i) for i in range(n))
        return (counted(*window) for window in windows)

    def fingerprint(self) -> dict[str, str]:
        """Checksums of both splits."""
        return self.data.fingerprint()


def random_batch(
    tokens: Any, batch_size: int, seq_len: int, seed: int, step: int, rows: Rows = None
) -> tuple[np.ndarray, np.ndarray]:
    """Windows at random positions: a pure function of (seed, step), so that any step can be repeated.

    Parameters
    ----------
    tokens : array or TokenShards
    batch_size, seq_len, seed, step : int
    rows : slice or integer array, optional
        Part of the batch; only its tokens are read.

    Returns
    -------
    inputs, targets : int64 arrays, shape (batch_size, seq_len), or fewer rows
        See :func:`windows`.
    """
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - seq_len, size=batch_size)
    return windows(tokens, starts[slice(None) if rows is None else rows], seq_len)


def epoch_batch(
    tokens: Any, batch_size: int, seq_len: int, seed: int, start: int, rows: Rows = None
) -> tuple[np.ndarray, np.ndarray]:
    """The windows at positions `start` to ``start + batch_size - 1`` of a run: see :mod:`numllama.data.epochs`.

    Parameters
    ----------
    tokens : array or TokenShards
    batch_size, seq_len, seed : int
    start : int
        Windows taken before this batch.
    rows : slice or integer array, optional
        Part of the batch; only its tokens are read, so ranks that share a batch read nothing twice.

    Returns
    -------
    inputs, targets : int64 arrays, shape (batch_size, seq_len), or fewer rows
        See :func:`windows`.
    """
    n = (len(tokens) - 1) // seq_len
    return windows(tokens, epoch_windows(n, seed, start, start + batch_size, rows) * seq_len, seq_len)


def windows(tokens: "np.ndarray | TokenShards", starts: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows that begin at `starts`; nothing else is read.

    Returns
    -------
    inputs, targets : int64 arrays, shape (len(starts), seq_len)
        ``targets[b, t]`` is the token that follows ``inputs[b, t]``.
    """
    read = np.empty((len(starts), seq_len + 1), dtype=np.int64)
    for row, start in zip(read, starts.tolist(), strict=True):
        row[:] = tokens[start : start + seq_len + 1]
    return read[:, :-1], read[:, 1:]


def all_windows(
    tokens: "np.ndarray | TokenShards", batch_size: int, seq_len: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Adjacent windows that predict every token but the first exactly once; the last one may be shorter.

    Yields
    ------
    inputs, targets : int64 arrays, shape (up to batch_size, seq_len)
    """
    full = (len(tokens) - 1) // seq_len
    for start in range(0, full, batch_size):
        n = min(batch_size, full - start)
        block = np.asarray(tokens[start * seq_len : (start + n) * seq_len + 1], dtype=np.int64)
        yield block[:-1].reshape(n, seq_len), block[1:].reshape(n, seq_len)
    rest = np.asarray(tokens[full * seq_len :], dtype=np.int64)
    if len(rest) > 1:
        yield rest[None, :-1], rest[None, 1:]
