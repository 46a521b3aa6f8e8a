"""A model with a mixture of experts: gradients by differences, the load-balancing loss over layers, batches in parts."""

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits

import numllama as nl
from numllama.backend import BFLOAT16
from numllama.model import LoraConfig, ModelConfig, Transformer, count_parameters
from numllama.model.parameters import Int8Parameters
from numllama.training.plan import activation_bytes, flops_per_token

SHAPE = dict(vocab_size=17, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=12, max_seq_len=32, init_std=0.3)
MOE = dict(ffn="moe", n_experts=4, n_experts_per_token=2)
SWITCHES = {
    "mixtral": {},
    "balanced": dict(router_aux_loss=True, router_aux_loss_coef=0.5),
    "sigmoid": dict(router_score="sigmoid", router_normalised=False, router_aux_loss=True, router_aux_loss_coef=0.5),
    "one expert": dict(n_experts_per_token=1, router_normalised=False),
    "all experts": dict(n_experts_per_token=4),
    "window, biases, norms after": dict(sliding_window=4, bias="attention", norm_placement="after", router_aux_loss=True),
}
every_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)


def model_of(dtype="float64", **switches):
    return Transformer(ModelConfig(**SHAPE, **MOE | switches), dtype=dtype)


def batch(B=2, T=9, seed=0):
    return np.random.default_rng(seed).integers(0, 17, (2, B, T))


@every_switch
def test_every_gradient_against_differences(switches):
    model, (tokens, targets) = model_of(**switches), batch()
    _, grads = model.loss_and_grads(tokens, targets)
    rng, h = np.random.default_rng(1), 1e-4
    for name, view in model.params.items():
        u, before = rng.standard_normal(view.shape), view.copy()
        u /= np.linalg.norm(u)
        losses = []
        for step in (h, -h, 2 * h, -2 * h):
            view[...] = before + step * u
            losses.append(float(model.loss(tokens, targets)))
        view[...] = before
        numeric = (8 * (losses[0] - losses[1]) - (losses[2] - losses[3])) / (12 * h)
        assert abs(numeric - float((grads[name] * u).sum())) < 1e-9, name


@every_switch
def test_loss_and_grads_gives_the_loss_and_recompute_the_same_bits(switches):
    model, (tokens, targets) = model_of(**switches), batch()
    loss, grads = model.loss_and_grads(tokens, targets)
    assert_same_bits(np.asarray(model.loss(tokens, targets)), np.asarray(loss))
    again, same = model.loss_and_grads(tokens, targets, recompute=True)
    assert_same_bits(same.flat, grads.flat)
    assert float(again) == float(loss)


def test_the_load_balancing_loss_counts_all_layers_together():
    """Not the mean of the layers' own losses: one layer's favourites may be another's last choice."""
    model, (tokens, targets) = model_of(router_aux_loss=True, router_aux_loss_coef=1.0), batch()
    plain = Transformer(ModelConfig(**SHAPE, **MOE), params=model.params)
    context = model._context(tokens)
    model._hidden(tokens, context)
    probs, chosen = (np.concatenate(each) for each in (context.balance.probs, context.balance.chosen))
    assert len(probs) == 2 * tokens.size
    shares = np.bincount(chosen.ravel(), minlength=4) / len(chosen)
    expected = 4 * (shares * probs.mean(0)).sum()
    assert_close(model.loss(tokens, targets) - plain.loss(tokens, targets), np.asarray(expected), rtol=1e-10)


def test_parts_of_a_batch_add_their_load_balancing_losses_by_their_targets():
    model, (tokens, targets) = model_of(router_aux_loss=True, router_aux_loss_coef=0.5), batch(B=4)
    targets[3, 2:] = -100
    count = int((targets != -100).sum())
    whole = model.params.zeros_like()
    losses = [model.loss_and_grads(tokens[i : i + 2], targets[i : i + 2], count=count, grads=whole)[0] for i in (0, 2)]
    parts = [model.loss_and_grads(tokens[i : i + 2], targets[i : i + 2]) for i in (0, 2)]
    shares = [(targets[i : i + 2] != -100).sum() / count for i in (0, 2)]
    assert_close(sum(losses), sum(share * loss for share, (loss, _) in zip(shares, parts, strict=True)), rtol=1e-12)
    expected = sum(share * grads.flat for share, (_, grads) in zip(shares, parts, strict=True))
    assert_close(whole.flat, expected, rtol=1e-12)


def test_a_scale_multiplies_every_gradient():
    model, (tokens, targets) = model_of(router_aux_loss=True, router_aux_loss_coef=0.5), batch()
    _, grads = model.loss_and_grads(tokens, targets)
    _, scaled = model.loss_and_grads(tokens, targets, scale=8.0)
    assert_close(scaled.flat, 8 * grads.flat, rtol=1e-12)


def test_the_load_balancing_loss_spreads_the_tokens():
    model, (tokens, targets) = model_of("float32", router_aux_loss=True, router_aux_loss_coef=1.0), batch(4, 16)
    optimizer = nl.AdamW(model.params)

    def busiest():
        context = model._context(tokens)
        model._hidden(tokens, context)
        return np.bincount(np.concatenate(context.balance.chosen).ravel(), minlength=4).max()

    before = busiest()
    for _ in range(40):
        _, grads = model.loss_and_grads(tokens, targets)
        optimizer.step(grads, lr=1e-2)
    assert busiest() < before


@every_switch
def test_generation_by_the_cache_is_that_of_the_whole_sequence(switches):
    model, ids = model_of(**switches), [3, 1]
    for token in nl.generate(model, [3, 1], 8, temperature=0):
        assert token == int(np.argmax(model.forward(np.array([ids]))[0, -1]))
        ids.append(token)


def test_low_precision_is_close():
    model, (tokens, targets) = model_of("float32", **SWITCHES["balanced"]), batch()
    loss, grads = model.loss_and_grads(tokens, targets)
    mixed = Transformer(model.config, compute_dtype="bfloat16")
    loss_in_two_bytes, grads_in_two_bytes = mixed.loss_and_grads(tokens, targets)
    assert float(loss_in_two_bytes) == pytest.approx(float(loss), rel=0.02)
    assert_close(grads_in_two_bytes.flat, grads.flat, rtol=0.2)
    for name in ("wq", "router", "experts_gate", "experts_up", "experts_down"):
        gradient = grads_in_two_bytes[f"blocks.0.{name}"]
        assert not np.array_equal(gradient, gradient.astype(BFLOAT16).astype("float32")), f"{name}'s is rounded"


def test_an_adapter_leaves_the_experts_alone_and_names_what_it_cannot_update():
    model, (tokens, targets) = model_of(router_aux_loss=True), batch()
    model.add_adapter(LoraConfig(rank=2))
    _, grads = model.loss_and_grads(tokens, targets)
    assert {name.split(".")[-1][:2] for name in grads} == {"wq", "wk", "wv", "wo"}
    with pytest.raises(ValueError, match="targets holds 'w_up', but a model with ffn='moe' has no such matrix"):
        model_of().add_adapter(LoraConfig(targets=("wq", "w_up")))


def test_experts_are_matrices_that_decay_and_start_like_others():
    model = model_of()
    assert model.params.matrices.size == sum(view.size for view in model.params.values() if view.ndim > 1)
    assert count_parameters(model.config) == model.params.flat.size
    assert model.params["blocks.0.experts_gate"].std() == pytest.approx(0.3, rel=0.1)
    assert model.params["blocks.1.experts_down"].std() == pytest.approx(0.15, rel=0.1)      # 0.3 / sqrt(2 · 2 layers)


def test_int8_is_refused():
    params = model_of("float32").params
    with pytest.raises(ValueError, match=r"^a mixture of experts cannot be stored as int8"):
        Int8Parameters(params.shapes, params)


def test_a_plan_counts_the_experts_that_a_token_passes_through():
    few, all_ = (ModelConfig(**SHAPE, **MOE | dict(n_experts_per_token=k)) for k in (1, 4))
    difference = flops_per_token(all_, 8)["forward"] - flops_per_token(few, 8)["forward"]
    assert difference == 2 * 2 * 3 * 3 * 16 * 12                       # 2 layers, 3 more experts, 3 matrices each
    assert activation_bytes(all_, 2, 8, False) > activation_bytes(few, 2, 8, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(n_experts=1), "n_experts is 1 and n_experts_per_token is 2, but the first must be at least the second"),
        (dict(n_experts_per_token=5), "n_experts is 4 and n_experts_per_token is 5, but the first must be at least the second"),
        (dict(n_experts_per_token=0), "n_experts_per_token is 0, but must be a whole number of at least 1"),
        (dict(router_score="relu"), "router_score is 'relu', but must be one of 'softmax', 'sigmoid'"),
        (dict(router_aux_loss_coef=-1), "router_aux_loss_coef is -1, but must not be negative"),
        (dict(bias=True), "bias is True, but experts have no biases"),
        (dict(bias="ffn"), "bias is 'ffn', but experts have no biases"),
        (dict(ffn="swiglu", n_experts=None, n_experts_per_token=None, router_aux_loss=True), "router_aux_loss is True, but .*"),
        (dict(ffn="swiglu"), "n_experts is 4 and n_experts_per_token is 2, but ffn='swiglu' has no experts"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModelConfig(**SHAPE, **MOE | changes)


def test_a_run_has_the_same_losses_for_any_number_of_workers():
    """Shards add in order, stacked experts too; each brings its part of the load-balancing loss."""
    tokens = np.random.default_rng(0).integers(0, 17, 2000).astype("uint16")
    data = nl.Dataset(tokens, tokens[:200], 17)
    settings = dict(steps=3, batch_size=8, shards=4, eval_batches=1, warmup_steps=0, seq_len=16)
    losses = []
    for workers in (1, 2):
        model = model_of("float32", router_aux_loss=True, router_aux_loss_coef=0.1)
        with nl.Trainer(model, data, nl.TrainConfig(**settings, workers=workers)) as trainer:
            losses.append([step.loss for step in trainer])
    assert losses[0] == losses[1]


def test_a_mixture_is_mixtrals_unless_it_says_more():
    config = ModelConfig(**SHAPE, ffn="moe")
    assert (config.n_experts, config.n_experts_per_token) == (8, 2)
    assert ModelConfig(**SHAPE, ffn="moe", n_experts=1).n_experts_per_token == 1
