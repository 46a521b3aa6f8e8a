"""What tests of the exercises share: the command, solved files, and checks without a process for each."""

import ast
import io
import json
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from textwrap import dedent

import pytest

from numllama.cli import main
from numllama.learn import child, students
from numllama.learn.course.files import BLANK, exercise_text, solved_text
from numllama.system.processes import Ended


def run(*arguments):
    """Exit code, standard output and standard error of `numllama exercises`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(["exercises", *map(str, arguments)])
    return end.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def no_process(monkeypatch):
    """Files run in this process: quick, and without a limit of time."""
    def run_here(command, seconds, folder, env):
        place, printed = Path(command[-1]), io.StringIO()
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child.run_in(place, json.loads((place / "question.json").read_text(encoding="utf-8")))
        return Ended(0, printed.getvalue())

    monkeypatch.setattr(students, "run_limited", run_here)


def with_body(name, body):
    """An exercise's file with these lines in its (first) blank."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return exercise_text(name).replace(f"    {BLANK}", lines, 1)


def with_function(name, function, body):
    """An exercise's file with its solution, except for the body of one function."""
    text = solved(name)
    (node,) = [each for each in ast.parse(text).body if isinstance(each, ast.FunctionDef) and each.name == function]
    lines = text.splitlines()
    lines[node.body[0].lineno - 1 : node.end_lineno] = [f"    {line}" for line in dedent(body).strip().splitlines()]
    return "\n".join(lines) + "\n"


def solved(name):
    """An exercise's file with its solution."""
    return solved_text(name)


RMSNORM = """\
x, weight, rstd = cache
n, dn = x * rstd, dout * weight
dweight = (dout * n).reshape(-1, x.shape[-1]).sum(0)
dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))
{changed}
return dx, dweight"""


def rmsnorm(changed):
    """A right backward of RMSNorm with one more line."""
    return with_body("rmsnorm", RMSNORM.format(changed=changed))
