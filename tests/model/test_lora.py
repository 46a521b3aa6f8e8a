"""Adapters in a model: their gradients, what is frozen, merging, and what targets of -100 do."""

import json
import tracemalloc

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from model.test_transformer import SEGMENTS, SWITCHES, assert_same_grads, batch, both_families, build, check_every_gradient

import numllama as nl
from numllama.backend import BFLOAT16, to_numpy
from numllama.model import transformer
from numllama.model.lora import TARGETS

every_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
every_untied_switch = pytest.mark.parametrize(
    "switches", [pytest.param(each, id=name) for name, each in SWITCHES.items() if not each.get("tie_embeddings")]
)
SOME, ENDS = ("wq", "wv", "w_down"), ("embed", "head")


def adapted(switches, device="cpu", dtype="float64", targets=TARGETS, **config):
    """A small model, all random, with an adapter whose b is no longer zero, nor its own embedding and head the model's."""
    model = build(switches, device, "float32" if dtype in ("bfloat16", "float16") else dtype)
    model = nl.Transformer(model.config, device=device, compute_dtype=dtype, params=model.params)
    model.add_adapter(nl.LoraConfig(rank=3, alpha=4.5, targets=targets, **config), seed=5)
    for i, (name, view) in enumerate(model.adapter.params.items()):
        if not name.endswith("_lora_a"):
            view += model.xp.asarray(np.random.default_rng([6, i]).standard_normal(view.shape) * 0.3, view.dtype)
    model.adapter.params.sync_low_precision()
    return model


def merged(model):
    """The same model, its adapter added to the weights."""
    other = nl.Transformer(model.config, device=model.device, compute_dtype=model.compute_dtype)
    other.params.flat[...] = model.params.flat
    other.add_adapter(model.adapter.config, params=model.adapter.params)
    other.merge_adapter()
    return other


# ------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("targets", [TARGETS, SOME], ids=["all", "some"])
@every_switch
def test_gradients_are_those_of_the_merged_model_by_the_chain_rule(device, switches, targets):
    model = adapted(switches, device, targets=targets)
    loss, grads = model.loss_and_grads(*batch(), segments=SEGMENTS)
    merged_loss, full = merged(model).loss_and_grads(*batch(), segments=SEGMENTS)
    assert float(loss) == pytest.approx(float(merged_loss), rel=1e-12)
    scale, p, expected = 4.5 / 3, model.adapter.params, {}
    for name in p:
        weight = name[: -len("_lora_a")]
        a, b = p[f"{weight}_lora_a"], p[f"{weight}_lora_b"]
        expected[name] = scale * (b.T @ full[weight] if name.endswith("a") else full[weight] @ a.T)
    assert set(grads) == set(p)
    assert_same_grads(grads, expected, rtol=1e-11)


@both_families
def test_every_gradient_against_differences(switches):
    model = adapted(switches, targets=SOME)
    check_every_gradient(model, *batch(), segments=SEGMENTS)


@both_families
def test_recompute_gives_the_same_bits(device, switches):
    model = adapted(switches | dict(dropout=0.3), device)
    plain, again = (model.loss_and_grads(*batch(), key=(1, 2), recompute=recompute)[1] for recompute in (False, True))
    assert_same_bits(plain.flat, again.flat)


def test_an_adapter_has_gradients_of_its_own_and_nothing_else_has(device):
    model = adapted({}, device, targets=SOME)
    before = to_numpy(model.params.flat).copy()
    _, grads = model.loss_and_grads(*batch())
    nl.AdamW(model.trainable, lr=0.1).step(grads)
    assert_same_bits(model.params.flat, before)
    assert {name.split(".")[-1] for name in grads} == {f"{name}_lora_{part}" for name in SOME for part in "ab"}
    with pytest.raises(ValueError, match="grads has another layout"):
        model.loss_and_grads(*batch(), grads=model.params.zeros_like())


@pytest.mark.parametrize("modules", [(), ENDS], ids=["updates", "whole_matrices_too"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_mixed_precision_gradients_point_where_those_in_float64_do(dtype, modules):
    model, exact = adapted({}, dtype=dtype, modules_to_save=modules), adapted({}, modules_to_save=modules)
    exact.params.flat[...], exact.adapter.params.flat[...] = model.params.flat, model.adapter.params.flat
    loss, grads = model.loss_and_grads(*batch())
    exact_loss, expected = exact.loss_and_grads(*batch())
    assert float(loss) == pytest.approx(float(exact_loss), rel=0.02)
    assert {view.dtype.name for view in (grads.flat, model.adapter.params.flat)} == {"float32"}
    assert model.adapter.weights.flat.dtype == dtype
    for name, gradient in grads.items():
        cosine = (gradient * expected[name]).sum() / np.linalg.norm(gradient) / np.linalg.norm(expected[name])
        assert cosine > 0.99, name
        assert name != "head" or (gradient == gradient.astype(dtype)).mean() < 0.2  # it is not rounded
    nl.AdamW(model.trainable).step(grads)
    assert_same_bits(model.adapter.weights.flat, model.adapter.params.flat.astype(dtype))


def test_weights_kept_in_two_bytes_can_have_an_adapter(without_onednn, tmp_path):
    model = build({}, dtype="float32")
    model.params.flat[...] = model.params.flat.astype(BFLOAT16)
    model.save(tmp_path)
    small = nl.load(tmp_path, dtype="bfloat16")
    results = []
    for each in (model, small):
        each.add_adapter(nl.LoraConfig(rank=2))
        each.adapter.params.flat[...] = adapter_noise(each)
        results.append(each.loss_and_grads(*batch()))
    assert small.params.flat.dtype == BFLOAT16
    assert float(results[0][0]) == pytest.approx(float(results[1][0]), rel=1e-6)
    assert_same_grads(results[1][1], results[0][1], rtol=1e-5)


def test_weights_stored_as_int8_can_have_an_adapter_that_is_trained_already(without_onednn, tmp_path):
    build({}, dtype="float32").save(tmp_path)
    small = nl.load(tmp_path, store_as="int8")
    same = build({}, dtype="float32")
    same.params.flat[...] = np.concatenate([np.asarray(view).ravel() for view in small.params.values()])
    for each in (small, same):
        each.add_adapter(nl.LoraConfig(rank=2))
        each.adapter.params.flat[...] = adapter_noise(each)
    tokens, targets = batch()
    assert_close(small.forward(tokens), same.forward(tokens), rtol=1e-5)
    with pytest.raises(ValueError, match=r"^weights kept in int8 cannot be trained"):
        small.loss_and_grads(tokens, targets)
    with pytest.raises(ValueError, match=r"^weights stored as int8 cannot be changed: load the model without store_as$"):
        small.merge_adapter()


def adapter_noise(model):
    return np.random.default_rng(3).standard_normal(model.adapter.params.flat.shape) * 0.1


# ------------------------------------------------------------------------------------------------ the model with it


@every_switch
def test_a_new_adapter_changes_no_bit(device, switches):
    model = build(switches, device, "float32")
    before = to_numpy(model.forward(batch()[0]))
    model.add_adapter(nl.LoraConfig(rank=2))
    assert_same_bits(model.forward(batch()[0]), before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_switch
def test_the_merged_model_is_the_model_with_its_adapter(device, switches, dtype):
    model = adapted(switches, device, dtype)
    expected, without = model.forward(batch()[0]), build(switches, device, dtype).forward(batch()[0])
    model.merge_adapter()
    assert model.adapter is None
    assert_close(model.forward(batch()[0]), expected, rtol=1e-6 if dtype == "float32" else 1e-13)
    assert np.linalg.norm(to_numpy(expected - without)) > 0.1 * np.linalg.norm(to_numpy(without))


@pytest.mark.parametrize("targets", [TARGETS, SOME], ids=["all", "some"])
def test_generation_is_that_of_the_merged_model(targets):
    model = adapted(dict(max_seq_len=40, n_kv_heads=2), dtype="float32", targets=targets)
    expected = nl.generate(merged(model), [1, 2, 3], 20, temperature=0)
    assert nl.generate(model, [1, 2, 3], 20, temperature=0) == expected
    assert nl.generate(build(dict(max_seq_len=40, n_kv_heads=2), dtype="float32"), [1, 2, 3], 20, temperature=0) != expected


def test_the_seed_makes_the_adapter():
    first, again, other = build({}), build({}), build({})
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        model.add_adapter(nl.LoraConfig(), seed=seed)
    assert_same_bits(first.adapter.params.flat, again.adapter.params.flat)
    assert not np.array_equal(first.adapter.params.flat, other.adapter.params.flat)
    for name, view in first.adapter.params.items():
        a = name.endswith("_lora_a")
        assert np.abs(view).max() <= (view.shape[1] ** -0.5 if a else 0)
        assert view.any() == a


# ------------------------------------------------------------------------------------------------ -100, and memory


@pytest.mark.parametrize("with_adapter", [False, True], ids=["full", "lora"])
@both_families
def test_what_stands_behind_the_last_target_that_counts_changes_no_bit(device, switches, with_adapter):
    """Masked targets contribute exactly nothing: if one did, the tokens there would move the loss or a gradient."""
    model = (adapted if with_adapter else build)(switches, device, "float32")
    tokens, targets = batch()
    targets[:, 4:] = -100
    targets[1] = -100
    loss, grads = model.loss_and_grads(tokens, targets)
    other = tokens.copy()
    other[:, 5:] = np.random.default_rng(9).integers(0, 23, other[:, 5:].shape)
    other[1] = (tokens[1] + 1) % 23
    other_loss, other_grads = model.loss_and_grads(other, targets)
    assert_same_bits(loss, other_loss)
    assert_same_bits(grads.flat + 0.0, other_grads.flat + 0.0)  # -0 is 0
    assert float(loss) > 0


def test_a_step_of_an_adapter_needs_no_memory_for_gradients_or_moments_of_the_model():
    config = nl.ModelConfig(vocab_size=8000, dim=128, n_layers=2, n_heads=4, max_seq_len=32)
    model = nl.Transformer(config)
    model.add_adapter(nl.LoraConfig(rank=4))
    tokens = np.random.default_rng(0).integers(0, 8000, (1, 8))
    tracemalloc.start()
    try:
        optimizer = nl.AdamW(model.trainable)
        optimizer.step(model.loss_and_grads(tokens, tokens)[1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(state.flat.nbytes for state in optimizer.state.values()) == 2 * model.adapter.params.flat.nbytes
    assert peak < 0.2 * model.params.flat.nbytes


# ------------------------------------------------------------------------------------------------ whole matrices


@pytest.mark.parametrize("modules", [ENDS[:1], ENDS[1:], ENDS], ids="+".join)
@every_untied_switch
def test_whole_matrices_have_the_gradients_of_the_full_model(device, switches, modules):
    model = adapted(switches, device, targets=SOME[:2], modules_to_save=modules)
    _, grads = model.loss_and_grads(*batch(), segments=SEGMENTS)
    _, full = merged(model).loss_and_grads(*batch(), segments=SEGMENTS)
    assert {name for name in grads if "_lora_" not in name} == {*modules}
    assert_same_grads(grads, {name: full[name] for name in modules}, rtol=1e-11)


def test_the_gradient_of_a_whole_head_comes_in_chunks_of_rows(monkeypatch):
    model = adapted({}, modules_to_save=ENDS)
    expected = model.loss_and_grads(*batch())[1]
    monkeypatch.setattr(transformer, "CHUNK_LOGITS", 100)                # four rows of 23
    assert_same_grads(model.loss_and_grads(*batch())[1], expected)


@every_untied_switch
def test_whole_matrices_begin_as_the_models_and_are_trained_beside_them(device, switches):
    model, tokens = build(switches, device, "float32"), batch()[0]
    before, logits = to_numpy(model.params.flat).copy(), to_numpy(model.forward(tokens))
    model.add_adapter(nl.LoraConfig(rank=2, modules_to_save=ENDS))
    assert_same_bits(model.forward(tokens), logits)
    nl.AdamW(model.trainable, lr=0.1).step(model.loss_and_grads(*batch())[1])
    assert_same_bits(model.params.flat, before)
    expected = to_numpy(model.forward(tokens))
    assert np.abs(expected - logits).max() > 0.01
    own = {name: to_numpy(model.adapter.params[name]).copy() for name in ENDS}
    model.merge_adapter()
    assert_close(model.forward(tokens), expected, rtol=1e-5)
    for name, view in own.items():
        assert_same_bits(model.params[name], view)


def test_whole_matrices_do_not_change_the_updates_that_a_seed_makes():
    without, model = build({}), build({})
    without.add_adapter(nl.LoraConfig(), seed=1)
    model.add_adapter(nl.LoraConfig(modules_to_save=["head"]), seed=1)
    size = without.adapter.params.flat.size
    assert_same_bits(model.adapter.params.flat[:size], without.adapter.params.flat)


def test_generation_with_whole_matrices_is_that_of_the_merged_model():
    model = adapted(dict(max_seq_len=40), dtype="float32", modules_to_save=ENDS)
    assert nl.generate(model, [1, 2, 3], 20, temperature=0) == nl.generate(merged(model), [1, 2, 3], 20, temperature=0)


@pytest.mark.parametrize("settings", [dict(dtype="bfloat16"), dict(store_as="int8")], ids=str)
def test_whole_matrices_are_not_rounded_with_the_weights_below_them(without_onednn, tmp_path, settings):
    model = adapted({}, dtype="float32", modules_to_save=ENDS)
    nl.Transformer(model.config, params=model.params).save(tmp_path / "base")
    model.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    small = nl.load(tmp_path / "adapter", **settings)
    for name in ENDS:
        assert_same_bits(small.adapter.params[name], model.adapter.params[name])
    below = {name: np.asarray(view, "f4") for name, view in small.params.items()}
    for name, view in model.params.items():
        view[...] = below[name]
    assert_close(small.forward(batch()[0]), model.forward(batch()[0]), rtol=1e-5)


def test_one_matrix_for_embedding_and_head_cannot_be_two():
    message = r"^modules_to_save is \('head',\), but the model's embedding and head are one matrix$"
    with pytest.raises(ValueError, match=message):
        build(dict(tie_embeddings=True)).add_adapter(nl.LoraConfig(modules_to_save=["head"]))


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(rank=0), "rank is 0, but must be a whole number of at least 1"),
        (dict(rank=True), "rank is True, but must be a whole number of at least 1"),
        (dict(alpha=-1.0), "alpha is -1.0, but must be a positive number"),
        (dict(alpha=float("nan")), "alpha is nan, but must be a positive number"),
        (dict(targets=()), r"targets is \(\), but must be some of wq, wk, wv, wo, w_gate, w_up, w_down"),
        (dict(targets=("wq", "head")), r"targets is \('wq', 'head'\), but must be some of"),
    ],
)
def test_an_impossible_configuration_is_named(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        nl.LoraConfig(**values)


def test_a_map_that_the_model_does_not_have_is_named():
    with pytest.raises(ValueError, match=r"^targets holds 'w_gate', but a model with ffn='gelu' has no such matrix$"):
        build(SWITCHES["gelu"]).add_adapter(nl.LoraConfig(targets=("wq", "w_gate")))


def test_one_adapter_at_a_time():
    model = adapted({})
    with pytest.raises(ValueError, match="the model has an adapter already"):
        model.add_adapter(nl.LoraConfig())
    model.merge_adapter()
    with pytest.raises(ValueError, match="the model has no adapter to merge"):
        model.merge_adapter()


def test_a_model_with_an_adapter_is_not_saved_without_it(tmp_path):
    with pytest.raises(ValueError, match=r"the model has an adapter: merge_adapter\(\)"):
        adapted({}).save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ single matrices

SINGLE = dict(targets=("wv", "blocks.0.wq", "blocks.1.w_up"), ranks={"blocks.1.wv": 5}, alphas={"blocks.0.wq": 12.0})


@both_families
def test_every_gradient_of_single_matrices_against_differences(switches):
    model = adapted(switches, **SINGLE)
    names = {name.removesuffix("_lora_a") for name in model.adapter.params if name.endswith("a")}
    assert names == {"blocks.0.wv", "blocks.1.wv", "blocks.0.wq", "blocks.1.w_up"}
    assert model.adapter.params["blocks.1.wv_lora_a"].shape[0] == 5
    check_every_gradient(model, *batch(), segments=SEGMENTS)


def test_single_matrices_act_with_their_own_scale_and_merge(device):
    model = adapted({}, device, **SINGLE)
    assert [model.adapter.config.scale_of(f"blocks.{name}") for name in ("0.wv", "1.wv", "0.wq")] == [1.5, 0.9, 4.0]
    assert_close(merged(model).forward(batch()[0]), model.forward(batch()[0]), rtol=1e-12)


def test_layers_without_an_update_are_those_of_the_model(device):
    model = adapted({}, device, targets=("blocks.0.wq",))
    assert_close(merged(model).forward(batch()[0]), model.forward(batch()[0]), rtol=1e-12)
    _, grads = model.loss_and_grads(*batch())
    assert set(grads) == {"blocks.0.wq_lora_a", "blocks.0.wq_lora_b"}


def test_a_configuration_of_single_matrices_survives_json_and_a_plain_one_is_as_before():
    config = nl.LoraConfig(**SINGLE, modules_to_save=["head"])
    assert nl.LoraConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert nl.LoraConfig().to_dict() == {"rank": 8, "alpha": 16.0, "targets": list(TARGETS)}
    assert nl.LoraConfig(targets=("blocks.0.wq", "wq")).targets == ("wq",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(targets=("blocks.0.norm",)), r"targets is \('blocks.0.norm',\), but must be some of wq, "),
        (dict(targets=("blocks.7.wq",)), "targets holds 'blocks.7.wq', but a model with ffn='swiglu' has no such matrix"),
        (dict(ranks={"blocks.9.wq": 2}), "targets holds 'blocks.9.wq', but a model"),
        (dict(ranks={"blocks.0.wq": 0}), "the rank of blocks.0.wq is 0, but must be a whole number of at least 1"),
        (dict(alphas={"blocks.0.wq": 0}), "the alpha of blocks.0.wq is 0, but must be a positive number"),
        (dict(modules_to_save=["norm"]), r"modules_to_save is \('norm',\), but must be some of embed, head"),
    ],
)
def test_single_matrices_that_are_not_there_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        build({}).add_adapter(nl.LoraConfig(**fields))
