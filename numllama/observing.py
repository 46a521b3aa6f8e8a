"""Observing ops: a caller that wants to see, or to change, what ops compute runs them in a block of `observing`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Observer = Callable[[Callable, tuple, dict[str, Any]], Any]
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)
current = _observer.get


@contextmanager
def observing(observer: Observer | None) -> Iterator[None]:
    """In this block and this thread, the observer runs each op: ``observer(op, args, kwargs)`` returns the op's result.

    None lets ops run by themselves. An observer calls the op in a block of ``observing(None)``, so that it does not observe the
    ops that the op calls.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
