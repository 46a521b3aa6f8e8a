"""`numllama compare`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command

IDS = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]


@command()
def compare(
    reference: str,
    dump: FilePath,
    *,
    names: FilePath | None = None,
    ids: IDS = None,
    dtype: str | None = None,
    json: bool = False,
    html: FilePath | None = None,
    all: bool = False,
) -> int:
    """Compare another Llama's values and gradients with the right ones, op by op; says which op is the first that is wrong.

    Example: numllama compare vectors/gqa mine.safetensors

    Exit codes: 0 if all are the same, 1 if some differ, 2 if something cannot be read.

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
    html
        Also write a self-contained page with heat maps to this file.
    all
        Print a row for each tensor. By default, many in succession that are the same are one row.
    """
    from numllama.learn.compare_report import compare_run

    return compare_run(reference, dump, names, ids, dtype, json, html, all)
