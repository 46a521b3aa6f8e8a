"""Adapters and the `peft` library: what one writes the other opens, over the same model, and the logits are the same."""

import warnings

import numpy as np
import pytest
from helpers import assert_close
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


def adapted(folder, targets="all", **changes):
    """A model on disk, and the same with an adapter whose parameters are all random."""
    model = random_model("float64", **changes)
    model.save(folder)
    model.add_adapter(nl.LoraConfig(rank=3, alpha=5.0, targets=TARGETS[targets]), seed=4)
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
