"""The files of the exercises: what is blank, what their own tests say, and how they are written."""

import ast
import os
import runpy

import numpy as np
import pytest
from learn.classroom import run, solved, with_function
from learn.wrong_code.functions import ADAMW, BPE, KV_CACHE, SAMPLING
from moments import at_each_moment, files_no_larger_than

from numllama.gradcheck import GradientError
from numllama.learn.course.bugs import BUGS
from numllama.learn.course.files import BLANK, exercise_text, names_in, solution_text, write_exercises
from numllama.learn.course.hints import BLOCK_HINTS, HINTS
from numllama.learn.course.table import COURSE, EXERCISES, FUNCTIONS, find_exercise
from numllama.storage.folders import locked

STUDENTS = [*ADAMW, *SAMPLING, *KV_CACHE, *BPE]
OPS = [f"{op}{way}" for op in EXERCISES for way in ("", "_forward")]


def file_tests(text, tmp_path):
    (tmp_path / "file.py").write_text(text, encoding="utf-8")
    return {name: value for name, value in runpy.run_path(str(tmp_path / "file.py")).items() if name.startswith("test_")}


@pytest.mark.parametrize("name", [*OPS, "block"])
def test_the_test_in_a_file_fails_on_the_blank_and_passes_on_the_solution(name, tmp_path):
    for text, fails in ((exercise_text(name), True), (solved(name), False)):
        tests = file_tests(text, tmp_path)
        assert set(tests) == {"test_gradients"} | ({"test_forward"} if name.endswith("_forward") else set())
        for test in list(tests.values())[:1]:
            if fails:
                with pytest.raises(NotImplementedError, match="your turn"):
                    test()
            else:
                test()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_test_of_a_plain_function_fails_on_the_blank_and_passes_on_the_solution(name, tmp_path):
    tests = file_tests(solved(name), tmp_path)
    assert len(tests) >= 4
    for test in tests.values():
        test()
    for test in file_tests(exercise_text(name), tmp_path).values():
        with pytest.raises(NotImplementedError, match="your turn"):
            test()


@pytest.mark.parametrize("code", STUDENTS, ids=[f"{code.op}-{i}" for i, code in enumerate(STUDENTS)])
def test_the_test_in_a_file_finds_what_the_check_finds(code, tmp_path):
    """Without the solution: by properties of what is right."""
    failed = []
    with np.errstate(all="ignore"):
        for name, test in file_tests(with_function(code.op, code.blank, code.body), tmp_path).items():
            try:
                test()
            except (AssertionError, IndexError, ValueError):
                failed.append(name)
    assert failed


@pytest.mark.parametrize("name", [*OPS, "block", *FUNCTIONS])
def test_the_functions_of_the_solution_are_blank_or_missing_in_the_file(name):
    given, solution = ({node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
                       for text in (exercise_text(name), solution_text(name)))  # fmt: skip
    exercise = find_exercise(name)
    assert f"{exercise.base}_{exercise.kind}" in solution or tuple(solution) in (tuple(BLOCK_HINTS), exercise.functions)
    for function in solution.keys() & given.keys():
        *docstring, last = given[function].body
        assert ast.unparse(last) == BLANK.replace('"', "'") and len(docstring) <= 1
    assert all(function.startswith(f"{exercise.base}_backward_") for function in solution.keys() - given.keys())
    assert exercise_text(name).count(BLANK) == len(solution.keys() & given.keys()) > 0


def test_each_gradient_of_the_block_has_a_function_in_the_order_of_its_hints():
    functions = [node.name for node in ast.parse(exercise_text("block")).body if isinstance(node, ast.FunctionDef)]
    assert [name for name in functions if name.startswith("d_")] == list(BLOCK_HINTS)


def test_every_result_has_three_hints_of_its_own_steps():
    for op, hints in HINTS.items():
        assert list(hints) == ["out", *EXERCISES[op].gradients]
        for steps in hints.values():
            assert len(set(steps)) == 3 and all(step[-1] == "." and len(step) > 20 for step in steps)
    assert all(len(set(steps)) == 3 for steps in BLOCK_HINTS.values())
    assert all(len(set(bug.hints)) == 3 for bug in BUGS)


def test_a_file_begins_with_what_to_do(tmp_path):
    ways = {"rope": "write rope_backward", "rope_forward": "write rope_forward", "block": "return", "kv_cache": "write cached_at"}
    for name, way in ways.items():
        docstring = ast.get_docstring(ast.parse(exercise_text(name)))
        assert f"    numllama exercises --check {name}\n" in docstring and way in docstring.replace("Write", "write")
    assert "numllama exercises --check llama" in exercise_text("llama")


def test_all_are_written_that_are_missing_and_none_is_overwritten(tmp_path, monkeypatch):
    (tmp_path / "rope.py").write_text("mine")
    monkeypatch.setattr("numllama.learn.course.symptoms.STEPS", (0, 2))
    before = tmp_path.stat().st_ino
    code, out, _ = run("--all", "--out", tmp_path)
    assert code == 0 and names_in(tmp_path) == list(COURSE) and out.count("\n") == len(COURSE)
    assert (tmp_path / "rope.py").read_text() == "mine" and "rope.py" not in out.replace("bug", "")
    assert tmp_path.stat().st_ino == before  # a shell may be in it
    assert run("--all", "--blank", "forward", "--out", tmp_path)[0] == 0
    assert names_in(tmp_path) == [*COURSE, *(f"{op}_forward" for op in EXERCISES)]
    code, _, error = run("rope", "--out", tmp_path)
    assert (code, "rope.py exists and is not overwritten: remove it to start again" in error) == (2, True)


def test_exercises_appear_at_once_or_not_at_all(tmp_path):
    folder, seen = tmp_path / "x", []
    names = ["linear", "rope", "gelu"]
    with at_each_moment(lambda: seen.append(len([p for p in folder.iterdir() if p.name[0] != "."]) if folder.exists() else 0)):
        write_exercises(names, folder)
    assert set(seen) == {0, len(names)}
    with locked(tmp_path / "x"):
        assert "is in use: another process writes there" in run("bug_01", "--out", folder)[2]
    with files_no_larger_than(100):
        assert "y could not be written: File too large" in run("rope", "--out", tmp_path / "y")[2]
    assert sorted(os.listdir(tmp_path)) == ["x"] and len(os.listdir(folder)) == len(names)


@pytest.mark.parametrize("number", range(1, len(BUGS) + 1))
def test_a_mistake_to_find_shows_itself_and_its_hints_do_not_quote_the_solution(number, tmp_path, monkeypatch):
    monkeypatch.setattr("numllama.learn.course.symptoms.STEPS", (0, 2))
    name, bug = f"bug_{number:02}", BUGS[number - 1]
    exercise, text = find_exercise(name), exercise_text(name)
    assert exercise.needs == (bug.base,) and solved(bug.base).count(bug.right) == 1
    assert bug.wrong in text and (bug.right not in text or bug.wrong in bug.right)
    assert text.index(bug.story) < text.index("import")
    solution = solution_text(name)
    assert {line[0] for line in solution.splitlines()} <= set("+-") and "+" in solution
    assert {"gradcheck": "    GradientError: the gradient of ", "output": " another implementation gives ",
            "training": "    step "}[bug.symptom] in text  # fmt: skip
    failed = 0
    for test in file_tests(text, tmp_path).values():
        try:
            test()
        except (AssertionError, GradientError):
            failed += 1
            break
    assert failed > 0 or bug.symptom == "training"


def test_mistakes_to_find_follow_their_op_and_there_are_more_than_twelve():
    assert len(BUGS) >= 12 and len({bug.base for bug in BUGS}) > 8
    names = list(COURSE)
    assert [name for name in names if name.startswith("bug_")] == [f"bug_{i:02}" for i in range(1, len(BUGS) + 1)]
    for i, bug in enumerate(BUGS, 1):
        assert names.index(bug.base) < names.index(f"bug_{i:02}")
