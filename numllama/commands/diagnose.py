"""`numllama diagnose`."""

from numllama.commands.compare import IDS
from numllama.commands.flags import FilePath, command


@command()
def diagnose(
    reference: str,
    dump: FilePath,
    *,
    names: FilePath | None = None,
    ids: IDS = None,
    dtype: str | None = None,
    json: bool = False,
) -> int:
    """Name the mistake in another Llama: a catalogue of mistakes is tried on its numbers until one of them gives the same.

    Example: numllama diagnose vectors/gqa mine.safetensors

    Exit codes: 0 if all values are the same, 1 if some differ, 2 if something cannot be read.

    Parameters
    ----------
    reference
        A folder that numllama vectors wrote, the name of a standard configuration (gqa), or a model's file or folder.
    dump
        A .safetensors or .npz file or a folder of .npy files, with as many or as few tensors as there are.
    names
        JSON file that maps names in the dump to names of golden vectors: {"attn.0.queries": "values/layer.0.q"}.
    ids
        Token ids that a model is run on: --ids 1 306 626. Default: the dump's tokens.
    dtype
        What the other Llama computed in: float64, float32, float16 or bfloat16. Default: the narrowest dtype in the dump.
    json
        Print the result as JSON.
    """
    from numllama.learn.diagnose_report import diagnose_run

    return diagnose_run(reference, dump, names, ids, dtype, json)
