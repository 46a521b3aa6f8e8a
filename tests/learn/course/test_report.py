"""The command: its outcomes and exit codes, its words, and its JSON."""

import json
import re
import shlex

import pytest
from learn.classroom import no_process, rmsnorm, run, solved, with_body  # noqa: F401 - a fixture

from numllama.learn.course.bugs import BUGS
from numllama.learn.course.check import OUTCOMES, check
from numllama.learn.course.report import check_text, said
from numllama.system.processes import Ended

pytestmark = pytest.mark.usefixtures("no_process")
FILES = {  # by outcome
    "right": solved("rmsnorm"), "wrong": rmsnorm("dx = rstd * dn"), "blank": with_body("rmsnorm", "raise NotImplementedError"),
    "crashed": with_body("rmsnorm", "return dout[7]"), "cannot be run": "def",
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_has_an_exit_code_and_json(tmp_path, outcome, monkeypatch):
    if outcome == "timed out":
        monkeypatch.setattr("numllama.learn.students.run_limited", lambda *_: Ended(None, ""))
    (tmp_path / "rmsnorm.py").write_text(FILES.get(outcome, FILES["right"]))
    code, out, _ = run("--check", "rmsnorm", "--out", tmp_path)
    assert code == OUTCOMES[outcome]
    assert out.startswith(f"rmsnorm: {outcome}, ") or outcome == "cannot be run"
    code, out, error = run("--check", "rmsnorm", "--out", tmp_path, "--json")
    found = json.loads(out)
    assert (code, error, found["outcome"]) == (OUTCOMES[outcome], "", outcome)
    assert found["exercises"][0]["outcome"] == outcome and found["of"] == 4
    assert found["points"] == {"right": 4, "wrong": 2}.get(outcome, 0)


def test_a_check_in_words(tmp_path):
    path = tmp_path / "rmsnorm.py"
    path.write_text(rmsnorm("dx = rstd * dn; print(1)"))
    code, out, _ = run("--check", "rmsnorm", "--out", tmp_path)
    assert code == 1
    assert re.fullmatch(rf"""1
rmsnorm: wrong, 2 of 4 points
  out        right
  dx         wrong: off by 72\.7% of its norm
             at \[0, 0, 2\] it is 0\.555052, but must be -0\.32923
             dx treats rstd as a constant.*
             Hint: x\[j\] enters its own output.*
  dweight    right
more hints: numllama exercises --hint rmsnorm --out {tmp_path}
""", out)  # fmt: skip
    path.write_text(FILES["crashed"])
    line = FILES["crashed"].splitlines().index("    return dout[7]") + 1
    out = run("--check", "rmsnorm", "--out", tmp_path)[1]
    assert re.fullmatch(rf"""rmsnorm: crashed, 0 of 4 points
  out        right
  dx, dweight crashed: line {line} in rmsnorm_backward: IndexError: index 7 .*
             return dout\[7\]
""", out)  # fmt: skip


def test_each_line_that_raises_is_shown_once_and_with_no_hint(tmp_path):
    text = with_body("block", "return nothing").replace('raise NotImplementedError("your turn")', "return d.neither  # too", 1)
    (tmp_path / "block.py").write_text(text)
    out = run("--check", "block", "--out", tmp_path)[1]
    assert out.count("\n             return nothing\n") == out.count("\n             return d.neither  # too\n") == 1
    assert "hint" not in out.lower(), "no hint is about a name that does not exist"


def test_the_line_that_is_no_python_is_shown(tmp_path):
    (tmp_path / "rmsnorm.py").write_text("x = 1\n  y = = 2\n")
    code, _, error = run("--check", "rmsnorm", "--out", tmp_path)
    assert code == 2 and error.endswith("line 2: SyntaxError: unexpected indent\n  y = = 2\n")


def test_a_page_gets_the_words_of_the_command(tmp_path):
    for name in ("wrong", "crashed", "cannot be run"):
        (tmp_path / "rmsnorm.py").write_text(FILES[name])
        _, out, error = run("--check", "rmsnorm", "--out", tmp_path)
        words = " ".join((out + error).split())
        for row in said(check(tmp_path / "rmsnorm.py", "rmsnorm")):
            assert row["right"] == (row["sentences"] == ["right"])
            assert all(" ".join(each.split()) in words for each in (*row["sentences"], row["code"])), row
    assert row["names"] == ["file"] and row["code"] == "def"


def test_several_checks_have_a_sum_and_the_first_that_is_not_right_decides(tmp_path):
    for name, text in (("linear", solved("linear")), ("rmsnorm", FILES["crashed"]), ("rope", with_body("rope", "return dout"))):
        (tmp_path / f"{name}.py").write_text(text)
    code, out, _ = run("--check", "--out", tmp_path)
    assert code == OUTCOMES["crashed"] and out.endswith("\n3 of 9 points\n")
    (tmp_path / "rmsnorm.py").write_text(solved("rmsnorm"))
    code, out, _ = run("--check", "--out", tmp_path, "--json")
    found = json.loads(out)
    assert (code, found["outcome"], found["points"], found["of"]) == (1, "wrong", 7, 9)
    assert [each["exercise"] for each in found["exercises"]] == ["linear", "rmsnorm", "rope"]


def test_exercises_that_are_named_are_checked_and_written_in_their_order(tmp_path):
    assert run("rope", "linear", "--out", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.glob("*.py")) == ["linear.py", "rope.py"]
    (tmp_path / "linear.py").write_text(solved("linear"))
    (tmp_path / "softmax.py").write_text(solved("softmax"))
    code, out, _ = run("--check", "rope", "linear", "rope", "--out", tmp_path)
    assert code == 3 and re.findall(r"^\w+: \w+", out, re.M) == ["rope: blank", "linear: right"]
    assert out.endswith("\n3 of 5 points\n")


def test_an_infinity_that_is_expected_is_said(tmp_path):
    run("bug_19", "--out", tmp_path)
    out = run("--check", "bug_19", "--out", tmp_path)[1]
    assert re.search(r"a.scores: 32 of 200 elements are finite, but must not be\n +at .* it is 0\.\d+, but must be -inf", out)


@pytest.mark.parametrize("name, message", [
    ("rmsnorm", "rmsnorm_backward returns nothing, but must return dx, dweight: did you forget return?"),
    ("softmax", "it is a NoneType, not an array of real numbers: did you forget return?"),
    ("softmax_forward", "must return two things: the output and the cache: did you forget return?"),
])  # fmt: skip
def test_a_forgotten_return_is_named(name, message):
    found = check_text(name, with_body(name, "dx = 0"))
    assert message in [each["message"] for each in found["results"]]


def test_float16_is_named():
    found = check_text("rmsnorm", rmsnorm("dx = np.float16(dx)"))
    assert found["results"][1]["message"] == "it is float16, but the inputs are float64"


def test_many_results_are_shown_in_few_lines(tmp_path):
    (tmp_path / "block.py").write_text(with_body("block", "return d.after_ffn"))
    out = run("--check", "block", "--out", tmp_path)[1]
    assert out.startswith("block: blank, 1 of 37 points\n  right      values, d_ffn_out\n  blank      d_w_down, d_swiglu, d_up,")
    assert out.count("\n") < 10 and max(map(len, out.splitlines())) <= 118


@pytest.mark.parametrize("arguments, sentence", [
    (["norm"], "exercise is 'norm' (did you mean rmsnorm?), but must be one of linear, bug_01"),
    (["rmsnrm"], "exercise is 'rmsnrm' (did you mean rmsnorm?), but must be one of "),
    (["--hint", "rope", "linear"], "needs the name of one exercise"),
    (["--debug", 0], f"debug is 0, but must lie in 1..{len(BUGS)}"),
    (["--debug", 99], "debug is 99, but"), (["linear", "--debug", 1], "debug is 1, so there must be no name, but it is 'linear'"),
    (["block", "--blank", "forward"], "exercise is 'block', but only the forwards of linear, embedding"),
    (["--check", "--hint", "linear"], "--check and --hint cannot be combined"),
    (["--hint"], "--hint needs the name of an exercise"),
    (["--solution"], "--solution needs the name of an exercise"), (["linear", "--json"], "--json goes with --check"),
    (["--all", "linear"], "--all writes all exercises, so there must be no name"),
    (["--check"], "no exercises in {folder}: numllama"),
    (["--hint", "linear"], "linear.py does not exist: numllama exercises linear --out {folder} writes it"),
    (["--check", "linear"], "linear.py does not exist: numllama exercises linear --out {folder} writes it"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(tmp_path, arguments, sentence):
    code, _, error = run(*arguments, "--out", tmp_path)
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert sentence.format(folder=tmp_path) in error
    (tmp_path / "file").write_text("")
    assert "file is a file, but must be a folder" in run("--out", tmp_path / "file")[2]


def test_the_whole_llama_has_no_hints(tmp_path):
    run("llama", "--out", tmp_path)
    assert "llama has no hints: numllama exercises --check llama" in run("--hint", "llama", "--out", tmp_path)[2]
    out = run("--solution", "llama", "--out", tmp_path)[1]
    assert "plain_llama.py" in out and "hint" not in out


def test_a_solution_comes_after_a_warning():
    code, out, _ = run("--solution", "rmsnorm")
    warning, _, solution = out.partition("\n\n")
    assert code == 0 and "Have you read all three hints?" in warning and "numllama exercises --hint rmsnorm" in warning
    assert solution.startswith("def rmsnorm_backward(") and "dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))" in solution


@pytest.mark.parametrize("folder", ["exercises", "my exercises", "it's/mine"])
@pytest.mark.parametrize("name", ["rope", "bug_14"])
def test_the_line_that_is_printed_checks_what_was_written(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    line = run(name, "--out", folder)[1].splitlines()[-1].removeprefix("then: ")
    assert f"\n    {line}\n" in (tmp_path / folder / f"{name}.py").read_text(encoding="utf-8")
    assert shlex.split(line)[:2] == ["numllama", "exercises"]
    code, out, _ = run(*shlex.split(line)[2:])
    assert code == 3 and out.startswith(f"{name}: ")
