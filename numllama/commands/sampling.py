"""Flags of the commands that generate text."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import as_flags, options
from numllama.generation.config import SamplingConfig

SamplingFlags = as_flags(SamplingConfig, leave_out=("seed", "stop_ids"))
GROUP = "Sampling (defaults: the checkpoint's generation_config.json, else temperature 0.8)"
Sampling = Annotated[SamplingFlags, Parameter(name="*", group=GROUP)]
NO_SAMPLING_FLAGS = SamplingFlags()


@options
class TextLimits:
    """How long a text may be, and what is repeatable about it.

    Parameters
    ----------
    max_new_tokens
        Maximum number of tokens to generate. Default 256; in a chat at most what fits the model's max_seq_len.
    window
        Each token sees only this many tokens, so that a text may be longer than max_seq_len. Default: all; a single text that is
        too long gets a window of max_seq_len.
    seed
        The same seed and the same input give the same text.
    skip_special_tokens
        Leave special tokens out of the text.
    """

    max_new_tokens: int | None = None
    window: int | None = None
    seed: int | None = None
    skip_special_tokens: bool = True


NO_LIMITS = TextLimits()
