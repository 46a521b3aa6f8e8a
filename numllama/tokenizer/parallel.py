"""Encoding with several processes: a text is cut where that changes no ids, and its parts are encoded in parallel."""

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np

from numllama.system.processes import Processes

PART = 2**20  # characters: enough to outweigh the cost of sending them


class ParallelEncoder:
    """Encodes with processes that run until it is closed; a context manager.

    Parameters
    ----------
    tokenizer : Tokenizer
    workers : int
        With 1, no process is started.
    """

    def __init__(self, tokenizer: Any, workers: int) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers is {workers!r}, but must be a whole number of at least 1")
        self.tokenizer = tokenizer
        self._processes = Processes(_Pack(tokenizer), workers) if workers > 1 else None
        self._map = self._processes.map if self._processes else partial(map, _Pack(tokenizer))

    def pack_stream(
        self,
        texts: Iterable[str],
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
        begins: bool = True,
    ) -> Iterator[tuple[str, bytes]]:
        """Recut a long text that arrives in parts; yields each new part with its packed ids."""
        texts = self.tokenizer.chunks(texts, PART, allowed_special, disallowed_special)
        sent: list[str] = []

        def questions() -> Iterator[tuple]:
            for i, text in enumerate(texts):
                sent.append(text)
                yield [text], allowed_special, disallowed_special, begins and i == 0

        for (packed,) in self._map(questions()):
            yield sent.pop(0), packed

    def encode_array(
        self, text: str, allowed_special: Collection[str] | str = (), disallowed_special: Collection[str] | str = "all"
    ) -> np.ndarray:
        """Like :meth:`Tokenizer.encode_array`."""
        parts = self.pack_stream([text], allowed_special, disallowed_special)
        return np.frombuffer(b"".join(packed for _, packed in parts), self.tokenizer.dtype)

    def encode(
        self, text: str, allowed_special: Collection[str] | str = (), disallowed_special: Collection[str] | str = "all"
    ) -> list[int]:
        """Like :meth:`Tokenizer.encode`."""
        return self.encode_array(text, allowed_special, disallowed_special).tolist()

    def encode_batch(
        self,
        texts: Iterable[str],
        allowed_special: Collection[str] | str = (),
        disallowed_special: Collection[str] | str = "all",
    ) -> list[list[int]]:
        """Like :meth:`Tokenizer.encode_batch`."""
        questions = ((batch, allowed_special, disallowed_special, True) for batch in _batches(texts))
        dtype = self.tokenizer.dtype
        return [np.frombuffer(packed, dtype).tolist() for answer in self._map(questions) for packed in answer]

    def close(self) -> None:
        """End the processes."""
        if self._processes:
            self._processes.close()

    def __enter__(self) -> "ParallelEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pack:
    """The function that children run: texts to packed ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, question: tuple) -> list[bytes]:
        texts, *how = question
        return [self.tokenizer.pack(text, *how) for text in texts]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group short texts, so that they are sent together."""
    batch, length = [], 0
    for text in texts:
        batch.append(text)
        length += len(text)
        if length >= PART:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
