"""`numllama exercises`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from numllama.commands.flags import FilePath, command

FOLDER = Path("exercises")


@command(output_optional=True)
def exercises(
    *names: str,
    check: bool = False,
    hint: bool = False,
    solution: bool = False,
    debug: int | None = None,
    blank: Literal["backward", "forward"] = "backward",
    every: Annotated[bool, Parameter(name="--all")] = False,
    json: bool = False,
    out: FilePath = FOLDER,
    seconds: float = 60,
) -> int:
    """A course: write the backward of every op and of a whole block, find mistakes. Without a name: the list and what is next.

    Example: numllama exercises rmsnorm, and then: numllama exercises --check rmsnorm --json

    Exit codes of a check: 0 right, 1 wrong, 2 it cannot be run or there is no such file, 3 blank, 4 crashed, 5 out of time; of
    several, that of the first one that is not right.

    Parameters
    ----------
    names
        An op (linear, rmsnorm, attention, ...), block, adamw, sampling, bpe, kv_cache, bug_01, bug_02, ... or llama, the last
        one; or several.
    check
        Check the file: which results are right, one element of each that is wrong, and a hint.
    hint
        Show a hint; the next time the next one, of three.
    solution
        Show the solution.
    debug
        A mistake to find, by its number: the exercise bug_01, bug_02, ...
    blank
        Which pass of an op to leave blank.
    every
        Write all exercises that are missing.
    json
        Print the list, or what a check has found, as JSON.
    out
        Folder of the files.
    seconds
        Time limit of a check.
    """
    from numllama.learn.course import report
    from numllama.learn.course.table import COURSE, EXERCISES

    chosen = [report.chosen_name(name, debug, blank) for name in names or (None,)]
    exercises = [name for name in dict.fromkeys(chosen) if name is not None]
    ways = {"--check": check, "--hint": hint, "--solution": solution, "--all": every}
    if len(given := [flag for flag, is_given in ways.items() if is_given]) > 1:
        raise ValueError(f"{given[0]} and {given[1]} cannot be combined")
    if json and (hint or solution or every or (exercises and not check)):
        raise ValueError("--json goes with --check, or with the list, but not with the other flags")
    if check:
        return report.check_exercises(exercises, out, seconds, json)
    if exercises and every:
        raise ValueError(f"--all writes all exercises, so there must be no name, but it is {exercises[0]}")
    if every:
        return report.write([f"{op}_forward" for op in EXERCISES] if blank == "forward" else list(COURSE), out)
    if (hint or solution) and len(exercises) != 1:
        raise ValueError(f"{given[0]} needs the name of {'an' if not exercises else 'one'} exercise")
    if hint:
        return report.show_hint(exercises[0], out)
    if solution:
        return report.show_solution(exercises[0], out)
    return report.write(exercises, out) if exercises else report.show_list(out, json)
