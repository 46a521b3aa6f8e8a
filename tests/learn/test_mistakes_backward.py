"""The catalogue's backward mistakes: each can be made, changes a gradient, and is told from the others by its numbers."""

from collections import Counter, defaultdict
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from numllama.learn.equations import Equations, gradient_of
from numllama.learn.evaluation import evaluate
from numllama.learn.mistakes import BACKWARD
from numllama.learn.mistakes.mistake import DoesNotApply, mistaken, places
from numllama.learn.vectors import STANDARD, Batch, standard_vectors, vectors_of
from numllama.model.config import ModelConfig
from numllama.model.transformer import Transformer

CHANGED, SAME = 1e-6, 1e-7  # relative changes
UNEVEN = dict(  # other numbers of sequences, tokens, heads and shared heads
    vocab_size=11, dim=10, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, ffn_dim=7, max_seq_len=9, qk_norm="rms"
)
CONFIGS = [*STANDARD, "uneven"]


def vectors(name):
    if name != "uneven":
        return standard_vectors(name)
    config, rng = ModelConfig(**UNEVEN), np.random.default_rng(0)
    params = Transformer(config, dtype="float64").params
    for value in params.values():
        value[...] = rng.normal(0, 0.4, value.shape) + (value.ndim == 1)
    return vectors_of(params, config, Batch(*rng.integers(0, 11, (2, 3, 7))))


@cache
def right(name):
    """The equations of a configuration, and all their values and gradients."""
    made = vectors(name)
    equations = Equations(made.config)
    inputs = {key: value for key, value in made.tensors.items() if key.startswith("weights/") or "/" not in key}
    known = equations.settings() | inputs
    return equations, known | evaluate(equations, [each for each in equations.order if each not in known], known)


def gradients(op, node, inputs, values):
    return op.backward(values[gradient_of(node)], *(values[value] for value in [*inputs.values(), *op.more]))


@cache
def outcomes(number, name):
    """The gradients that a mistake makes of right values, by the place where it is made and the parameter."""
    equations, values = right(name)
    found = {}
    for node in places(equations, BACKWARD[number]):
        op, inputs = mistaken(equations, node, BACKWARD[number])
        try:
            wrong = gradients(op, node, inputs, values)
        except DoesNotApply:
            continue
        found[node] = dict(zip(op.wrt, wrong, strict=True))
    return found


@cache
def right_gradients(node, name):
    equations, values = right(name)
    op, inputs = equations.rows[node]
    return dict(zip(op.wrt, gradients(op, node, inputs, values), strict=True))


def differ(a, b, by):
    """Whether a gradient with respect to any parameter differs; None stands for zeros."""

    def change(x, y):
        x, y = (0.0 if each is None else each for each in (x, y))
        return np.linalg.norm(np.subtract(x, y)) / max(np.linalg.norm(x), np.linalg.norm(y), 1e-300)

    return any(change(a[parameter], b[parameter]) > by for parameter in a)


def test_sentences_are_unique_and_short():
    assert len(BACKWARD) >= 80
    at = Counter((place, mistake.what) for mistake in BACKWARD for place in mistake.at)
    assert [key for key, times in at.items() if times > 1] == []
    for mistake in BACKWARD:
        assert mistake.what.endswith(".") and len(mistake.what) < 110, mistake.what
        assert mistake.in_backward


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_have_the_shape_of_their_values(name):
    for number, mistake in enumerate(BACKWARD):
        for node, wrong in outcomes(number, name).items():
            shapes = {parameter: gradient.shape for parameter, gradient in right_gradients(node, name).items()}
            for parameter, gradient in wrong.items():
                if gradient is not None:
                    assert gradient.shape == shapes[parameter], f"{mistake.what} at {node}"
                    assert np.isfinite(gradient).all(), f"{mistake.what} at {node}"


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_stay_as_they_are(name):
    _, values = right(name)
    before = {key: value.copy() for key, value in values.items() if isinstance(value, np.ndarray)}
    for number in range(len(BACKWARD)):
        outcomes.__wrapped__(number, name)
    for key, value in before.items():
        assert np.array_equal(value, values[key]), key


def test_each_mistake_changes_a_gradient():
    for number, mistake in enumerate(BACKWARD):
        pairs = [(wrong, right_gradients(node, name)) for name in CONFIGS for node, wrong in outcomes(number, name).items()]
        assert pairs, f"{mistake.what} has no place"
        assert any(differ(*pair, by=CHANGED) for pair in pairs), mistake.what


def changed(node, outcomes):
    """Whether a mistake is one here: the first block's weight is right in the first block."""
    return any(differ(wrong, right_gradients(node, name), by=SAME) for name, wrong in outcomes.items())


def test_no_two_mistakes_in_a_place_give_the_same_numbers():
    at = defaultdict(dict)
    for number in range(len(BACKWARD)):
        for name in CONFIGS:
            for node, wrong in outcomes(number, name).items():
                at[node].setdefault(number, {})[name] = wrong
    alike = []
    for node, by_mistake in at.items():
        for (a, first), (b, second) in combinations(by_mistake.items(), 2):
            both = first.keys() & second.keys()
            if both and not any(differ(first[name], second[name], by=SAME) for name in both) and changed(node, first):
                alike.append(f"{node}: {BACKWARD[a].what} {BACKWARD[b].what}")
    assert not alike, "\n".join(alike)


@pytest.mark.parametrize("name", CONFIGS)
def test_values_are_right_and_gradients_before_it_follow(name):
    """The whole model with a mistake: values do not change, and all gradients can be computed."""
    equations, values = right(name)
    known = {key: value for key, value in values.items() if "values/" not in key and not key.startswith("d_weights")}
    known |= {"d_values/loss": values["d_values/loss"]}
    wanted = ["values/loss", *(gradient_of(key) for key in known if key.startswith("weights/"))]
    for number in list(range(len(BACKWARD)))[CONFIGS.index(name) :: len(CONFIGS)]:
        replaced = {node: mistaken(equations, node, BACKWARD[number]) for node in outcomes(number, name)}
        computed = evaluate(equations, wanted, known, replaced)
        assert computed["values/loss"] == values["values/loss"]
        for key in wanted:
            assert computed[key].shape == values[key].shape
