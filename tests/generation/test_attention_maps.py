"""Attention weights, as computed once more by the definition."""

import math

import numpy as np
import pytest
from generation.models import LLAMAS, RELATIVES, random_model
from helpers import assert_close

from numllama import ops
from numllama.generation.attention_maps import attention_weights
from numllama.model import LoraConfig

IDS = [3, 1, 4, 1, 5, 9, 2]


@pytest.mark.parametrize("kind", LLAMAS + RELATIVES, ids=str)
def test_each_row_is_a_distribution_over_what_was_before(kind):
    model = random_model("float32", **kind)
    weights = attention_weights(model, IDS, 1)
    assert weights.shape == (4, 7, 7)
    assert_close(weights.sum(-1), np.ones((4, 7)), rtol=1e-6)
    assert not np.triu(weights, 1).any()
    assert (weights >= 0).all()


def test_the_first_layers_weights_by_hand():
    model = random_model("float64")
    c, p = model.config, model.params
    x = p["embed"][IDS]                                                    # (T, C)
    n = x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * p["blocks.0.attn_norm"]
    q = (n @ p["blocks.0.wq"].T).reshape(7, 4, 4).transpose(1, 0, 2)       # (H, T, D)
    k = (n @ p["blocks.0.wk"].T).reshape(7, 2, 4).transpose(1, 0, 2)       # (K, T, D)
    cos, sin = ops.rope_table(np.arange(7), 4, c.rope_theta)
    turn = lambda x: np.concatenate([x[..., :2] * cos - x[..., 2:] * sin, x[..., 2:] * cos + x[..., :2] * sin], -1)  # noqa: E731
    scores = turn(q) @ np.repeat(turn(k), 2, 0).swapaxes(1, 2) / math.sqrt(4)
    scores[:, np.triu(np.ones((7, 7), bool), 1)] = -math.inf
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert_close(attention_weights(model, IDS, 0), expected.astype("float32"), rtol=1e-6)


def test_an_adapter_counts():
    model = random_model()
    model.add_adapter(LoraConfig(rank=2))
    model.adapter.params.flat[:] = np.random.default_rng(0).standard_normal(model.adapter.params.flat.shape)
    weights = attention_weights(model, IDS, 1)
    model.merge_adapter()
    assert_close(weights, attention_weights(model, IDS, 1), rtol=1e-6)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        attention_weights(random_model(), IDS, layer)
