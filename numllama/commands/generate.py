"""`numllama generate`: its flags and help. What it does is in `generate_run.py`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command, given, typed_text
from numllama.commands.options import AS_TEXT, ModelSource, Output
from numllama.commands.sampling import NO_LIMITS, NO_SAMPLING_FLAGS, Sampling, TextLimits


@command()
def generate(
    source: ModelSource,
    prompt: Annotated[str | None, Parameter(allow_leading_hyphen=True, converter=typed_text)] = None,
    *,
    prompt_file: Annotated[FilePath | None, Parameter(allow_leading_hyphen=True)] = None,
    n: Annotated[int, Parameter(name=["--n", "-n"])] = 1,
    limits: TextLimits = NO_LIMITS,
    stop: tuple[str, ...] = (),
    special: bool = True,
    output: Output = AS_TEXT,
    sampling: Sampling = NO_SAMPLING_FLAGS,
) -> int:
    """Continue a text, token by token.

    Example: numllama generate runs/shakespeare-cpu --prompt "ROMEO:" --seed 1

    Parameters
    ----------
    prompt
        The text to continue, or - to read it from standard input.
    prompt_file
        A UTF-8 file with the prompt, or - for standard input. Its last newline is dropped.
    n
        Number of texts. With --seed, each text adds 1 to the seed of the one before.
    stop
        Stop at this string, which is not printed. Repeatable.
    special
        Read special tokens in the prompt, such as <|im_start|>, as tokens rather than as plain text.
    """
    from numllama.commands.generate_run import generate_run

    settings = {**vars(limits), "stop": stop, "special": special, **given(sampling)}
    return generate_run(source, prompt, prompt_file, n, output.as_json, **settings)
