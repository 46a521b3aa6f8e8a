"""`numllama chat`: its flags and help. What it does is in `generate_run.py`."""

from numllama.commands.flags import command, given
from numllama.commands.options import ModelSource
from numllama.commands.sampling import NO_LIMITS, NO_SAMPLING_FLAGS, Sampling, TextLimits


@command()
def chat(
    source: ModelSource,
    *,
    system: str | None = None,
    limits: TextLimits = NO_LIMITS,
    sampling: Sampling = NO_SAMPLING_FLAGS,
) -> int:
    """Chat with a model: one line from you, one answer from the model. Ctrl-C ends an answer, or the chat.

    A model without a chat template continues your text to the end of a paragraph.

    Example: numllama chat path/to/Llama-3.2-1B-Instruct --window 4096

    Parameters
    ----------
    system
        A system message for the model.
    """
    from numllama.commands.generate_run import chat_run

    return chat_run(source, system, **vars(limits), **given(sampling))
