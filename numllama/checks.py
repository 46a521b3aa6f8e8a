"""Checks at the entry of an op: one sentence that names the argument, what it was and what it may be."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from numllama.backend import Array, xp_of

_ids_are_good = ContextVar("ids_are_good", default=False)


def check_shape(name: str, array: Array, shape: Sequence[int | None]) -> None:
    """Raise ValueError unless `array` has this shape; None stands for any length."""
    if len(array.shape) != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True)):
        expected = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{name} has shape {tuple(array.shape)}, but {expected} is needed")


def check_ids(name: str, ids: Array, size: int, ignore_index: int | None = None) -> None:
    """Raise unless `ids` are integers in [0, size), or equal to `ignore_index`."""
    if _ids_are_good.get():
        return
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, not {ids.dtype}")
    wrong = (ids < 0) | (ids >= size)
    if ignore_index is not None:
        wrong &= ids != ignore_index
    if wrong.any():
        value = int(ids[xp_of(ids).nonzero(wrong)][0])
        also = "" if ignore_index is None else f" or {ignore_index}, which is ignored"
        raise ValueError(f"{name} holds {value}, but must lie in 0..{size - 1}{also}")


@contextmanager
def checked_ids() -> Iterator[None]:
    """Within it, :func:`check_ids` takes all ids for good: they were checked before, and to look at a GPU's is to wait for it."""
    before = _ids_are_good.set(True)
    try:
        yield
    finally:
        _ids_are_good.reset(before)
