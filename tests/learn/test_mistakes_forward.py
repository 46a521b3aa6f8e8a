"""The catalogue's forward mistakes: each can be made, changes numbers, and is told from the others by them."""

from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from numllama.learn.equations import Equations
from numllama.learn.evaluation import evaluate
from numllama.learn.mistakes import FORWARD
from numllama.learn.mistakes.mistake import DoesNotApply, mistaken, places
from numllama.learn.vectors import STANDARD, Batch, standard_vectors, vectors_of
from numllama.model.config import ModelConfig
from numllama.model.transformer import Transformer

CHANGED, SAME = 1e-6, 1e-7  # relative changes
# Frequencies that are kept, blended and divided; three blocks; C, H·D, H and D of different sizes.
WIDE = dict(
    vocab_size=11, dim=24, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=12, max_seq_len=128,
    rope_scaling=dict(
        rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    ),
)  # fmt: skip
TINY = dict(vocab_size=3, dim=2, n_layers=1, n_heads=1, ffn_dim=1, max_seq_len=8)
MORE = {"wide": WIDE, "tiny": TINY}
CONFIGS = [*STANDARD, *MORE]


@cache
def vectors(name):
    if name in STANDARD:
        return standard_vectors(name)
    config, rng = ModelConfig(**MORE[name]), np.random.default_rng(0)
    params = Transformer(config, dtype="float64").params
    for value in params.values():
        value[...] = rng.normal(0, 0.3, value.shape) + (value.ndim == 1)
    return vectors_of(params, config, Batch(*rng.integers(0, config.vocab_size, (2, 2, 7))))


@cache
def right(name):
    """The equations of a configuration, and all their values."""
    made = vectors(name)
    equations = Equations(made.config)
    inputs = {key: value for key, value in made.tensors.items() if key.startswith("weights/") or "/" not in key}
    known = equations.settings() | inputs
    return equations, known | evaluate(equations, equations.rows, known)


@cache
def outcomes(number, name):
    """What a mistake makes of each value that it can be made at, from the right inputs."""
    equations, values = right(name)
    found = {}
    for node in places(equations, FORWARD[number]):
        op, inputs = mistaken(equations, node, FORWARD[number])
        try:
            found[node] = np.asarray(op.forward(*(values[value] for value in inputs.values())))
        except DoesNotApply:
            continue
    return found


def change(a, b):
    """The relative change; hidden scores, minus infinity in both, do not count."""
    a, b = np.broadcast_arrays(*(np.asarray(x, float) for x in (a, b)))
    counts = ~(np.isneginf(a) & np.isneginf(b))
    return np.linalg.norm(a[counts] - b[counts]) / max(np.linalg.norm(b[counts]), 1e-300)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_has_the_values_of_the_vectors(name):
    made, (_, values) = vectors(name), right(name)
    for key in made.tensors:
        if key.startswith(("values/", "rope/")) or key == "positions":
            assert change(np.where(np.isneginf(values[key]), 0, values[key]), made.tensors[key]) < 1e-12, key


def test_sentences_are_unique_and_short():
    assert len(FORWARD) >= 90
    assert [what for what, times in Counter(mistake.what for mistake in FORWARD).items() if times > 1] == []
    for mistake in FORWARD:
        assert mistake.what[0].isupper() or mistake.what.startswith(("eps", "theta", "1 ", "10 ")), mistake.what
        assert mistake.what.endswith(".") and len(mistake.what) < 110, mistake.what
        assert not mistake.in_backward


@pytest.mark.parametrize("name", CONFIGS)
def test_values_have_the_shape_of_right_ones_and_are_finite_where_those_are(name):
    _, values = right(name)
    for number, mistake in enumerate(FORWARD):
        for node, value in outcomes(number, name).items():
            where = f"{mistake.what} at {node}"
            if node in ("visible", "positions"):  # may differ for each sequence where the right one does not
                assert np.broadcast_shapes(value.shape, values[node].shape) == value.shape, where
            else:
                assert value.shape == values[node].shape, where
            assert not np.isnan(value).any(), where
            assert (np.isfinite(value) | np.isneginf(values[node])).all(), where


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_stay_as_they_are_and_precede_the_value(name):
    equations, values = right(name)
    before = {key: value.copy() for key, value in values.items() if isinstance(value, np.ndarray)}
    for number, mistake in enumerate(FORWARD):
        outcomes.__wrapped__(number, name)
        for node in places(equations, mistake):
            for value in mistaken(equations, node, mistake).inputs.values():
                assert value not in equations.rows or equations.order.index(value) < equations.order.index(node)
    for key, value in before.items():
        assert np.array_equal(value, values[key]), key


def test_each_mistake_changes_its_value():
    for number, mistake in enumerate(FORWARD):
        changes = [
            change(value, right(name)[1][node]) for name in CONFIGS for node, value in outcomes(number, name).items()
        ]
        assert changes, f"{mistake.what} has no place"
        assert max(changes) > CHANGED, mistake.what


def test_no_two_mistakes_give_the_same_numbers():
    for a, b in combinations(range(len(FORWARD)), 2):
        both = [
            (outcomes(a, name)[node], outcomes(b, name)[node])
            for name in CONFIGS
            for node in outcomes(a, name).keys() & outcomes(b, name).keys()
        ]
        assert not both or any(change(*pair) > SAME for pair in both), f"{FORWARD[a].what}\n{FORWARD[b].what}"


def test_a_mistake_has_a_place_only_where_the_model_has_its_values():
    of_keys = next(mistake for mistake in FORWARD if mistake.what == "The norm of the keys follows RoPE instead of preceding it.")
    assert places(right("gqa")[0], of_keys) == []
    assert places(right("qk-norm")[0], of_keys) == ["values/layer.0.k_rotated", "values/layer.1.k_rotated"]


def test_a_mistake_may_name_an_input_of_another_layer():
    first = next(mistake for mistake in FORWARD if mistake.what == "The weight is that of the first block, in every block.")
    row = mistaken(right("wide")[0], "values/layer.2.up", first)
    assert row.inputs["weight_of_layer_0"] == "weights/blocks.0.w_up"
    assert row.inputs["weight"] == "weights/blocks.2.w_up"
