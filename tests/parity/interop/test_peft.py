"""Adapters and the `peft` library: what one writes the other opens, over the same model, and the logits are the same."""

import warnings

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import LLAMAS, random_model, tokens
from interop.peer import PARITY, AutoModelForCausalLM, torch

import numllama as nl
from numllama.interop.peft import peft_names

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
pytestmark = [*PARITY, pytest.mark.filterwarnings("ignore::UserWarning")]

TOLERANCE = 1e-6  # transformers computes RoPE's table and its norms in float32, whatever the model's dtype

TARGETS = {"all": nl.LoraConfig().targets, "queries_and_values": ("wq", "wv"), "ffn": ("w_gate", "w_down")}
MODULES = {"all": "all-linear", "queries_and_values": ["q_proj", "v_proj"], "ffn": r".*\.mlp\.(gate|down)_proj"}


def adapted(folder, targets="all", modules=(), **changes):
    """A model on disk, and the same with an adapter whose parameters are all random."""
    model = random_model("float64", **changes)
    model.save(folder)
    model.add_adapter(nl.LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets], modules_to_save=modules), seed=4)
    flat = model.adapter.params.flat
    flat[:] = np.random.default_rng(5).standard_normal(flat.shape) * 0.3
    return model


def theirs(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens())).logits.numpy()


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["grouped", "interleaved", "interleaved_biases", "tied", "wide_heads"])
def test_an_adapter_of_ours_opens_in_peft(tmp_path, name, targets):
    model = adapted(tmp_path / "base", targets, **LLAMAS[name])
    without = logits(theirs(tmp_path / "base"))
    model.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    opened = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter")
    assert_close(model.forward(tokens()), logits(opened), rtol=TOLERANCE)
    assert np.abs(logits(opened) - without).max() > 1e-2
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float64).merge_and_unload()
    model.merge_adapter()
    assert_close(model.forward(tokens()), logits(merged), rtol=TOLERANCE)


@pytest.mark.parametrize("rslora", [False, True], ids=["plain", "rank_stabilised"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", ["grouped", "interleaved"])
def test_an_adapter_of_pefts_opens_here(tmp_path, name, targets, rslora):
    random_model("float64", **LLAMAS[name]).save(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=MODULES[targets], use_rslora=rslora, init_lora_weights=False, task_type="CAUSAL_LM",
        lora_dropout=0.3,
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(theirs(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    opened = nl.load(tmp_path / "adapter", dtype="float64")
    assert_close(opened.forward(tokens()), logits(model), rtol=TOLERANCE)
    again = nl.load(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    assert again.adapter.config == opened.adapter.config
    assert set(opened.adapter.config.targets) == set(TARGETS[targets])


@pytest.mark.parametrize("targets", ["all", "queries_and_values"])
def test_the_adapters_gradients_are_those_of_autograd(tmp_path, targets):
    model = adapted(tmp_path / "base", targets)
    model.save_adapter(tmp_path / "adapter")
    opened = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "adapter", is_trainable=True)
    answers = np.where(np.random.default_rng(0).random((2, 10)) < 0.5, np.roll(tokens(), -1, 1), -100)
    loss, grads = model.loss_and_grads(tokens(), answers)
    out = opened(torch.tensor(tokens())).logits
    expected = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(answers).flatten())
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=TOLERANCE)
    theirs_by_name = {name.replace(".default", ""): p.grad for name, p in opened.named_parameters() if p.grad is not None}
    names = peft_names(model.config, grads.shapes)
    assert set(names.values()) == set(theirs_by_name)
    for name, gradient in grads.items():
        assert_close(gradient, theirs_by_name[names[name]].numpy(), rtol=10 * TOLERANCE)


# ------------------------------------------------------------------------------------------------ single matrices

SINGLE = {
    "one layer": dict(target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    "a layer as a number": dict(target_modules=["v_proj"], layers_to_transform=0, layers_pattern="layers"),
    "full names": dict(target_modules=["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "o_proj"]),
    "a full name and a layer": dict(
        target_modules=["k_proj", "model.layers.0.self_attn.q_proj"], layers_to_transform=[1], layers_pattern=["layers"],
    ),
    "ends of names": dict(target_modules=["self_attn.q_proj", "mlp.gate_proj"]),
    "an expression": dict(target_modules=r".*\.(0\.self_attn\.[qkv]|1\.mlp\.(up|down))_proj"),
    "all but some": dict(target_modules="all-linear", exclude_modules=["v_proj", "model.layers.0.mlp.up_proj"]),
    "excluded by an expression": dict(target_modules=["q_proj", "k_proj"], exclude_modules=r".*\.0\.self_attn\.k_proj"),
    "ranks": dict(target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2, "model.layers.1.self_attn.v_proj": 5}),
    "ranks by an expression": dict(target_modules="all-linear", rank_pattern={r".*\.(up|down)_proj": 2, r"layers\.0\..*": 3}),
    "alphas": dict(target_modules=["q_proj", "v_proj"], alpha_pattern={"layers.0.self_attn.q_proj": 1.5, "v_proj": 9}),
    "both": dict(target_modules=["q_proj", "o_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"^model.layers.1.*": 3}),
    "rank-stabilised ranks": dict(
        target_modules=["q_proj", "o_proj"], rank_pattern={"q_proj": 2}, alpha_pattern={"o_proj": 3}, use_rslora=True,
    ),
    "a head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "both ends": dict(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], layers_to_transform=[1]),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["grouped", "interleaved"])
@pytest.mark.parametrize("name", SINGLE)
def test_adapters_of_single_matrices_go_both_ways(tmp_path, name, layout):
    random_model("float64", **LLAMAS[layout]).save(tmp_path / "base")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM"} | SINGLE[name])
    torch.manual_seed(0)
    model = peft.get_peft_model(theirs(tmp_path / "base"), config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "modules_to_save" in key:
                weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(tmp_path / "adapter")
    opened = nl.load(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    assert_close(opened.forward(tokens()), logits(model), rtol=TOLERANCE)
    opened.save_adapter(tmp_path / "ours", base=tmp_path / "base")
    again = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "ours")
    assert_close(logits(again), logits(model), rtol=TOLERANCE)
    third = nl.load(tmp_path / "ours", dtype="float64")
    assert third.adapter.config == opened.adapter.config
    assert_same_bits(third.adapter.params.flat, opened.adapter.params.flat)
    assert_same_bits(third.params.flat, opened.params.flat)
    opened.merge_adapter()
    assert_close(opened.forward(tokens()), logits(model), rtol=TOLERANCE)


def test_gradients_of_single_matrices_are_those_of_autograd(tmp_path):
    random_model("float64").save(tmp_path / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "model.layers.0.mlp.up_proj"], layers_to_transform=[1],
        rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3.0}, init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(theirs(tmp_path / "base"), config)
    model.save_pretrained(tmp_path / "adapter")
    opened = nl.load(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    answers = np.roll(tokens(), -1, 1)
    loss, grads = opened.loss_and_grads(tokens(), answers)
    out = model(torch.tensor(tokens())).logits
    expected = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(answers).flatten())
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=TOLERANCE)
    theirs_by_name = {name.replace(".default", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
    names = peft_names(opened.config, grads.shapes)
    assert set(names.values()) == set(theirs_by_name)
    for name, gradient in grads.items():
        assert_close(gradient, theirs_by_name[names[name]].numpy(), rtol=10 * TOLERANCE)


@pytest.mark.parametrize("modules", [("head",), ("embed", "head")], ids="+".join)
def test_three_steps_with_whole_matrices_are_those_of_peft_and_torch(tmp_path, modules):
    """Each step's loss, all gradients, and AdamW; then either opens what the other has trained."""
    model = adapted(tmp_path / "base", "queries_and_values", modules)
    below = model.params.flat.copy()
    model.save_adapter(tmp_path / "start")
    opened = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "start", is_trainable=True)
    by_name = {name.replace(".default", "").replace(".modules_to_save", ""): p for name, p in opened.named_parameters()}
    names, before = peft_names(model.config, model.adapter.params.shapes), logits(opened)
    trained = {name: by_name[names[name]] for name in names}
    assert {id(p) for p in opened.parameters() if p.requires_grad} == {id(p) for p in trained.values()}

    settings = dict(lr=0.01, weight_decay=0.1)
    ours, other = nl.AdamW(model.trainable, **settings), torch.optim.AdamW([*trained.values()], betas=(0.9, 0.95), **settings)
    rng = np.random.default_rng(1)
    for _ in range(3):
        ids = rng.integers(0, model.config.vocab_size, (2, 11))
        loss, grads = model.loss_and_grads(ids[:, :-1], ids[:, 1:])
        out = opened(torch.tensor(ids[:, :-1])).logits
        expected = torch.nn.functional.cross_entropy(out.flatten(0, 1), torch.tensor(ids[:, 1:]).flatten())
        other.zero_grad()
        expected.backward()
        assert float(loss) == pytest.approx(expected.item(), rel=TOLERANCE)
        for name, gradient in grads.items():
            assert_close(gradient, trained[name].grad.numpy(), rtol=10 * TOLERANCE)
        ours.step(grads)
        other.step()
    for name in names:
        assert_close(model.adapter.params[name], trained[name].detach().numpy(), rtol=10 * TOLERANCE)

    assert np.abs(logits(opened) - before).max() > 1e-2
    model.save_adapter(tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(theirs(tmp_path / "base"), tmp_path / "ours")
    assert_close(model.forward(tokens()), logits(again), rtol=TOLERANCE)
    opened.save_pretrained(tmp_path / "theirs")
    third = nl.load(tmp_path / "base", dtype="float64", adapter=tmp_path / "theirs")
    assert_close(third.forward(tokens()), logits(opened), rtol=TOLERANCE)
    assert_same_bits(model.params.flat, below)


STACKED = {
    "all": dict(target_modules="all-linear"),
    "queries_keys_and_values": dict(target_modules=["qkv_proj"], rank_pattern={"layers.1.self_attn.qkv_proj": 5}),
    "one_layer": dict(target_modules=r".*\.1\.mlp\.(gate_up|down)_proj", alpha_pattern={"down_proj": 9}),
    "a_head": dict(target_modules=["o_proj"], modules_to_save=["lm_head"], use_rslora=True),
}


@pytest.mark.parametrize("name", STACKED)
def test_one_update_of_stacked_matrices_is_one_for_each(tmp_path, name):
    random_model("float64", family="phi3", rotary_dim=4).save(tmp_path / "base")
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(theirs(tmp_path / "base"), peft.LoraConfig(r=3, lora_alpha=5, **STACKED[name]))
    with torch.no_grad():
        for key, weight in wrapped.named_parameters():
            weight += 0.3 * torch.randn_like(weight) * ("lora" in key or "modules_to_save" in key)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = nl.load(tmp_path / "base", adapter=tmp_path / "adapter", dtype="float64")
    assert_close(model.forward(tokens()), logits(wrapped), rtol=TOLERANCE)
    model.save_adapter(tmp_path / "ours", base=tmp_path / "base")
    assert_same_bits(nl.load(tmp_path / "ours", dtype="float64").forward(tokens()), model.forward(tokens()))


def test_dora_is_refused_by_name(tmp_path):
    random_model().save(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True)
    peft.get_peft_model(theirs(tmp_path / "base"), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(nl.CheckpointError, match="use_dora is true, but only false is supported"):
        nl.load(tmp_path / "base", adapter=tmp_path / "adapter")
