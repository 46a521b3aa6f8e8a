"""`numllama eval`."""

from numllama.commands.flags import FilePath, command
from numllama.commands.options import AS_TEXT, ModelSource, Output


@command()
def evaluate(
    source: ModelSource,
    file: FilePath | None = None,
    *,
    data: FilePath | None = None,
    seq_len: int | None = None,
    output: Output = AS_TEXT,
) -> int:
    """Measure how well a model predicts a text: loss, perplexity, bits per byte.

    Example: numllama eval runs/shakespeare-cpu play.txt

    Parameters
    ----------
    file
        A UTF-8 text, or a token file (.bin, .npy).
    data
        The same file, named as in `train`.
    seq_len
        Window length in tokens; each token sees only those before it in its window. Default: the model's max_seq_len.
    """
    from numllama.training.evaluate import evaluate_file

    if file is None:
        file, data = data, None
    if file is None or data is not None:
        raise ValueError("exactly one file to evaluate on is needed, as FILE or as --data")
    values = evaluate_file(*source.open(), file, seq_len)
    bits = "unknown" if values["bits_per_byte"] is None else f"{values['bits_per_byte']:.4f}"
    text = f"loss            {values['loss']:.4f}\nperplexity      {values['perplexity']:.4g}\nbits per byte   {bits}"
    output.print(values, f"{text}\ntokens          {values['tokens']:,}")
    return 0
