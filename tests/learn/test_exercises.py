"""The exercises: files with a blank, and a check that says what is right."""

import inspect
import re
import runpy
import shlex
from importlib import import_module

import numpy as np
import pytest
from mistakes import MISTAKES
from moments import at_each_moment, files_no_larger_than

from numllama import ops
from numllama.cli import main
from numllama.learn.exercises import EXERCISES, check_file, exercise_text
from numllama.storage.folders import locked

RMSNORM_BACKWARD = """\
def rmsnorm_backward(dout, cache):
    x, weight, rstd = cache
    n, dn = x * rstd, dout * weight
    dweight = (dout * n).reshape(-1, x.shape[-1]).sum(0)
    dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))
    {changed}
    return dx, dweight
"""


def backward_source(op):
    """The library's backward, with its helper functions."""
    names = [name for name in ops.__all__ if name.startswith(f"{op}_backward")]
    sources = [inspect.getsource(getattr(ops, name).reference).split("\n", 1)[1] for name in names]
    return "\n\n".join(sources).replace(".reference(", "(")


BACKWARDS = {op: backward_source(op) for op in EXERCISES}


def run(*arguments):
    with pytest.raises(SystemExit) as exit:
        main(["exercises", *map(str, arguments)])
    return exit.value.code


def solved(op, backward=None):
    """The exercise's file with the blank filled in, by default with the library's lines."""
    text = exercise_text(op)
    start = text.index(f"def {op}_backward")
    blank = 'raise NotImplementedError("your turn")\n'
    stop = text.index(blank) + len(blank)
    return text[:start] + (backward or BACKWARDS[op]) + text[stop:]


def verdicts(tmp_path, op, text):
    (tmp_path / f"{op}.py").write_text(text, encoding="utf-8")
    return check_file(tmp_path / f"{op}.py", op)


def test_every_op_has_an_exercise_from_linear_to_flash_attention():
    loops = {"linears_backward", "ropes_backward"}  # loops over an op that has one
    loops |= {"router_backward", "load_balancing_backward"}  # on the page of mixture_of_experts
    assert {f"{op}_backward" for op in EXERCISES} == {name for name in ops.__all__ if name.endswith("_backward")} - loops
    assert (next(iter(EXERCISES)), list(EXERCISES)[-1]) == ("linear", "flash_attention")


@pytest.mark.parametrize("op", EXERCISES)
def test_a_file_has_a_blank_and_the_librarys_own_lines_fill_it(op, tmp_path):
    blank = verdicts(tmp_path, op, exercise_text(op))
    assert blank.pop("out") == "right"
    assert list(blank) == list(EXERCISES[op].hints) and set(blank.values()) == {"blank"}
    assert set(verdicts(tmp_path, op, solved(op)).values()) == {"right"}


@pytest.mark.parametrize("op", EXERCISES)
def test_the_test_in_the_file_fails_on_the_blank_and_passes_on_the_solution(op, tmp_path):
    for text, fails in ((exercise_text(op), True), (solved(op), False)):
        (tmp_path / "file.py").write_text(text, encoding="utf-8")
        test = runpy.run_path(str(tmp_path / "file.py"))["test_gradients"]
        if fails:
            with pytest.raises(NotImplementedError, match="your turn"):
                test()
        else:
            test()


@pytest.mark.parametrize("op", EXERCISES)
def test_a_blank_forward_is_checked_too(op, tmp_path):
    text = exercise_text(op, "forward")
    assert verdicts(tmp_path, op, text) == {"out": "blank"}
    names = [name for name in ops.__all__ if name.startswith(f"{op}_forward")]
    source = "\n\n".join(inspect.getsource(getattr(ops, name).reference).split("\n", 1)[1] for name in names)
    start, blank = text.index(f"def {op}_forward"), 'raise NotImplementedError("your turn")\n'
    filled = text[:start] + source.replace(".reference(", "(") + text[text.index(blank) + len(blank) :]
    assert set(verdicts(tmp_path, op, filled).values()) == {"right"}
    module = runpy.run_path(str(tmp_path / f"{op}.py"))
    module["test_forward"]()
    module["test_gradients"]()


UNSEEN = {  # an exercise has no buffer, and no soft cap
    "the buffer written to instead of added to", "capped attention scores whose gradient forgets the cap",
}  # fmt: skip
IN_BACKWARD = [
    mistake for mistake in MISTAKES
    if mistake.what not in UNSEEN and mistake.right in BACKWARDS.get(mistake.file.removeprefix("ops/").removesuffix(".py"), "")
]  # fmt: skip


@pytest.mark.parametrize("mistake", IN_BACKWARD, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_the_check_finds_each_mistake_of_a_backward_with_a_hint(mistake, tmp_path):
    op = mistake.file[4:-3]
    found = verdicts(tmp_path, op, solved(op, BACKWARDS[op].replace(mistake.right, mistake.wrong)))
    assert found["out"] == "right"
    wrong = [verdict for verdict in found.values() if verdict.startswith("wrong")]
    assert wrong and all(". Hint: " in verdict for verdict in wrong)


@pytest.mark.parametrize(
    "changed, verdict",
    [
        ("dx = rstd * dn", "wrong: off by 72.7% of its norm"),
        ("dx = -dx", "wrong: the sign"),
        ("dx = dx / 6", "wrong: 0.166667 times what it should be"),
        ("dx = dx.reshape(-1, 6)", "wrong: shape (6, 6), but (2, 3, 6) is needed"),
        ("dx = dx / 0", "wrong: it contains infinities or NaNs"),
        ("dx = None", "wrong: it is a NoneType, not an array of real numbers"),
    ],
)
def test_a_verdict_says_which_gradient_and_how_it_differs(changed, verdict, tmp_path):
    found = verdicts(tmp_path, "rmsnorm", solved("rmsnorm", RMSNORM_BACKWARD.format(changed=changed)))
    assert found["dweight"] == found["out"] == "right"
    assert found["dx"] == f"{verdict}. Hint: {EXERCISES['rmsnorm'].hints['dx']}"


def test_a_file_that_cannot_be_run_says_why(tmp_path):
    assert verdicts(tmp_path, "rmsnorm", "def") == {"file": "cannot be run: line 1: SyntaxError: invalid syntax"}
    found = verdicts(tmp_path, "rmsnorm", solved("rmsnorm", "def rmsnorm_backward(dout, cache):\n    return dout[7]\n"))
    assert re.match(r"line \d+ in rmsnorm_backward: IndexError: ", found["dx"])
    found = verdicts(tmp_path, "rmsnorm", solved("rmsnorm", "def rmsnorm_backward(dout, cache):\n    return dout\n"))
    assert found["dx"] == "backward returns 1 gradients, but must return dx, dweight"


@pytest.mark.parametrize("line, verdict", [
    ("while True: pass", "took longer than 2 s"), ("import os; os._exit(3)", "ended the process with exit code 3"),
    ("raise SystemExit(3)", " in rmsnorm_backward: ends the program (SystemExit: 3)"),
])  # fmt: skip
def test_a_file_harms_nobody(tmp_path, line, verdict):
    text = solved("rmsnorm", f"def rmsnorm_backward(dout, cache):\n    {line}\n")
    (tmp_path / "rmsnorm.py").write_text(text, encoding="utf-8")
    found = check_file(tmp_path / "rmsnorm.py", "rmsnorm", seconds=2)
    assert found["out"] == "right" and found["dx"] == found["dweight"]
    assert verdict in found["dx"]


def test_an_exercise_does_not_call_its_solution(tmp_path):
    for module in ("numllama.ops", "numllama.ops.rmsnorm"):
        text = solved("rmsnorm", f"from {module} import rmsnorm_backward as solution\nrmsnorm_backward = solution\n")
        assert verdicts(tmp_path, "rmsnorm", text)["dx"].endswith("numllama.ops.rmsnorm is what you write yourself")


def test_what_a_file_prints_is_shown_with_its_verdicts(tmp_path, capsys):
    text = solved("rmsnorm", RMSNORM_BACKWARD.format(changed="print(dx.shape)"))
    (tmp_path / "rmsnorm.py").write_text(text, encoding="utf-8")
    assert run("--check", "rmsnorm", "--out", tmp_path) == 0
    assert capsys.readouterr().out == "(2, 3, 6)\nrmsnorm\n  out       right\n  dx        right\n  dweight   right\n"


def test_the_command_writes_all_that_are_missing_and_checks_all_that_are_there(tmp_path, capsys):
    folder = tmp_path / "exercises"
    assert run("--out", folder) == 0
    assert [path.stem for path in sorted(folder.iterdir())] == sorted(EXERCISES)
    for op in EXERCISES:
        (folder / f"{op}.py").write_text(solved(op), encoding="utf-8")
    assert run("--out", folder) == 0  # none is overwritten
    capsys.readouterr()
    assert run("--check", "--out", folder) == 0
    assert "blank" not in capsys.readouterr().out
    (folder / "rope.py").unlink()
    assert run("rope", "--out", folder) == 0
    assert run("--check", "rope", "--out", folder) == 2
    assert capsys.readouterr().out.endswith("rope\n  out       right\n  dx        blank\n")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["rmsnorm"], "exists and is not overwritten"),
        (["norm"], "op is 'norm', but must be one of linear, lora"),
        (["--check", "linear"], "does not exist: numllama exercises linear --out {folder} writes it"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, sentence, tmp_path, capsys):
    assert run("rmsnorm", "--out", tmp_path) == 0
    assert run(*arguments, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence.format(folder=tmp_path) in error and error.count("\n") == 1


@pytest.mark.parametrize("folder", ["exercises", "my exercises", "it's/mine"])
@pytest.mark.parametrize("op", [None, "rope"])
def test_the_line_that_is_printed_checks_what_was_written(tmp_path, monkeypatch, capsys, folder, op):
    monkeypatch.chdir(tmp_path)
    assert run(*filter(None, [op]), "--out", folder) == 0
    line = capsys.readouterr().out.splitlines()[-1].removeprefix("then: ")
    text = (tmp_path / folder / "rope.py").read_text(encoding="utf-8")
    of_one = line if op else line.replace("--check", "--check rope")
    assert f"\n    {of_one}\n" in text
    assert shlex.split(line)[:2] == ["numllama", "exercises"]
    assert run(*shlex.split(line)[2:]) == 2
    printed = capsys.readouterr().out
    assert printed.endswith("rope\n  out       right\n  dx        blank\n" if op else "dv        blank\n")


def test_exercises_appear_at_once_and_stay_those_of_their_owner(tmp_path, monkeypatch):
    folder, seen = tmp_path / "x", []
    with at_each_moment(lambda: seen.append(len([p for p in folder.iterdir() if p.name[0] != "."]) if folder.exists() else 0)):
        assert run("--out", folder) == 0
    assert set(seen) == {0, len(EXERCISES)}
    before = folder.stat().st_ino
    (folder / "rope.py").write_text("mine")
    (folder / "gelu.py").unlink()
    assert run("--out", folder) == 0
    assert folder.stat().st_ino == before  # a shell may be in it
    assert (folder / "rope.py").read_text() == "mine"
    assert {path.stem for path in folder.iterdir()} == set(EXERCISES)


def test_exercises_are_not_written_where_another_process_writes_them_or_the_disk_is_full(tmp_path, capsys):
    with locked(tmp_path / "x"):
        assert run("rope", "--out", tmp_path / "x") == 2
    assert "is in use: another process writes there" in capsys.readouterr().err
    with files_no_larger_than(100):
        assert run("rope", "--out", tmp_path / "x") == 2
    assert "x could not be written: File too large" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_example_is_the_same_each_time_and_in_float64():
    for op in EXERCISES:
        assert import_module(f"numllama.ops.{op}")
        names = {"np": np, "ops": ops, "normal": lambda *shape: np.random.default_rng(0).standard_normal(shape)}
        args = eval(f"[{EXERCISES[op].arguments}]", names)
        assert all(args[i].dtype == np.float64 for i in EXERCISES[op].wrt)
