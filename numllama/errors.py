"""What can go wrong: each message is one sentence."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class NumllamaError(Exception):
    """An error that one sentence explains; the command line prints it without a traceback."""


class DeviceError(NumllamaError):
    """The device that was asked for cannot be used here."""


class DataError(NumllamaError):
    """A data file is missing, too short, damaged, or made for another vocabulary."""


class CheckpointError(NumllamaError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class DamagedError(CheckpointError):
    """A file of a checkpoint is missing, or is not what was written."""


class TrainingError(NumllamaError):
    """Training cannot go on."""


class GenerationError(NumllamaError):
    """A model computes logits that no token can be drawn from."""


def shown(value: object, quote: bool = True, most: int = 60) -> str:
    """A value as it stands in a sentence: its repr, or with `quote` off itself, cut to `most` characters."""
    try:
        text = repr(value) if quote else str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; a list that holds itself
        text = f"a value of type {type(value).__name__}"
    text = " ".join(text.splitlines())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def visible(text: str) -> str:
    """A text as a terminal or a page may show it: characters without a shape, but for tabs and lines' ends, as their codes."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def listed(names: Sequence[str]) -> str:
    """The first few of many names, each of them cut if it is long."""
    some = ", ".join(shown(name, quote=False, most=100) for name in names[:5])
    return some + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def in_words(error: Exception) -> str:
    """What an error says, cut to a sentence's length; one of a codec not in Python's words."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[error.start]!a} is no character that {error.encoding.upper()} can write"
    return shown(error, quote=False, most=300)


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Let an OSError know which file it is about: one that comes while a file is written does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def is_cupys(error: BaseException) -> bool:
    """Whether CuPy has raised it: for CUDA, cuBLAS, NVRTC or NCCL."""
    return type(error).__module__.partition(".")[0] in ("cupy", "cupy_backends")


def out_of_memory(error: MemoryError) -> str:
    """One sentence: what was asked for, what is held and free, which settings to lower. CuPy's error is a MemoryError too.

    Arrays of the work that has failed are given back to the GPU, so that something smaller may fit.
    """
    if not is_cupys(error):
        return f"out of memory, a smaller model or batch may fit: {error}"
    cupy = sys.modules["cupy"]
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    error.__traceback__ = None  # whose frames hold arrays
    pool.free_all_blocks()
    used, free, total = (f"{n / 1e6:,.0f} MB" for n in (used, *cupy.cuda.runtime.memGetInfo()))
    settings = "lower batch_size or seq_len, or set shards, recompute or compute_dtype bfloat16"
    return f"out of GPU memory ({str(error).rstrip('.')}); arrays take {used}, and {free} of {total} are free; {settings}"


def gpu_error(error: BaseException) -> str:
    """One sentence for an error of CUDA, or of the compiler for kernels, whose message is the whole program."""
    lines = str(error).splitlines() or [type(error).__name__]
    first = next((line for line in lines if "error" in line), lines[0]).strip()
    return f"the GPU failed, {type(error).__name__}: {first[:200]}; `numllama doctor` looks at the driver, CuPy and the kernels"


def explained(error: BaseException) -> str | None:
    """The sentence by which the user can fix what has gone wrong; None for a mistake of ours."""
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
