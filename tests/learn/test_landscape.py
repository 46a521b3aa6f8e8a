"""A plane through a model's parameters: its directions are as long as the model's rows, and the model is left as it was."""

import numpy as np
import pytest
from helpers import assert_close

import numllama as nl
from numllama.learn.landscape import direction, plane

AT = (-1.0, 0.0, 0.5)


@pytest.fixture
def model():
    return nl.Transformer(nl.ModelConfig(vocab_size=11, dim=8, n_layers=2, n_heads=2, max_seq_len=6), seed=3, dtype="float64")


@pytest.fixture
def batch():
    return np.random.default_rng([2, 0]).integers(0, 11, (2, 3, 6))


def test_rows_are_as_long_as_the_models_and_gains_stay(model):
    found = direction(model.params, np.random.default_rng(1))
    for name, w in model.params.items():
        if w.ndim == 1:
            assert not found[name].any()
        else:
            assert_close(np.linalg.norm(found[name], axis=1), np.linalg.norm(w, axis=1))
            assert abs(np.sum(found[name] * w, 1) / np.sum(w * w, 1)).max() < 1 - 1e-6    # but they point elsewhere


def test_the_middle_is_the_models_own_loss_and_the_model_is_put_back(model, batch):
    before, own = model.params.flat.copy(), model.loss(*batch)
    losses = plane(model, *batch, AT, seed=4)
    assert losses.shape == (3, 3) and len(set(losses.ravel())) == 9
    assert losses[1, 1] == own
    assert (model.params.flat == before).all()
    assert (plane(model, *batch, AT, seed=4) == losses).all()
    assert (plane(model, *batch, AT, seed=5) != losses).sum() == 8     # other directions, the same middle


def test_columns_are_a_and_rows_are_b(model, batch):
    losses = plane(model, *batch, AT, seed=4)
    rng = np.random.default_rng(4)
    u, v = direction(model.params, rng).flat, direction(model.params, rng).flat
    model.params.flat += 0.5 * u - 1.0 * v
    assert_close(losses[0, 2], model.loss(*batch))


def test_the_model_is_put_back_after_a_failure_too(model, batch):
    before, loss = model.params.flat.copy(), model.loss
    calls = []

    def failing(*args):
        calls.append(args)
        return loss(*args) if len(calls) < 3 else 1 / 0

    model.loss = failing
    with pytest.raises(ZeroDivisionError):
        plane(model, *batch, AT)
    assert (model.params.flat == before).all()
