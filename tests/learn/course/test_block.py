"""The block of the exercise is the plain Llama's block, and each of its gradients is checked on its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from learn.classroom import no_process, solved, with_body  # noqa: F401 - a fixture

from numllama.learn import plain_llama
from numllama.learn.course import block
from numllama.learn.course.bugs import BUGS
from numllama.learn.course.files import BLANK, exercise_text
from numllama.learn.course.hints import BLOCK_HINTS
from numllama.learn.course.naming import block_values
from numllama.learn.exercises import check_text
from numllama.model.config import ModelConfig


def test_values_and_gradients_are_those_of_the_plain_llama():
    (x, w, cos, sin), a, d, _ = block_values()
    c = ModelConfig(vocab_size=9, dim=12, n_layers=1, n_heads=block.H, n_kv_heads=block.K, head_dim=block.D, ffn_dim=10,
                    max_seq_len=8, norm_eps=block.EPS)  # fmt: skip
    weights = SimpleNamespace(**{name.replace("gain", "norm"): value for name, value in w.items()})
    forward = plain_llama.block_forward(x, weights, c, cos, sin, np.tri(5, dtype=bool))
    backward = plain_llama.block_backward(d.after_ffn, c, forward)
    for ours, theirs in ((a, forward.values), (d, backward.values)):
        for name, value in vars(theirs).items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-10, atol=1e-13, err_msg=name)
    for name, gradient in vars(backward.weights).items():
        np.testing.assert_allclose(d[name.replace("norm", "gain")], gradient, rtol=1e-10, atol=1e-13, err_msg=name)
    np.testing.assert_allclose(d.x, backward.dx, rtol=1e-10)


def test_each_gradient_earns_its_point_on_its_own(no_process):  # noqa: F811
    blank, right = exercise_text("block"), solved("block")
    assert check_text("block", right)["points"] == len(BLOCK_HINTS) == check_text("block", right)["of"]
    functions = right.split("\ndef ")
    for name in ("d_ffn_out", "d_scores", "d_x"):  # alone, with all before it blank
        (body,) = [each.partition("\n")[2].partition("\n\n")[0] for each in functions if each.startswith(f"{name}(")]
        start = blank.index(f"\ndef {name}(")
        text = blank[:start] + blank[start:].replace(f"    {BLANK}", body, 1)
        found = check_text("block", text)
        assert [each["name"] for each in found["results"] if each["verdict"] == "right"] == ["values", name]
        assert (found["outcome"], found["points"]) == ("blank", 1)


@pytest.mark.parametrize("body, verdict, message, hint", [
    ("return d.swiglu", "crashed", "AttributeError: d has no 'swiglu': it has after_ffn", False),
    ("return d.after_ffn[0]", "wrong", "its shape is (5, 12), but must be (2, 5, 12)", True),
    ("d.after_ffn[0] = 1; return d.after_ffn", "wrong", "d_ffn_out writes into after_ffn of d: work on a copy", False),
    ("return None", "wrong", "it is a NoneType", True),
    ("return d.after_ffn, 1", "wrong", "returns 2 results, but must return d_ffn_out", False),
])  # fmt: skip
def test_a_gradient_that_is_wrong_says_why_and_costs_no_other(no_process, body, verdict, message, hint):  # noqa: F811
    text = solved("block").replace("return d.after_ffn\n", body + "\n", 1)
    found = check_text("block", text)
    wrong = [each for each in found["results"] if each["verdict"] != "right"]
    assert [each["name"] for each in wrong] == ["d_ffn_out"] and found["points"] == len(BLOCK_HINTS) - 1
    assert wrong[0]["verdict"] == verdict and message in wrong[0]["message"]
    assert (wrong[0]["hint"] or {}).get("text") == (BLOCK_HINTS["d_ffn_out"][0] if hint else None)


def test_a_gradient_is_not_given_itself_or_what_comes_after_it(no_process):  # noqa: F811
    found = check_text("block", with_body("block", "print(sorted(d))\nreturn d.after_ffn"))
    assert found["printed"] == "['after_ffn']\n"


def test_a_function_that_is_missing_costs_its_own_point(no_process):  # noqa: F811
    found = check_text("block", solved("block").replace("def d_up(", "def d_down("))
    wrong = [each for each in found["results"] if each["verdict"] != "right"]
    assert [(each["name"], each["message"]) for each in wrong] == [("d_up", "it does not define the function d_up")]


def test_a_mistake_in_the_forward_is_found_in_the_value_that_it_changes(no_process):  # noqa: F811
    bug = BUGS[18]
    found = check_text("bug_19", solved("block").replace(bug.right, bug.wrong))
    assert found["results"][0]["message"].startswith("a.scores: ") and (found["points"], found["of"]) == (0, 3)
    fixed = check_text("bug_19", solved("block"))
    assert (fixed["outcome"], fixed["points"]) == ("right", 3)


def test_a_new_mistake_in_the_place_of_one_to_find_is_named_without_a_hint(no_process):  # noqa: F811
    text = solved("block").replace("return turn(d.q_rotated, a.cos, -a.sin)", "return turn(d.q_rotated, a.cos, a.sin)")
    for name, hint in (("block", True), ("bug_19", False)):
        (wrong,) = [each for each in check_text(name, text)["results"] if each["verdict"] == "wrong"]
        assert wrong["name"] == "d_q_heads" and "turns forward again" in wrong["mistake"] and bool(wrong["hint"]) == hint
