"""Flags that several commands share."""

import json
from dataclasses import KW_ONLY
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from numllama.commands.flags import FilePath, options

if TYPE_CHECKING:
    from numllama.model.transformer import Transformer
    from numllama.tokenizer import CharTokenizer, Tokenizer


@options
class Weights:
    """A model's weights, and how to load them.

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors, .gguf or llama2.c .bin file, or a package that ships a .gguf.
    device
        cpu, cuda, or cuda:N.
    dtype
        float32, float64, or bfloat16, which halves the memory of the weights; on a CPU without units for it, it is slower.
    store_as
        int8 rounds each weight to one byte, on a CPU; decoding is fastest then, if `numllama doctor` finds oneDNN.
    """

    model: FilePath
    _: KW_ONLY
    device: str = "cpu"
    dtype: str | None = None
    store_as: str | None = None


@options
class ModelSource(Weights):
    """A model with its tokenizer.

    Parameters
    ----------
    tokenizer
        Tokenizer file or folder. Default: the one next to the model.
    """

    _: KW_ONLY
    tokenizer: FilePath | None = None

    def open(self) -> tuple["Transformer", "Tokenizer | CharTokenizer"]:
        """The model and its tokenizer."""
        from numllama.interop.load import open_model

        return open_model(self.model, self.tokenizer, device=self.device, dtype=self.dtype, store_as=self.store_as)


@options
class Output:
    """How a result is printed.

    Parameters
    ----------
    as_json
        Print JSON, for programs to read.
    """

    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False

    def print(self, values: dict[str, Any], text: str) -> None:
        """Print the text, or with --json the values."""
        print(json.dumps(values, indent=1, ensure_ascii=False, default=str) if self.as_json else text)


AS_TEXT = Output()
