"""`numllama grade`."""

from typing import Annotated

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command


@command()
def grade(
    file: FilePath,
    *,
    configurations: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    seconds: float = 60,
    seed: int | None = None,
    json: bool = False,
    template: bool = False,
) -> int:
    """Grade a Llama that somebody wrote, op by op: a point for each value and each gradient that is right.

    Example: numllama grade llama.py --configurations gqa qk-norm, after numllama grade llama.py --template

    The file defines llama(weights, config, tokens, targets, segments), which returns a dict of values and gradients by name. It
    runs in a process of its own, for a limited time and without numllama. Exit codes: 0 if all points are earned, 1 if some are
    missing, 2 if the file cannot be graded.

    Parameters
    ----------
    file
        A Python file; or a folder of them, for a table with a line for each.
    configurations
        What to grade: mha, gqa, mqa, interleaved, llama3-scaling, tied, qk-norm, odd-sizes, large-eps, ignored, padded, packed,
        or all. Default: mha, gqa, mqa, odd-sizes, large-eps and ignored, which need no option of a Llama.
    seconds
        Time limit for a file.
    seed
        Seed of weights and tokens. Default: another one each time.
    json
        Print the result as JSON.
    template
        Write the file to begin with instead.
    """
    from numllama.learn.grade_report import grade_run, write_template

    return write_template(file) if template else grade_run(file, configurations, seconds, seed, json)
