"""Exceptions, and their one-sentence messages."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class NumllamaError(Exception):
    """An error with a one-sentence explanation; the command line prints it without a traceback."""


class DeviceError(NumllamaError):
    """The requested device cannot be used here."""


class DataError(NumllamaError):
    """A data file is missing, too short, damaged, or made for another vocabulary."""


class CheckpointError(NumllamaError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or its content has changed."""


class TrainingError(NumllamaError):
    """Training cannot continue."""


class GenerationError(NumllamaError):
    """No token can be drawn from the model's logits."""


def shown(value: object, quote: bool = True, most: int = 60) -> str:
    """A value for use in a sentence: its repr (its str without `quote`), cut to `most` characters."""
    try:
        text = repr(value) if quote else str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list that holds itself
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.splitlines())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def visible(text: str) -> str:
    """A text that is safe to show on a terminal or page: invisible characters except tabs and newlines become their codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def listed(names: Sequence[str]) -> str:
    """The first five names, each cut if it is long, and the number of the others."""
    some = ", ".join(shown(name, quote=False, most=100) for name in names[:5])
    return some + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def in_words(error: Exception) -> str:
    """An error's message, cut to the length of a sentence; codec errors are reworded."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[error.start]!a} is not a character of {error.encoding.upper()}"
    return shown(error, quote=False, most=300)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Add the file's name to an OSError that has none, as when a write fails."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def is_cupys(error: BaseException) -> bool:
    """Whether CuPy raised it, on behalf of CUDA, cuBLAS, NVRTC or NCCL."""
    return type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")


def out_of_memory(error: MemoryError) -> str:
    """One sentence: the request that failed, used and free memory, settings to lower. CuPy's error is a MemoryError too.

    Arrays of the failed work are returned to the GPU, so that something smaller may fit.
    """
    if not is_cupys(error):
        return f"out of memory, a smaller model or batch may fit: {error}"
    cupy = sys.modules["cupy"]
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    error.__traceback__ = None  # its frames hold arrays
    pool.free_all_blocks()
    used, free, total = (f"{n / 1e6:,.0f} MB" for n in (used, *cupy.cuda.runtime.memGetInfo()))
    settings = "lower batch_size or seq_len, or set shards, recompute or compute_dtype bfloat16"
    return f"out of GPU memory ({str(error).rstrip('.')}); arrays take {used}, and {free} of {total} are free; {settings}"


def gpu_error(error: BaseException) -> str:
    """One sentence for an error of CUDA or of the kernel compiler, whose message contains the whole program."""
    lines = str(error).splitlines() or [type(error).__name__]
    first = next((line for line in lines if "error" in line), lines[0]).strip()
    return f"the GPU failed, {type(error).__name__}: {first[:200]}; `numllama doctor` checks the driver, CuPy and the kernels"


def explained(error: BaseException) -> str | None:
    """The sentence that tells the user what to fix; None for a bug in numllama."""
    if isinstance(error, NumllamaError | ValueError):
        return in_words(error) if isinstance(error, UnicodeError) else str(error)
    if isinstance(error, MemoryError):
        return out_of_memory(error)
    if is_cupys(error):
        return gpu_error(error)
    if isinstance(error, OSError):
        why = error.strerror or error
        if not isinstance(error.filename, str | bytes | os.PathLike):
            return f"the operating system refused: {why}"
        return f"{shown(os.fsdecode(error.filename), quote=False, most=500)} cannot be read or written: {why}"
    return None
