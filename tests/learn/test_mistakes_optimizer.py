"""AdamW as a table of equations; its mistakes: each changes numbers, is told from the others by them, and is found."""

from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from numllama.learn.evaluation import evaluate
from numllama.learn.mistakes import BACKWARD, OPTIMIZER
from numllama.learn.mistakes.mistake import mistaken, places
from numllama.learn.optimizer_diagnosis import LOSSES, NORMS, apart, explain, noise
from numllama.learn.optimizer_equations import EQUATIONS, simulate
from numllama.learn.reference import opened_reference
from numllama.learn.rounding import rounding
from numllama.learn.vectors import STANDARD, standard_vectors
from numllama.model.parameters import copied_parameters
from numllama.model.transformer import Transformer
from numllama.optim import AdamW, clip_grad_norm

CHANGED, SAME = 1e-6, 1e-7  # relative changes
BY_SENTENCE = {mistake.what: mistake for mistake in OPTIMIZER}


@cache
def reference(name):
    return opened_reference(standard_vectors(name), {})


def simulated(name, mistakes=(), steps=10, dtype=None, replaced=None, seed=0):
    """Losses, norms and weights after the steps, by their names in vectors; rounded as in a dtype."""
    known, equations = reference(name).known, reference(name).equations
    weights = {key[len("weights/") :]: value for key, value in known.items() if key.startswith("weights/")}
    jitter = rounding(dtype) if dtype else lambda value: value
    for _ in range(seed):  # other numbers than those that the diagnosis draws
        jitter(np.ones(1000))

    def gradients(weights):
        values = known | {f"weights/{key}": value for key, value in weights.items()}
        computed = evaluate(equations, ["values/loss", *(f"d_weights/{key}" for key in weights)], values, replaced, jitter)
        return float(computed["values/loss"]), {key: computed[f"d_weights/{key}"] for key in weights}

    settings = reference(name).manifest["optimizer"]
    wrong = {key: equation for mistake in mistakes for key, equation in mistake.equations.items()}
    after, losses, norms = simulate(weights, gradients, settings, steps, wrong, jitter)
    return {LOSSES: losses, NORMS: norms} | {f"after/{key}": value for key, value in after.items()}


@cache
def outcome(number, name):
    return simulated(name, [OPTIMIZER[number]])


def change(a, b):
    return max(apart(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------------------------ the equations


@pytest.mark.parametrize("name", STANDARD)
def test_the_equations_give_the_vectors(name):
    ours, rounded = simulated(name), noise(reference(name), "float64")
    assert set(ours) == set(rounded) == {each for each in reference(name).vectors if each.startswith(("after/", "optimizer/"))}
    for key, value in ours.items():
        right = reference(name).vectors[key]
        assert np.linalg.norm(value - right) < max(1e-12 * np.linalg.norm(right), 8 * np.linalg.norm(rounded[key])), key


@pytest.mark.parametrize("name", STANDARD)
def test_noise_explains_a_run_in_float32(name):
    made = standard_vectors(name)
    weights = {key[len("weights/") :]: value for key, value in made.tensors.items() if key.startswith("weights/")}
    params = copied_parameters(made.config, weights, np.dtype("float32"))
    model, settings = Transformer(made.config, params=params, dtype="float32"), made.manifest["optimizer"]
    optimizer = AdamW(params, **{key: settings[key] for key in ("lr", "betas", "eps", "weight_decay")})
    dump = {LOSSES: [], NORMS: []}
    for _ in settings["losses"]:
        batch = (made.tensors[key] for key in ("tokens", "targets"))
        loss, grads = model.loss_and_grads(*batch, segments=made.tensors.get("segments"))
        dump[LOSSES].append(float(loss))
        dump[NORMS].append(float(clip_grad_norm(grads, settings["clip"])))
        optimizer.step(grads)
    dump |= {f"after/{key}": np.array(value) for key, value in params.items()}
    rounded = noise(reference(name), "float32")
    for key, value in dump.items():
        right = reference(name).vectors[key]
        assert np.linalg.norm(value - right) < max(1e-4 * np.linalg.norm(right), 8 * np.linalg.norm(rounded[key])), key
    assert explain(reference(name), dump, "float32") == []


# ------------------------------------------------------------------------------------------------ the mistakes


def test_sentences_are_unique_and_short():
    assert len(OPTIMIZER) >= 35
    assert [what for what, times in Counter(mistake.what for mistake in OPTIMIZER).items() if times > 1] == []
    for mistake in OPTIMIZER:
        assert mistake.what.endswith(".") and len(mistake.what) < 110, mistake.what
        assert mistake.equations.keys() <= EQUATIONS.keys()


@pytest.mark.thorough
@pytest.mark.parametrize("name", STANDARD)
def test_all_can_be_made_everywhere(name):
    right = simulated(name, steps=2)
    for mistake in OPTIMIZER:
        made = simulated(name, [mistake], steps=2)
        assert {key: np.shape(value) for key, value in made.items()} == {key: np.shape(value) for key, value in right.items()}


@pytest.mark.thorough
def test_each_changes_numbers_and_no_two_give_the_same():
    names = ("gqa", "qk-norm")  # weights that decay, gains; norms above the limit and below
    for number, mistake in enumerate(OPTIMIZER):
        assert any(change(outcome(number, name), simulated_right(name)) > CHANGED for name in names), mistake.what
    for a, b in combinations(range(len(OPTIMIZER)), 2):
        differ = any(change(outcome(a, name), outcome(b, name)) > SAME for name in names)
        assert differ, f"{OPTIMIZER[a].what}\n{OPTIMIZER[b].what}"


@cache
def simulated_right(name):
    return simulated(name)


# ------------------------------------------------------------------------------------------------ the diagnosis


FOUND = (
    "Gradients are not clipped.", "Gains decay too.", "The betas are exchanged.", "The bias of v is not corrected.",
    "The root of v is missing.", "One step is missing.", "The step is Lion's.",
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("what", [*FOUND[:3], *(pytest.param(each, marks=pytest.mark.thorough) for each in FOUND[3:])])
def test_a_mistake_is_found(what, dtype):
    dump = simulated("gqa", [BY_SENTENCE[what]], dtype=dtype, seed=1)
    first, *_ = explain(reference("gqa"), dump, dtype)
    assert first.what == what and first.error_after < first.error_before / 4


@pytest.mark.parametrize("part", [LOSSES, pytest.param("after/", marks=pytest.mark.thorough)])
def test_a_part_of_the_numbers_is_enough(part):
    dump = simulated("gqa", [BY_SENTENCE["Each tensor is clipped by its own norm."]], dtype="float32", seed=1)
    first, *_ = explain(reference("gqa"), [(key, value) for key, value in dump.items() if key.startswith(part)], "float32")
    assert first.what == "Each tensor is clipped by its own norm."


@pytest.mark.thorough
def test_two_mistakes_are_found_together():
    pair = [BY_SENTENCE[what] for what in ("Gradients are not clipped.", "Weights do not decay.")]
    first, *_ = explain(reference("gqa"), simulated("gqa", pair), "float64")
    assert sorted(first.what.split(". ")) == ["Gradients are not clipped", "Weights do not decay."]


def test_a_mistake_of_the_model_alone_needs_none_of_the_optimizer():
    mistake = next(each for each in BACKWARD if each.what.startswith("The second term of dx is missing"))
    equations = reference("gqa").equations
    replaced = {node: mistaken(equations, node, mistake) for node in places(equations, mistake)}
    dump = simulated("gqa", replaced=replaced)
    assert explain(reference("gqa"), dump, "float64", replaced) == []
    both = simulated("gqa", [BY_SENTENCE["Weights do not decay."]], replaced=replaced)
    assert explain(reference("gqa"), both, "float64", replaced)[0].what == "Weights do not decay."


def test_nothing_to_explain():
    assert explain(reference("gqa"), {"values/loss": np.ones(())}, "float64") == []
    model = opened_reference(Transformer(reference("gqa").config, dtype="float64"), {"tokens": np.array([[1, 2]])})
    assert noise(model, "float32") == {} and explain(model, {LOSSES: np.ones(10)}, "float32") == []
