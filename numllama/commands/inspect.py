"""`numllama inspect`."""

from numllama.commands.flags import FilePath, command
from numllama.commands.options import AS_TEXT, Output


@command()
def inspect(model: FilePath, *, output: Output = AS_TEXT, dtype: str | None = None) -> int:
    """Show a model's configuration, parameters by part, dtype and size; with --json also every tensor.

    Example: numllama inspect path/to/Llama-3.2-1B --json

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors, .gguf or llama2.c .bin file, or a package that ships a .gguf.
    dtype
        Load it as float32, float64 or bfloat16.
    """
    from numllama.interop.inspect import as_text, stored_types
    from numllama.interop.inspect import inspect as values_of
    from numllama.interop.load import load

    values = values_of(load(model, dtype=dtype)) | stored_types(model)
    output.print(values, as_text(values))
    return 0
