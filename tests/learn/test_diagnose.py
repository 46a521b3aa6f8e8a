"""Naming a mistake: alone, two of them, in a sparse dump, with the gradients of a wrong forward, and one that is not known."""

import json

import numpy as np
import pytest
from learn.test_compare import MISTAKES, converted, dumped_with, run, swapped, unscaled
from safetensors.numpy import save_file

import numllama as nl
from numllama.learn.equations import OPS, Row
from numllama.learn.evaluation import evaluate
from numllama.learn.mistakes.mistake import Mistake, mistaken, places
from numllama.learn.reference import opened_reference
from numllama.learn.vectors import STANDARD, standard_vectors

UNSCALED = "The scores are not divided by √D."
SWAPPED = "Gate and up are exchanged: SiLU is applied to up."


@pytest.fixture(scope="module")
def gqa():
    return standard_vectors("gqa")


def dumped(reference, replaced, wanted=None):
    """Values and gradients with other equations."""
    equations = reference.equations
    wanted = wanted or [name for name in equations.order if "/" in name and name not in reference.known]
    values = evaluate(equations, wanted, reference.known, replaced)
    return {name: np.array(values[name]) for name in wanted}


def replacements(reference, mistake):
    equations = reference.equations
    return {node: mistaken(equations, node, mistake) for node in places(equations, mistake)}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_mistake_is_named_once_for_all_its_places(gqa, dtype):
    diagnosis = nl.diagnose(gqa, dumped_with(opened_reference(gqa, {}), MISTAKES["values/layer.0.scores"], dtype))
    (found,) = diagnosis.explanations
    assert found.mistakes == (UNSCALED,) and not diagnosis.unexplained
    assert found.values == ["values/layer.0.scores", "values/layer.1.scores"]
    assert found.page == "ops/attention" and found.before > 0.1 and found.after < 1e-6


def test_nothing_is_wrong_with_the_right_one(gqa):
    diagnosis = nl.diagnose(gqa, converted(gqa.tensors, "float32"))
    assert diagnosis.comparison.same and not diagnosis.explanations and not diagnosis.unexplained


def test_two_mistakes_in_different_ops_are_both_named(gqa):
    reference = opened_reference(gqa, {})
    both = [MISTAKES["values/layer.0.scores"], MISTAKES["values/layer.0.swiglu"]]
    diagnosis = nl.diagnose(gqa, dumped(reference, {k: v for each in both for k, v in replacements(reference, each).items()}))
    assert [each.mistakes for each in diagnosis.explanations] == [(UNSCALED,), (SWAPPED,)]


def test_the_logits_alone_are_enough(gqa):
    reference = opened_reference(gqa, {})
    logits = dumped(reference, replacements(reference, MISTAKES["values/layer.0.scores"]), ["values/logits"])
    assert UNSCALED in nl.diagnose(gqa, logits).explanations[0].mistakes


def test_two_mistakes_between_the_tokens_and_the_logits_are_found_together(gqa):
    reference = opened_reference(gqa, {})
    both = [MISTAKES["values/layer.0.scores"], MISTAKES["values/layer.0.swiglu"]]
    replaced = {k: v for each in both for k, v in replacements(reference, each).items()}
    (found,) = nl.diagnose(gqa, dumped(reference, replaced, ["values/logits"])).explanations
    assert set(found.mistakes) == {UNSCALED, SWAPPED}


def unscaled_backward(dout, q, k, visible):
    return dout @ k, dout.swapaxes(-1, -2) @ q


def test_the_right_gradients_of_a_wrong_forward_are_no_second_mistake(gqa):
    reference = opened_reference(gqa, {})
    rows = reference.equations.rows
    op = OPS["scores"]._replace(forward=unscaled, backward=unscaled_backward)
    replaced = {node: Row(op, row.inputs) for node, row in rows.items() if row.op.name == "scores"}
    diagnosis = nl.diagnose(gqa, dumped(reference, replaced))
    assert [each.mistakes for each in diagnosis.explanations] == [(UNSCALED,)]
    assert not diagnosis.unexplained
    verdicts = {each.name: each.verdict for each in diagnosis.comparison.judged}
    assert verdicts["d_values/layer.1.q_rotated"] == "unjudged"


@pytest.mark.parametrize("name", STANDARD)
def test_a_mistake_in_backward_is_named(name):
    vectors = standard_vectors(name)
    diagnosis = nl.diagnose(vectors, dumped_with(opened_reference(vectors, {}), MISTAKES["d_values/layer.1.after_ffn"]))
    (found,) = diagnosis.explanations
    assert "second term" in found.mistakes[0] and not diagnosis.unexplained


def test_an_unknown_mistake_is_placed(gqa, capsys, tmp_path):
    odd = Mistake("Nobody does this.", ("swiglu",), lambda gate, up: np.cos(gate) * up**3)
    dump = dumped_with(opened_reference(gqa, {}), odd, "float32")
    diagnosis = nl.diagnose(gqa, dump)
    assert not diagnosis.explanations
    assert diagnosis.unexplained[:2] == ["values/layer.0.swiglu", "values/layer.1.swiglu"]
    save_file(dump, tmp_path / "mine.safetensors")
    assert run("diagnose", "gqa", tmp_path / "mine.safetensors") == 1
    printed = capsys.readouterr().out
    assert "No known mistake gives the numbers of layer.0.swiglu, layer.1.swiglu" in printed
    assert "layer.0.swiglu is the first that is wrong" in printed


def test_the_command(gqa, tmp_path, capsys):
    save_file(dumped_with(opened_reference(gqa, {}), MISTAKES["values/layer.0.scores"], "float32"), tmp_path / "mine.safetensors")
    assert run("diagnose", "gqa", tmp_path / "mine.safetensors") == 1
    printed = capsys.readouterr().out
    assert f"1. {UNSCALED}" in printed and "It explains layer.0.scores, layer.1.scores." in printed
    right = "a.scores = np.where(visible, a.q_rotated @ k.mT / math.sqrt(D), -math.inf)"
    assert f"Right, in plain_llama.py: {right}" in printed
    assert "Derivation: docs/ops/attention.md" in printed
    assert run("diagnose", "gqa", tmp_path / "mine.safetensors", "--json") == 1
    result = json.loads(capsys.readouterr().out)
    assert result["explanations"][0]["mistakes"] == [UNSCALED] and result["comparison"]["same"] is False
    save_file(converted({k: np.ascontiguousarray(v) for k, v in gqa.tensors.items()}, "float32"), tmp_path / "right.safetensors")
    assert run("diagnose", "gqa", tmp_path / "right.safetensors") == 0
    assert run("diagnose", "gqa", tmp_path / "none.safetensors") == 2


def test_mistakes_that_give_the_same_numbers_are_all_told(gqa, tmp_path, capsys):
    """The width is 16 and a head 4 wide: √C is D."""
    mistake = Mistake("", ("scores",), lambda q, k, visible: np.where(visible, q @ k.swapaxes(-1, -2) / 4, -np.inf))
    save_file(dumped_with(opened_reference(gqa, {}), mistake, "float32"), tmp_path / "mine.safetensors")
    assert run("diagnose", "gqa", tmp_path / "mine.safetensors") == 1
    printed = capsys.readouterr().out
    assert "1. One of these, which give the same numbers here:" in printed
    assert "   - The scores are divided by √C, the root of the model's width, instead of √D." in printed


def test_gate_and_up_exchanged_in_one_place_only(gqa):
    reference = opened_reference(gqa, {})
    mistake = Mistake("", ("swiglu",), swapped)
    replaced = {"values/layer.1.swiglu": mistaken(reference.equations, "values/layer.1.swiglu", mistake)}
    (found,) = nl.diagnose(gqa, dumped(reference, replaced)).explanations
    assert found.mistakes == (SWAPPED,) and found.values == ["values/layer.1.swiglu"]
