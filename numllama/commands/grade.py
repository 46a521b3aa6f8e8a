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
    only: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    exercises: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    csv: bool = False,
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
        A Python file; or a class's folder, for a table with a line for each file, and for llama.py in each subfolder.
    configurations
        What to grade: mha, gqa, mqa, interleaved, llama3-scaling, tied, qk-norm, odd-sizes, large-eps, ignored, padded, packed,
        or all. Default: mha, gqa, mqa, odd-sizes, large-eps and ignored, which need no option of a Llama.
    seconds
        Time limit for a file.
    seed
        Seed of weights and tokens. Default: another one each time.
    only
        The packages that a file may import, such as numpy, beside Python's own modules. Default: any but numllama.
    exercises
        Check these exercises instead, or all, in each subfolder: a line for each student.
    csv
        Print a table for a spreadsheet.
    json
        Print the result as JSON.
    template
        Write the file to begin with instead.
    """
    if csv and json:
        raise ValueError("--csv and --json cannot be combined")
    form = "csv" if csv else "json" if json else "text"
    if exercises:
        others = {"--configurations": configurations, "--seed": seed is not None, "--template": template}
        if given := [flag for flag, is_given in others.items() if is_given]:
            raise ValueError(f"--exercises and {given[0]} cannot be combined")
        from numllama.learn.course.class_report import mark_class

        return mark_class(file, exercises, seconds, only, form)
    from numllama.learn.grade_report import grade_run, write_template

    return write_template(file) if template else grade_run(file, configurations, seconds, seed, only, form)
