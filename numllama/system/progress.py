"""Progress bars on standard error."""

from typing import Any, Protocol, Self

from numllama.system.webassembly import IN_WEBASSEMBLY


class ProgressBar(Protocol):
    """What a loop tells: a context manager that counts."""

    def update(self, n: float = 1) -> object: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> object: ...


def progress_bar(shown: bool = True, **settings: Any) -> ProgressBar:
    """tqdm's progress bar, with its settings; or one that shows nothing, as in WebAssembly, where tqdm's thread cannot start."""
    if IN_WEBASSEMBLY or not shown:
        return NoBar()
    from tqdm import tqdm  # here, so that reading a tokenizer does not import it

    return tqdm(**settings)


class NoBar:
    """A progress bar that shows nothing."""

    def update(self, n: float = 1) -> None:
        """Count, for nobody."""

    def close(self) -> None:
        """Nothing to remove."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> None:
        pass
