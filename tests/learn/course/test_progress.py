"""What a folder remembers, the list, and the hints."""

import json
import os
import re
from hashlib import sha256

import pytest
from learn.classroom import no_process, run, solved, with_body  # noqa: F401 - a fixture

from numllama.learn.course.progress import NAME, read_progress
from numllama.learn.course.table import COURSE, EXERCISES

pytestmark = pytest.mark.usefixtures("no_process")


def states(folder):
    """The states of the list, by exercise, and what is next."""
    code, out, _ = run("--json", "--out", folder)
    found = json.loads(out)
    assert code == 0
    return {each["exercise"]: each["state"] for each in found["exercises"]}, found


def test_an_exercise_goes_from_not_started_to_right(tmp_path):
    path = tmp_path / "linear.py"
    assert set(states(tmp_path / "nothing")[0].values()) == {"not started"}
    assert states(tmp_path)[1]["next"] == "linear"
    run("linear", "--out", tmp_path)
    assert states(tmp_path)[0]["linear"] == "blank"
    path.write_text(with_body("linear", "return dout, dout, dout.sum()"))
    assert states(tmp_path)[0]["linear"] == "not checked"
    run("--check", "linear", "--out", tmp_path)
    assert states(tmp_path)[0]["linear"] == "wrong"
    path.write_text(solved("linear"))
    assert states(tmp_path)[0]["linear"] == "not checked"  # the result is that of another file
    run("--check", "linear", "--out", tmp_path)
    by_name, found = states(tmp_path)
    assert by_name["linear"] == "right" and found["points"] == EXERCISES["linear"].points and found["next"] == "bug_01"
    path.unlink()
    assert states(tmp_path)[0]["linear"] == "not started"


def test_the_list_has_a_line_for_each_exercise_and_says_what_is_next(tmp_path):
    code, out, _ = run("--out", tmp_path)
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines[1:-3]] == list(COURSE)
    of, minutes = (sum(getattr(each, name) for each in COURSE.values()) for name in ("points", "minutes"))
    assert lines[-3].split() == ["sum", f"0/{of}", f"{minutes}"]
    assert lines[-1] == f"Next: numllama exercises linear --out {tmp_path}"
    assert os.listdir(tmp_path) == []
    run("linear", "--out", tmp_path)
    assert run("--out", tmp_path)[1].splitlines()[-1] == f"Next: numllama exercises --check linear --out {tmp_path}"
    assert "easier after linear, softmax\n" in run("rmsnorm", "--out", tmp_path)[1]


def test_all_that_is_right_has_no_next(tmp_path):
    entry = {"outcome": "right", "points": 1, "of": 1, "file": sha256(b"").hexdigest()}
    for name in COURSE:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / NAME).write_text(json.dumps(dict.fromkeys(COURSE, entry)))
    assert states(tmp_path)[1]["next"] is None
    assert run("--out", tmp_path)[1].endswith("\nAll is right.\n")


def test_the_hints_come_one_by_one_and_the_check_shows_the_step_that_was_reached(tmp_path):
    run("rmsnorm", "--out", tmp_path)
    (tmp_path / "rmsnorm.py").write_text(with_body("rmsnorm", "return dout, dout.sum((0, 1))"))
    hints = EXERCISES["rmsnorm"].hints
    for step, seen in ((1, [0]), (2, [1]), (3, [0, 1, 2]), (3, [0, 1, 2])):
        code, out, _ = run("rmsnorm", "--hint", "--out", tmp_path)
        assert code == 0 and out.startswith(f"rmsnorm, hint {step} of 3\n")
        flat = " ".join(out.split())
        assert [i for i in range(3) if " ".join(hints["dx"][i].split()) in flat] == seen
        assert ("--solution rmsnorm" in out) == (step == 3)
        found = json.loads(run("--check", "rmsnorm", "--json", "--out", tmp_path)[1])["exercises"][0]
        assert found["results"][1]["hint"] == {"step": step, "text": hints["dx"][step - 1]}
    assert read_progress(tmp_path)["rmsnorm"]["hints"] == 3


def test_a_solution_that_was_shown_is_remembered(tmp_path):
    run("rmsnorm", "--out", tmp_path)
    run("--solution", "rmsnorm", "--out", tmp_path)
    run("--solution", "linear", "--out", tmp_path / "nowhere")
    assert [each["exercise"] for each in states(tmp_path)[1]["exercises"] if each["solution"]] == ["rmsnorm"]
    run("--check", "rmsnorm", "--out", tmp_path)
    assert read_progress(tmp_path)["rmsnorm"]["solution"] is True and not (tmp_path / "nowhere").exists()


def test_a_mistake_to_find_has_hints_and_its_check_has_none(tmp_path):
    run("bug_01", "--out", tmp_path)
    code, out, _ = run("--check", "bug_01", "--out", tmp_path)
    assert code == 3 and "Hint: " not in out and "mean" not in out
    assert "One gradient of three is wrong" in run("--hint", "--debug", 1, "--out", tmp_path)[1]
    assert run("--solution", "--debug", 1, "--out", tmp_path)[1].splitlines()[2:] == [
        "-     return (dx, dweight) if bias is None else (dx, dweight, dout.mean(0))",
        "+     return (dx, dweight) if bias is None else (dx, dweight, dout.sum(0))",
    ]


def test_a_mistake_to_find_is_blank_until_its_code_changes(tmp_path):
    for name in ("bug_01", "bug_19"):
        run(name, "--out", tmp_path)
        (state,) = [each["state"] for each in states(tmp_path)[1]["exercises"] if each["exercise"] == name]
        code, out, _ = run("--check", name, "--out", tmp_path)
        assert (state, code) == ("blank", 3) and re.match(rf"{name}: blank, 0 of . points\n +the file is still as it was", out)
    path = tmp_path / "bug_01.py"
    path.write_text(path.read_text(encoding="utf-8").replace("dout.mean(0)", "dout.mean(1)"), encoding="utf-8")
    code, out, _ = run("--check", "bug_01", "--out", tmp_path)
    assert code == 1 and out.startswith("bug_01: wrong, 0 of 1 points\n  out ")
    path.write_text(path.read_text(encoding="utf-8").replace("dout.mean(1)", "dout.sum(0)"), encoding="utf-8")
    assert run("--check", "bug_01", "--out", tmp_path)[0] == 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"linear": 3}', '{"rope": {"outcome": "fine"}}', '{"rope": {"hints": "2"}}'])
def test_a_damaged_file_is_one_sentence_and_is_not_written_over(tmp_path, content):
    run("linear", "--out", tmp_path)
    (tmp_path / NAME).write_text(content)
    for arguments in ([], ["--check"], ["--hint", "linear"], ["--json"]):
        code, _, error = run(*arguments, "--out", tmp_path)
        assert code == 2 and error.startswith(f"error: {tmp_path / NAME} ") and error.count("\n") == 1
    assert (tmp_path / NAME).read_text() == content


def test_a_folder_that_cannot_be_written_is_checked_all_the_same(tmp_path, monkeypatch):
    run("linear", "--out", tmp_path)

    def refuse(path, values, error):
        raise error("the disk is full")

    monkeypatch.setattr("numllama.learn.course.progress.write_json", refuse)
    assert run("--check", "linear", "--out", tmp_path)[0] == 3
    assert not (tmp_path / NAME).exists()
