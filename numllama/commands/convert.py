"""`numllama convert`."""

from numllama.commands.flags import FilePath, command


@command(output_optional=True)
def convert(source: FilePath, target: FilePath, *, dtype: str | None = None, tokenizer: FilePath | None = None) -> int:
    """Convert a model to a Hugging Face folder or to llama2.c's .bin.

    Example: numllama convert stories15M.bin stories15M --tokenizer tokenizer.bin

    Parameters
    ----------
    source
        A training run, a Hugging Face folder, a .safetensors file or a llama2.c .bin file.
    target
        A new folder, or a file name that ends in .bin.
    dtype
        Type of the weights: float32, float64 or bfloat16.
    tokenizer
        Tokenizer to copy into the folder. Default: the one next to the source.
    """
    from numllama.interop.convert import convert as write

    print(write(source, target, dtype=dtype, tokenizer=tokenizer))
    return 0
