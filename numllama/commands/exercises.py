"""`numllama exercises`."""

from pathlib import Path
from typing import Literal

from numllama.commands.flags import FilePath, command

FOLDER = Path("exercises")


@command(output_optional=True)
def exercises(
    op: str | None = None,
    *,
    check: bool = False,
    blank: Literal["backward", "forward"] = "backward",
    out: FilePath = FOLDER,
    seconds: float = 60,
) -> int:
    """Write an op's backward pass yourself: get a file with a blank and a test, then check your solution.

    Example: numllama exercises rmsnorm, and then: numllama exercises --check rmsnorm

    Parameters
    ----------
    op
        The op: linear, rmsnorm, attention, ... Default: all, from linear to flash_attention.
    check
        Check your results, and for a wrong one print the error and a hint. Exit code 0 if all are right, else 2.
    blank
        Which pass to leave blank.
    out
        Folder of the files.
    seconds
        Time limit of a check.
    """
    from numllama.learn.exercises import check_exercises, write_exercises

    return check_exercises(op, out, seconds) if check else write_exercises(op, blank, out)
