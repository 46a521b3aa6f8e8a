"""Recorded values and gradients are those of the model: by finite differences, and by what must follow from them."""

from functools import cache

import numpy as np
import pytest
from helpers import assert_close
from learn.families import FAMILIES, a_model

from numllama import ops
from numllama.learn.intermediates import dense_attention, forward
from numllama.learn.plain_llama import loss_and_grads
from numllama.model.experts import with_balance

IDS = np.array([[7, 50, 7, 3, 9, 11, 20], [3, 3, 9, 30, 1, 0, 4]])
TOKENS, TARGETS = IDS[:, :-1], IDS[:, 1:]
DERIVED = ("scores", "attention", "router", "expert_weights")  # seen, but not edited
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def recorded(family):
    model = a_model(**FAMILIES[family])
    run = forward(model, TOKENS)
    return model, run, run.loss_and_grads(TARGETS)


def loss_with(model, edits):
    run = forward(model, TOKENS, only=lambda name: False, edits=edits)
    assert run.values == {}
    return float(with_balance(ops.cross_entropy_forward(run.logits, TARGETS)[0], run.context, TARGETS))


@every_family
def test_loss_logits_and_parameters_gradients_are_those_of_the_model(family):
    model, run, (loss, grads, _) = recorded(family)
    expected_loss, expected = model.loss_and_grads(TOKENS, TARGETS)
    assert_close(loss, float(expected_loss))
    assert_close(run.values["logits"], model.forward(TOKENS))
    largest = max(np.linalg.norm(g) for g in expected.values())
    for name, gradient in expected.items():
        assert np.linalg.norm(grads[name] - gradient) <= 1e-11 * max(np.linalg.norm(gradient), 1e-3 * largest), name


@every_family
def test_each_gradient_is_a_derivative(family):
    """All values at once would hide a mistake in one: so each is moved alone, along a random direction of its own."""
    model, run, (_, _, gradients) = recorded(family)
    assert list(gradients) == list(run.values)
    rng, step = np.random.default_rng(3), 1e-5
    for name, value in run.values.items():
        assert gradients[name].shape == value.shape, name
        if name.startswith("layer 0") or name.endswith(DERIVED):
            continue
        direction = rng.standard_normal(value.shape)
        up, down = (loss_with(model, {name: lambda x, s=s, u=direction: x + s * step * u}) for s in (1, -1))
        expected = float((gradients[name] * direction).sum())
        assert (up - down) / (2 * step) == pytest.approx(expected, rel=2e-5, abs=1e-8), name


@every_family
def test_the_gradients_of_scores_give_those_of_queries(family):
    model, run, (_, _, gradients) = recorded(family)
    c = model.config
    for i in range(c.n_layers):
        at = f"layer {i}: "
        order = ("q_norm", "q_rotated", "q") if c.qk_norm == "l2" else ("q_rotated", "q_norm", "q")
        q_name = next(name for name in order if at + name in run.values)                       # what attention is given
        k, p, dq = run.values[at + q_name.replace("q", "k", 1)], run.values[at + "attention"], gradients[at + q_name]
        if q_name == "q":
            k, dq = (x.reshape(*x.shape[:2], -1, c.head_dim).swapaxes(1, 2) for x in (k, dq))
        scale = c.attn_scale or c.head_dim**-0.5
        assert_close(scale * gradients[at + "scores"] @ np.repeat(k, c.n_heads // c.n_kv_heads, axis=1), dq, rtol=1e-10)
        assert_close(p.sum(-1), np.ones(p.shape[:-1]))
        out = gradients[at + "head_outputs"] * run.values[at + "head_outputs"]
        assert_close((p * gradients[at + "attention"]).sum(-1), out.sum(-1), rtol=1e-10)


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_the_gradient_of_a_routers_logits_gives_that_of_its_matrix(family):
    model, run, (_, grads, gradients) = recorded(family)
    n, droutes = run.values["layer 1: ffn_norm"], gradients["layer 1: router"]
    assert_close(np.einsum("bte,btc->ec", droutes, n), grads["blocks.1.router"], rtol=1e-10)
    assert_close(run.values["layer 1: router"], n @ model.params["blocks.1.router"].T)
    weights, dweights = run.values["layer 1: expert_weights"], gradients["layer 1: expert_weights"]
    assert weights.shape == dweights.shape == (*TOKENS.shape, 2) and dweights.any()


@pytest.mark.parametrize("options", [{}, dict(qk_norm="rms", n_kv_heads=1), dict(tie_embeddings=True, rope_layout="interleaved")])
def test_a_plain_llama_is_recorded_as_its_plain_lines_compute_it(options):
    model = a_model(**options)
    plain, run = loss_and_grads(model.params, model.config, TOKENS, TARGETS), forward(model, TOKENS)
    loss, _, gradients = run.loss_and_grads(TARGETS)
    expected, d_expected = {"embedding": plain.outer.values.embedding}, {"embedding": plain.d_outer.embedding}
    for i, (block, d_block) in enumerate(zip(plain.blocks, plain.d_blocks, strict=True)):
        values = vars(block.values)
        hidden = np.isneginf(values["scores"])
        expected |= {f"layer {i}: {k}": np.where(hidden, 0, v) if k == "scores" else v for k, v in values.items()}
        d_expected |= {f"layer {i}: {k}": np.where(hidden, 0, d) if k == "attention" else d for k, d in vars(d_block).items()}
    expected |= {name: getattr(plain.outer.values, name) for name in ("norm", "logits")}
    d_expected |= {name: getattr(plain.d_outer, name) for name in ("norm", "logits")}
    assert list(run.values) == list(expected)
    assert_close(loss, plain.loss)
    for name, value in expected.items():
        assert_close(run.values[name], value, rtol=1e-11)
        assert_close(gradients[name], d_expected[name], rtol=1e-10)


def test_only_what_is_wanted_is_kept_and_a_backward_needs_no_parameters_gradients():
    model, whole, _ = recorded("gemma2")
    run = forward(model, TOKENS, only=lambda name: name.endswith("attn_out"))
    assert list(run.values) == ["layer 0: attn_out", "layer 1: attn_out"]
    dlogits = np.random.default_rng(0).standard_normal(run.logits.shape)
    grads = model.params.zeros_like()
    with_grads, without = whole.backward(dlogits, grads), run.backward(dlogits)
    assert grads["embed"].any() and list(without) == list(run.values)
    for name, gradient in without.items():
        assert_close(gradient, with_grads[name], rtol=1e-11)


def test_an_edit_changes_the_rest_of_the_run_and_its_name_must_be_a_values():
    model, run, _ = recorded("mistral")
    edited = forward(model, TOKENS, edits={"layer 0: head_outputs": lambda value: 0 * value})
    assert not edited.values["layer 0: attn_out"].any()
    assert_close(edited.values["layer 0: after_attention"], run.values["embedding"])
    assert np.abs(edited.logits - run.logits).max() > 1e-3
    with pytest.raises(ValueError, match="this run were edited: it has no backward"):
        edited.backward(run.logits)
    for name in ("layer 0: scores", "layer 2: q", "nothing"):
        with pytest.raises(ValueError, match=f"{name}.* is no value that can be edited in this model of 2 layers"):
            forward(model, TOKENS, edits={name: lambda value: value})


def test_recording_changes_nothing_of_the_model_and_its_values_are_copies():
    model, run, _ = recorded("gpt2")
    before, logits = model.params.flat.copy(), model.forward(TOKENS)
    for value in run.values.values():
        value[...] += 1
    assert np.array_equal(model.params.flat, before) and np.array_equal(model.forward(TOKENS), logits)
    recorded.cache_clear()


def test_attention_is_the_definitions():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, H, 5, 4)) for H in (4, 2, 2))
    visible, scores, capped, p = dense_attention(q, k, v, None, None, None, None, 1.5)
    assert_close(scores, q @ np.repeat(k, 2, axis=1).swapaxes(-1, -2) / 2)
    assert_close(capped, 1.5 * np.tanh(scores / 1.5))
    weights = np.where(visible, np.exp(capped), 0)
    assert_close(p, weights / weights.sum(-1, keepdims=True))
    assert np.array_equal(visible[0, 0], np.tri(5, dtype=bool))
