"""What a check says of a file: a verdict on each result, one element that is wrong, the mistake, a hint, the line of a crash."""

import json
import re
from functools import partial

import numpy as np
import pytest
from learn.classroom import no_process, rmsnorm, solved, with_body  # noqa: F401 - a fixture
from mistakes import MISTAKES

from numllama import ops
from numllama.learn.course.check import OUTCOMES, check, closed_functions, compare
from numllama.learn.course.files import exercise_text, solution_text
from numllama.learn.course.naming import block_values
from numllama.learn.course.table import COURSE, EXERCISES, find_exercise
from numllama.learn.exercises import check_file, check_text
from numllama.learn.grade import grade
from numllama.learn.students import Answer, Run

pytestmark = pytest.mark.usefixtures("no_process")
UNSEEN = {  # an exercise has no buffer, and no soft cap
    "the buffer written to instead of added to", "capped attention scores whose gradient forgets the cap",
}  # fmt: skip


def verdicts(found):
    return {each["name"]: each["verdict"] for each in found["results"]}


@pytest.mark.parametrize("op", EXERCISES)
def test_a_blank_is_blank_and_the_librarys_own_lines_are_right(op):
    for name, hidden in ((op, EXERCISES[op].gradients), (f"{op}_forward", EXERCISES[op].outputs)):
        blank = check_text(name, exercise_text(name))
        assert (blank["outcome"], blank["points"], blank["of"]) == ("blank", 0, find_exercise(name).points)
        assert {key for key, verdict in verdicts(blank).items() if verdict == "blank"} == set(hidden)
        right = check_text(name, solved(name))
        assert (right["outcome"], right["points"]) == ("right", right["of"])
        assert set(verdicts(right).values()) == {"right"} and not any(each["message"] for each in right["results"])


IN_BACKWARD = [
    mistake for mistake in MISTAKES
    if mistake.what not in UNSEEN and mistake.file.startswith("ops/") and (op := mistake.file[4:-3]) in EXERCISES
    and mistake.right in solution_text(op)
]  # fmt: skip


@pytest.mark.parametrize("mistake", IN_BACKWARD, ids=lambda mistake: mistake.what.replace(" ", "_"))
def test_the_check_finds_each_mistake_of_a_backward_with_a_hint(mistake):
    op = mistake.file[4:-3]
    found = check_text(op, solved(op).replace(mistake.right, mistake.wrong))
    assert found["outcome"] == "wrong" and found["points"] < found["of"]
    wrong = [each for each in found["results"] if each["verdict"] == "wrong"]
    assert all(each["hint"]["step"] == 1 and each["hint"]["text"] for each in wrong)


@pytest.mark.parametrize("changed, message", [
    ("dx = rstd * dn", "off by 72.7% of its norm"), ("dx = -dx", "the sign"), ("dx = dx / 6", "0.166667 times what it should be"),
    ("dx = dx.reshape(-1, 6)", "its shape is (6, 6), but must be (2, 3, 6)"),
    ("dx = dx / 0", "36 of 36 elements are infinite or not a number"), ("dx[0, 1, 2] = np.nan", "1 of 36 elements is infinite"),
    ("dx = None", "it is a NoneType, not an array of real numbers"), ("dx = dx * 1j", "it is a ndarray of dtype complex128, not"),
    ("dx = np.array([None])", "it is a ndarray of dtype object, not an array of real numbers"), ("dx = 'x'", "it is a str, not"),
    ("dx = dx.astype(np.float32)", "it is rounded to float32, but the inputs are float64"),
    ("dx = dx.astype(int)", "of its norm"), ("dx = 0.5", "its shape is (), but must be (2, 3, 6)"),
])  # fmt: skip
def test_a_verdict_says_which_gradient_and_how_it_differs(changed, message):
    found = check_text("rmsnorm", rmsnorm(changed))
    out, dx, dweight = found["results"]
    assert out["verdict"] == dweight["verdict"] == "right"
    assert (dx["verdict"], dx["points"], found["points"], found["of"]) == ("wrong", 0, 2, 4)
    assert message in dx["message"]
    assert dx["hint"] == {"step": 1, "text": EXERCISES["rmsnorm"].hints["dx"][0]}


def test_the_element_that_is_furthest_off_is_shown():
    found = check_text("rmsnorm", rmsnorm("dx[0, 1, 2] += 0.5; dx[1, 0, 0] -= 4"))["results"][1]["element"]
    assert found["index"] == [1, 0, 0]
    assert found["got"] == pytest.approx(found["expected"] - 4)
    assert check_text("rmsnorm", rmsnorm("dx[0, 1, 2] = np.inf; dx[0, 0, 0] = 9"))["results"][1]["element"]["got"] == "inf"


def test_a_known_mistake_is_named_before_the_hint():
    found = check_text("rmsnorm", rmsnorm("dx = rstd * dn"))["results"][1]
    assert found["mistake"].startswith("dx treats rstd as a constant")
    found = check_text("rmsnorm_forward", with_body("rmsnorm_forward", "return x * weight, (x, weight, 1.0)"))
    assert found["results"][0]["mistake"].startswith("out ") and found["results"][1]["verdict"] == "not checked"


def test_hints_come_in_three_steps():
    for step in (1, 2, 3):
        found = check_text("rmsnorm", rmsnorm("dx = -dx"), hint_step=step)["results"][1]["hint"]
        assert found == {"step": step, "text": EXERCISES["rmsnorm"].hints["dx"][step - 1]}


def test_a_crash_has_its_file_line_function_and_message(tmp_path):
    text = with_body("rmsnorm", "return dout[7]")
    line = text.splitlines().index("    return dout[7]") + 1
    found = check_text("rmsnorm", text)
    assert (found["outcome"], found["crash"]["line"], found["crash"]["function"]) == ("crashed", line, "rmsnorm_backward")
    assert found["crash"]["file"] == "rmsnorm.py" and found["crash"]["error"] == "IndexError"
    assert found["results"][1]["message"].startswith(f"line {line} in rmsnorm_backward: IndexError: index 7 is out of bounds")
    found = check_text("rmsnorm", "import nothing_like_this\n")
    assert (found["outcome"], found["crash"]["line"], found["crash"]["error"]) == ("crashed", 1, "ModuleNotFoundError")


@pytest.mark.parametrize("body, message", [
    ("return dout", "rmsnorm_backward returns 1 result, but must return dx, dweight"),
    ("return ()", "rmsnorm_backward returns nothing, but must return dx, dweight"),
    ("return dout, dout, dout", "rmsnorm_backward returns 3 results, but must return dx, dweight"),
    ("raise SystemExit(3)", "ends the program (SystemExit: 3)"), ("return rmsnorm_backward(dout, cache)", "RecursionError"),
    ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("dout[0] = 0; return dout, dout[0, 0]", "rmsnorm_backward writes into dout: work on a copy"),
    ("cache.x[0] = 0; return dout, dout[0, 0]", "rmsnorm_backward writes into x of cache: work on a copy"),
    ("return np.zeros(10**7), dout", "returns too much: 0 has shape (10000000,)"),
    ("class Odd(Exception):\n    def __str__(self): return 1 / 0\nraise Odd", "Odd: an exception without a message"),
])  # fmt: skip
def test_a_backward_without_results_says_why(body, message):
    found = check_text("rmsnorm", with_body("rmsnorm", body))
    assert found["outcome"] in ("wrong", "crashed") and found["points"] == 0
    assert all(message in each["message"] for each in found["results"][1:])
    assert "Traceback" not in json.dumps(found)


@pytest.mark.parametrize("body, message", [
    ("x *= 2; return x * weight, (x, weight, eps)", "rmsnorm_forward writes into its input x: work on a copy"),
    ("return x", "must return two things: the output and the cache"),
    ("return [x, (x, weight, eps)]", "must return two things: the output and the cache"),
    ("return (x, x), (x, weight, eps)", "rmsnorm_forward returns 2 results, but must return out"),
])  # fmt: skip
def test_a_forward_without_a_result_says_why(body, message):
    found = check_text("rmsnorm_forward", with_body("rmsnorm_forward", body))
    assert message in found["results"][0]["message"]
    assert {each["verdict"] for each in found["results"][1:]} == {"not checked"}


def test_a_forward_that_writes_into_its_input_is_wrong():
    text = solved("rmsnorm").replace("    xp = xp_of(x)\n", "    xp = xp_of(x)\n    x += 0; x[0] += 1e-15\n")
    found = check_text("rmsnorm_forward", text)
    assert found["outcome"] == "wrong"
    assert found["results"][0]["message"] == "rmsnorm_forward writes into its input x: work on a copy"


@pytest.mark.parametrize("content, message", [
    (b"def", "line 1: SyntaxError: invalid syntax"), (b"\xff\xfe x = 1", "is not a text in UTF-8"),
    (b"", "it does not define the function rmsnorm_forward"), (b"x = 1\0", "null bytes"),
    (None, "is a folder, but a file is needed"),
    (b"def rmsnorm_backward(d, c): pass", "it does not define the function rmsnorm_forward"),
    (b"  x = 1", "line 1: SyntaxError: unexpected indent"),
])  # fmt: skip
def test_a_file_that_cannot_be_run_says_why(tmp_path, content, message):
    path = tmp_path / "rmsnorm.py"
    path.write_bytes(content) if content is not None else path.mkdir()
    found = check_file(path, "rmsnorm")
    if content and b"backward" in content:  # one of the two functions is there
        assert found["outcome"] == "wrong" and message in found["results"][0]["message"]
        return
    assert (found["outcome"], found["results"], found["points"]) == ("cannot be run", [], 0)
    assert message in found["message"] and found["message"].startswith(str(path))


def test_the_outcome_is_that_of_the_worst_result():
    assert list(OUTCOMES) == ["cannot be run", "timed out", "crashed", "wrong", "blank", "right"]
    assert len(set(OUTCOMES.values())) == 6 and OUTCOMES["right"] == 0 and OUTCOMES["cannot be run"] == 2
    text = with_body("block", "return d.after_ffn * 2")
    assert check_text("block", text)["outcome"] == "wrong"  # others are blank
    assert check_text("block", text.replace('raise NotImplementedError("your turn")', "return d.q", 1))["outcome"] == "crashed"


def test_what_was_done_before_the_time_was_over_counts(monkeypatch, tmp_path):
    values = {name: np.asarray(value) for name, value in block_values()[1].items()}
    answers = [Answer(values), Answer({"0": block_values()[2]["ffn_out"]})]
    run = Run(answers, "took longer", "", 1.0, timed_out=True)
    monkeypatch.setattr("numllama.learn.course.check.run_file", lambda *_, **__: run)
    found = check(tmp_path / "block.py", "block")
    assert (found.outcome, found.points, found.message) == ("timed out", 1, "took longer")
    assert {each.verdict for each in found.results[2:]} == {"timed out"}


def test_what_is_closed_is_what_the_exercise_does_not_build_on():
    assert "softmax_backward" in closed_functions("softmax") and "softmax_backward" not in closed_functions("attention")
    assert {"attention_backward", "flash_attention_backward"} <= set(closed_functions("flash_attention"))
    assert all(f"{op}_{way}" in closed_functions(op) for op in EXERCISES for way in ("forward", "backward"))
    assert not set(closed_functions("mixture_of_experts")) & {"swiglu_backward", "router_backward", "linears_backward"}


def test_the_ops_are_open_again_after_a_check():
    before = ops.rmsnorm_forward(np.ones((1, 2)), np.ones(2), 1e-5)[0]
    check_text("rmsnorm", exercise_text("rmsnorm"))
    assert ops.rmsnorm_forward(np.ones((1, 2)), np.ones(2), 1e-5)[0].tobytes() == before.tobytes()


def test_equal_arrays_are_right_whatever_their_infinities_and_nothing_else_is():
    right = np.array([1.0, -np.inf, 2.0])
    assert compare(right.copy(), right)[0] == "right"
    assert compare(np.array([1.0, 0.0, 2.0]), right)[0] == compare(np.array([1.0, -np.inf, 2.1]), right)[0] == "wrong"
    assert compare(np.full(3, np.nan), np.ones(3))[2].index == (0,)


def test_a_check_of_a_text_is_plain_data_without_the_folder_that_it_ran_in():
    found = check_text("rmsnorm", "import os\nraise ValueError(__file__)\n")
    assert found["file"] == "rmsnorm.py" and "numllama-" not in json.dumps(found)
    assert json.loads(json.dumps(found)) == found
    keys = "exercise kind file outcome points of message crash results printed seconds"
    assert set(found) == set(keys.split())


def test_a_name_that_is_none_is_one_sentence():
    for name, near in {"norm": "rmsnorm", "norm_forward": "rmsnorm_forward", "bug_99": "bug_19", "xyz": "", "": ""}.items():
        guess = f" (did you mean {near}?)" if near else ""
        with pytest.raises(ValueError, match=re.escape(f"exercise is {name!r}{guess}, but must be one of linear, bug_01")):
            check_text(name, "")


def test_every_op_with_a_backward_has_an_exercise():
    loops = {"linears_backward", "ropes_backward"}  # loops over an op that has one
    loops |= {"router_backward", "load_balancing_backward"}  # on the page of mixture_of_experts
    assert {f"{op}_backward" for op in EXERCISES} == {name for name in ops.__all__ if name.endswith("_backward")} - loops


def test_prerequisites_come_before_and_the_whole_llama_comes_last():
    names = list(COURSE)
    assert names[0] == "linear" and names[-1] == "llama"
    for i, (name, exercise) in enumerate(COURSE.items()):
        assert exercise.name == name and set(exercise.needs) <= set(names[:i])
        assert exercise.minutes > 0 and exercise.points > 0


def test_a_whole_llama_is_graded_as_the_last_exercise(tmp_path, monkeypatch):
    path = tmp_path / "llama.py"
    path.write_text("def llama(*_):\n    return {}\n")
    monkeypatch.setattr("numllama.learn.grade.grade", partial(grade, configurations=("gqa",)))
    found = check(path, "llama")
    assert (found.outcome, found.points, found.of) == ("blank", 0, COURSE["llama"].points)
    path.write_text("raise ValueError('x')")
    assert check(path, "llama").outcome == "crashed"
