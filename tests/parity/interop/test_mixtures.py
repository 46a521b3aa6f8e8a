"""Mixtures of experts against transformers: Mixtral and Qwen3-MoE."""

import json

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.peer import PARITY, AutoModelForCausalLM, GenerationConfig, torch
from safetensors.numpy import load_file
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import numllama as nl
from numllama.generation.decode import is_plain
from numllama.generation.kv_cache import KVCache
from numllama.interop.huggingface import huggingface_names
from numllama.model import LoraConfig

pytestmark = PARITY

SHAPE = dict(
    vocab_size=97, hidden_size=48, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=None, attn_implementation="eager",
)  # fmt: skip
FAMILIES = {
    "mixtral": (MixtralConfig, MixtralForCausalLM, dict(num_local_experts=4, intermediate_size=40)),
    "mixtral, wide heads": (MixtralConfig, MixtralForCausalLM, dict(num_local_experts=3, intermediate_size=40, head_dim=10)),
    "mixtral, window": (MixtralConfig, MixtralForCausalLM, dict(num_local_experts=4, intermediate_size=40, sliding_window=7)),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, dict(num_experts=6, moe_intermediate_size=20, head_dim=10)),
    "qwen3_moe, normalised": (
        Qwen3MoeConfig, Qwen3MoeForCausalLM,
        dict(num_experts=5, moe_intermediate_size=20, norm_topk_prob=True, tie_word_embeddings=True, num_experts_per_tok=3),
    ),
    "qwen3_moe, biases and a window": (
        Qwen3MoeConfig, Qwen3MoeForCausalLM,
        dict(num_experts=4, moe_intermediate_size=20, attention_bias=True, use_sliding_window=True, sliding_window=6),
    ),
}  # fmt: skip


def theirs(family, noise=0.1, **changes):
    """A random model of transformers; its gains are random too."""
    torch.manual_seed(0)
    config, model, fields = FAMILIES[family]
    model = model(config(**SHAPE | {"num_experts_per_tok": 2} | fields | changes))
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def saved(folder, family, **changes):
    """That model, and the same one as numllama opens it."""
    reference = theirs(family, **changes)
    reference.generation_config.eos_token_id = None
    reference.save_pretrained(folder)
    return reference, nl.load(folder)


def batch(seed=1, B=2, T=24):
    tokens, targets = np.random.default_rng(seed).integers(0, 97, (2, B, T))
    targets[0, 3:8] = -100
    return tokens, targets


def loss_of(reference, tokens, targets):
    """transformers' loss of these targets, which its own shift would move; the load-balancing loss as it adds it."""
    c = reference.config
    out = reference(input_ids=torch.tensor(tokens))
    loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), torch.tensor(targets).flatten())
    return loss + c.router_aux_loss_coef * out.aux_loss if c.output_router_logits else loss


def halves(F):
    return {"gate": slice(F), "up": slice(F, None)}


def split(name, gradient, F):
    """transformers holds gate and up of all experts in one tensor."""
    if name.endswith("experts.gate_up_proj"):
        return {name.replace("gate_up_proj", part): gradient[:, rows] for part, rows in halves(F).items()}
    return {name.replace("down_proj", "down") if "experts" in name else name: gradient}


def renamed(names):
    """Our name of each parameter: theirs in memory."""
    short = {"experts_gate": "mlp.experts.gate", "experts_up": "mlp.experts.up", "experts_down": "mlp.experts.down"}
    for name, other in names.items():
        last = name.rpartition(".")[-1]
        layer = other.split("mlp")[0].split("block_sparse_moe")[0]
        yield name, layer + short[last] if last in short else other.replace("block_sparse_moe", "mlp")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("balanced", [False, True], ids=["", "balanced"])
def test_logits_loss_and_every_gradient_equal_transformers(tmp_path, family, balanced):
    reference, model = saved(tmp_path, family, output_router_logits=balanced, router_aux_loss_coef=0.3)
    assert model.config.router_aux_loss == balanced
    tokens, targets = batch()
    expected = loss_of(reference, tokens, targets)
    expected.backward()
    assert_close(model.forward(tokens), reference(input_ids=torch.tensor(tokens)).logits.detach().numpy(), rtol=1e-5)
    loss, grads = model.loss_and_grads(tokens, targets)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert float(model.loss(tokens, targets)) == pytest.approx(expected.item(), rel=1e-5)
    gradients = {}
    for name, weight in reference.named_parameters():
        gradients |= split(name, weight.grad.numpy(), model.config.ffn_dim)
    names = dict(renamed(huggingface_names(model.config)))
    assert set(names.values()) == set(gradients)
    for name, gradient in grads.items():
        assert_close(gradient, gradients[names[name]], rtol=1e-4)


def test_the_whole_loss_is_that_of_transformers_labels(tmp_path):
    """With transformers' own shift, in its own forward."""
    reference, model = saved(tmp_path, "mixtral", output_router_logits=True, router_aux_loss_coef=0.3)
    tokens, _ = batch()
    out = reference(input_ids=torch.tensor(tokens), labels=torch.tensor(tokens))
    targets = np.concatenate([tokens[:, 1:], np.full((2, 1), -100)], 1)
    assert float(model.loss(tokens, targets)) == pytest.approx(out.loss.item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_ids_are_equal_for_64_tokens(tmp_path, family):
    reference, model = saved(tmp_path, family, noise=0.5)
    prompt = [5, 17, 3, 60]
    config = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    expected = reference.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4, dtype=torch.long), generation_config=config
    )[0, 4:].tolist()  # fmt: skip
    assert not is_plain(model)
    assert nl.generate(model, prompt, 64, temperature=0) == expected
    assert len(set(expected)) > 10


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_logits_are_those_of_the_whole_sequence(tmp_path, family):
    _, model = saved(tmp_path, family)
    tokens, _ = batch()
    cache = KVCache(model, batch_size=2)
    steps = [model.forward(part, kv_cache=cache) for part in np.split(tokens, [10, 11, 12], 1)]
    assert_close(np.concatenate(steps, 1), model.forward(tokens), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_we_save_and_nothing_has_changed(tmp_path, family):
    reference, model = saved(tmp_path / "theirs", family)
    model.save(tmp_path / "ours")
    stored, kept = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert set(stored) == set(kept)
    for name in stored:
        assert_same_bits(kept[name], stored[name])
    opened, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )  # fmt: skip
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(opened) is type(reference)
    for name, weight in reference.state_dict().items():
        assert_same_bits(opened.state_dict()[name].numpy(), weight.numpy())
    mine, own = opened.config.to_dict(), reference.config.to_dict()
    unused = {"_name_or_path", "architectures", "dtype"} | ({"intermediate_size"} if "qwen" in family else set())
    unused |= set() if own.get("head_dim") else {"head_dim"}               # null is dim / heads
    assert {key: mine[key] for key in own if key not in unused} == {key: own[key] for key in own if key not in unused}
    again = nl.load(tmp_path / "ours")
    assert again.config == model.config
    assert_same_bits(again.params.flat, model.params.flat)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_adapter_on_attention_has_the_gradients_that_peft_gives(tmp_path, family):
    """Frozen experts and router, and the load-balancing loss through them."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    reference, model = saved(tmp_path / "base", family, output_router_logits=True, router_aux_loss_coef=0.3)
    torch.manual_seed(1)
    wrapped = get_peft_model(reference, PeftConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj"]))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora" in name:
                weight += 0.1 * torch.randn_like(weight)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = nl.load(tmp_path / "base", adapter=tmp_path / "adapter")
    tokens, targets = batch()
    expected = loss_of(wrapped, tokens, targets)
    expected.backward()
    loss, grads = model.loss_and_grads(tokens, targets)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    named = {name: weight.grad for name, weight in wrapped.named_parameters() if weight.grad is not None}
    names = {"wq": "q_proj", "wv": "v_proj", "wo": "o_proj"}
    assert len(named) == len(grads)
    for name, gradient in grads.items():
        _, i, short = name.split(".")
        target, kind = short.split("_lora_")
        other = f"base_model.model.model.layers.{i}.self_attn.{names[target]}.lora_{kind.upper()}.default.weight"
        assert_close(gradient, named[other].numpy(), rtol=1e-4)
    wrapped.merge_and_unload()
    model.merge_adapter()
    logits = reference(input_ids=torch.tensor(tokens)).logits.detach().numpy()
    assert_close(model.forward(tokens), logits, rtol=1e-5)


def test_an_adapter_of_all_targets_leaves_experts_alone(tmp_path):
    _, model = saved(tmp_path, "qwen3_moe")
    model.add_adapter(LoraConfig(rank=2))
    assert {name.split(".")[-1][:2] for name in model.adapter.params} == {"wq", "wk", "wv", "wo"}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("qwen3_moe", dict(decoder_sparse_step=2), "decoder_sparse_step is 2, but only 1 is supported"),
        ("qwen3_moe", dict(mlp_only_layers=[0]), r"mlp_only_layers is \[0\], but only \[\] is supported"),
        ("mixtral", dict(router_jitter_noise=0.1), "router_jitter_noise is 0.1, but only 0 is supported"),
        ("mixtral", dict(num_experts_per_tok=9), "n_experts is 4 and n_experts_per_token is 9, but the first must be at least"),
    ],
)
def test_what_is_not_computed_is_refused(tmp_path, family, changes, message):
    theirs(family).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(nl.CheckpointError, match=message):
        nl.load(tmp_path)


def test_the_published_fields_of_qwen3_moe(tmp_path):
    """Its config.json says num_experts; transformers 5 writes num_local_experts."""
    theirs("qwen3_moe").save_pretrained(tmp_path)
    expected = nl.load(tmp_path).config
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values["num_experts"] = values.pop("num_local_experts")
    path.write_text(json.dumps(values))
    assert nl.load(tmp_path).config == expected
