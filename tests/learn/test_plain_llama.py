"""The plain Llama computes the logits, loss and gradients of the real model, in float64."""

import numpy as np
import pytest
from helpers import assert_close

from numllama.learn import plain_llama
from numllama.model.config import ModelConfig
from numllama.model.transformer import Transformer

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CONFIGS = {
    "every query head with its own keys": {},
    "grouped queries, wide heads": dict(n_kv_heads=2, head_dim=10, norm_eps=0.1),
    "one key head, interleaved RoPE": dict(n_kv_heads=1, rope_layout="interleaved", rope_theta=100.0),
    "norms of queries and keys": dict(n_kv_heads=2, qk_norm="rms"),
    "tied embeddings, scaled RoPE": dict(tie_embeddings=True, rope_scaling=LLAMA3, rope_theta=100.0),
}


def random_pair(options):
    """A model whose gains are random too, and a batch of two texts."""
    config = ModelConfig(vocab_size=31, dim=24, n_layers=3, n_heads=4, ffn_dim=40, max_seq_len=16, **options)
    model, rng = Transformer(config, dtype="float64"), np.random.default_rng(0)
    for value in model.params.values():
        value[...] = rng.normal(0, 0.3, value.shape) + (value.ndim == 1)
    return model, rng.integers(0, 31, (2, 2, 13))


SEGMENTS = {"one document": None, "packed documents": np.array([[0] * 5 + [1] * 8, [3] + [0] * 11 + [7]])}


@pytest.mark.parametrize("segments", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_logits_loss_and_gradients_are_those_of_the_model(options, segments):
    model, (tokens, targets) = random_pair(options)
    targets[:, ::4] = -100
    if segments is None:
        outer, blocks = plain_llama.forward(model.params, model.config, tokens)
        assert len(blocks) == 3
        assert_close(outer.values.logits, model.forward(tokens), rtol=1e-12)
    plain = plain_llama.loss_and_grads(model.params, model.config, tokens, targets, segments)
    loss, grads = model.loss_and_grads(tokens, targets, segments=segments)
    assert_close(plain.loss, float(loss), rtol=1e-12)
    assert set(plain.grads) == set(grads)
    for name, gradient in grads.items():
        assert_close(plain.grads[name], gradient, rtol=1e-11)


@pytest.mark.parametrize("qk_norm", [None, "rms"])
def test_every_value_has_a_gradient_of_its_shape(qk_norm):
    model, (tokens, targets) = random_pair({"n_kv_heads": 2, "qk_norm": qk_norm})
    plain = plain_llama.loss_and_grads(model.params, model.config, tokens, targets)
    pairs = [(plain.outer, plain.d_outer), *zip(plain.blocks, plain.d_blocks, strict=True)]
    for (values, _), gradients in pairs:
        assert set(vars(values)) == set(vars(gradients))
        for name, value in vars(values).items():
            assert getattr(gradients, name).shape == np.shape(value), name
