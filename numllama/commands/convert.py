"""`numllama convert`."""

from numllama.commands.flags import FilePath, command


@command(output_optional=True)
def convert(source: FilePath, target: FilePath, *, dtype: str | None = None, tokenizer: FilePath | None = None) -> int:
    """Convert a model to a Hugging Face folder, llama.cpp's .gguf or llama2.c's .bin.

    Example: numllama convert stories15M.bin stories15M --tokenizer tokenizer.bin

    Parameters
    ----------
    source
        A training run, a Hugging Face folder, a .safetensors, .gguf or llama2.c .bin file, or a package that ships a .gguf.
    target
        A new folder, or a file name that ends in .gguf or .bin.
    dtype
        Type of the weights: float32, float64 or bfloat16; in a .gguf float32, float16, bfloat16 or q8_0.
    tokenizer
        Tokenizer to copy into the folder or .gguf. Default: the one next to or in the source.
    """
    from numllama.interop.convert import convert as write

    print(write(source, target, dtype=dtype, tokenizer=tokenizer))
    return 0
