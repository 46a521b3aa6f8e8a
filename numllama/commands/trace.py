"""`numllama trace`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command


@command()
def trace(
    model: FilePath | None = None,
    *,
    text: str | None = None,
    ids: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())] = None,
    steps: int | None = None,
    seed: int | None = None,
    tokenizer: FilePath | None = None,
    lens: bool = False,
    heads: bool = False,
    patch: str | None = None,
    json: FilePath | None = None,
    html: FilePath | None = None,
) -> int:
    """Show every intermediate value of a model and its gradient: one text forward and backward through all layers, in float64.

    With --lens, --heads or --patch, show these views instead.

    Example: numllama trace --steps 300 --html trace.html

    Parameters
    ----------
    model
        A training run, a Hugging Face folder, a .safetensors, .gguf or llama2.c .bin file, or a package that ships a .gguf.
        Default: a small model with two layers.
    text
        The text to run; the small model knows only the characters of its synthetic play. Default "the king shall sing".
    ids
        Token ids instead of a text: --ids 1 306 626.
    steps
        Train the small model for this many steps first. Default 0, or 300 for --lens, --heads and --patch.
    seed
        Seed of the small model. Default 0.
    tokenizer
        Tokenizer file or folder. Default: the one next to the model.
    lens
        Show what the model would say next after each layer (logit lens).
    heads
        Show how much each head attends to the previous and to the first token, its induction score, and its attention.
    patch
        A corrupt text of as many tokens, which has another answer: show which values of the text would restore the answer.
    json
        Also write all numbers to this file.
    html
        Also write a self-contained page to this file, with pictures whose numbers can be pointed at.
    """
    from numllama.learn.trace_report import trace_run
    from numllama.learn.trace_views import Views

    return trace_run(model, tokenizer, text, ids, steps, seed, json, html, Views(lens, heads, patch))
