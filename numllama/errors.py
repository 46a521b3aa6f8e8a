"""What can go wrong: each message is one sentence."""

from collections.abc import Sequence


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


def listed(names: Sequence[str]) -> str:
    """The first few of many names, each of them cut if it is long."""
    some = ", ".join(shown(name, quote=False, most=100) for name in names[:5])
    return some + (f" and {len(names) - 5} more" if len(names) > 5 else "")
