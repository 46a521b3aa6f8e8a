"""`numllama vectors`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command


@command(output_optional=True)
def vectors(
    model: str,
    *,
    out: FilePath,
    ids: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    seed: int = 0,
    npy: bool = False,
) -> int:
    """Write golden vectors: a model with every intermediate value, every gradient, ten optimizer steps and a greedy decoding.

    Example: numllama vectors gqa --out vectors/gqa

    Parameters
    ----------
    model
        A standard configuration: mha, gqa, mqa, interleaved, llama3-scaling, tied, qk-norm, odd-sizes, large-eps, ignored, padded
        or packed; "all" for each in a folder of its own; or a model's file or folder.
    out
        A new folder, for the files that docs/vectors.md describes.
    ids
        Token ids for a model of your own: --ids 1 306 626. Default: random ones.
    seed
        Seed of the weights of a standard configuration, and of random ids.
    npy
        Write each tensor to a .npy file too.
    """
    from numllama.learn.vectors import write_requested

    for folder, loss in write_requested(model, out, ids, seed, npy):
        print(f"{folder}: loss {loss:.6f}")
    return 0
