"""Families beside Llama against transformers: tiny random models that it writes, and what we write of them."""

import json

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.peer import PARITY, AutoModelForCausalLM, GenerationConfig, torch, transformers

import numllama as nl
from numllama.generation.kv_cache import KVCache
from numllama.interop.families import FAMILIES
from numllama.interop.huggingface import huggingface_names, stacked

pytestmark = PARITY

SIZES = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager",
)  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
TIED = dict(tie_word_embeddings=True)
CASES = {  # a model_type of FAMILIES, a hyphen, and a word for its configuration
    "llama-attention_bias": dict(attention_bias=True),
    "llama-mlp_bias": dict(mlp_bias=True, num_key_value_heads=1),
    "mistral-window": dict(sliding_window=7),
    "mistral-no_window": dict(sliding_window=None, **TIED),
    "mistral-wide_heads": dict(sliding_window=200, head_dim=10, num_attention_heads=5, num_key_value_heads=1),
    "qwen2-plain": {},
    "qwen2-tied": dict(num_key_value_heads=6, **TIED),
    "qwen2-windows": dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen2-yarn": dict(rope_parameters=dict(rope_type="yarn", rope_theta=500.0, factor=4.0, original_max_position_embeddings=64)),
    "qwen3-plain": dict(head_dim=16),
    "qwen3-biases": dict(head_dim=10, attention_bias=True, **TIED),
    "qwen3-windows": dict(head_dim=8, use_sliding_window=True, sliding_window=6, layer_types=[FULL, SLIDING, FULL]),
    "smollm3-plain": dict(no_rope_layer_interval=2),
    "smollm3-windows": dict(no_rope_layers=[0, 1, 1], use_sliding_window=True, sliding_window=6, tie_word_embeddings=False),
    "smollm3-biases": dict(no_rope_layers=[1, 1, 1], attention_bias=True, mlp_bias=True),
    "phi3-plain": {},
    "phi3-window": dict(sliding_window=9, num_key_value_heads=6),
    "phi3-partial": dict(rope_parameters=dict(rope_type="default", rope_theta=5000.0, partial_rotary_factor=0.5)),
    "phi3-longrope": dict(
        original_max_position_embeddings=128, rope_parameters=dict(
            rope_type="longrope", rope_theta=500.0, partial_rotary_factor=0.75, original_max_position_embeddings=128,
            short_factor=[1.0, 1.2, 1.7], long_factor=[1.0, 2.5, 7.0],
        ),
    ),
    "olmo2-plain": {},
    "gemma-plain": dict(head_dim=10),
    "gemma-biases": dict(head_dim=8, attention_bias=True, num_key_value_heads=1, tie_word_embeddings=False),
    "gemma2-tied": dict(head_dim=10, sliding_window=6, query_pre_attn_scalar=12, **TIED),
    "gemma2-caps": dict(
        head_dim=8, sliding_window=9, query_pre_attn_scalar=8, attn_logit_softcapping=1.5, final_logit_softcapping=2.0,
        layer_types=[FULL, SLIDING, FULL], tie_word_embeddings=False,
    ),
    "gemma2-no_caps": dict(
        head_dim=8, attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True, tie_word_embeddings=False,
    ),
    "gemma3_text-tied": dict(head_dim=10, sliding_window=6, query_pre_attn_scalar=12, layer_types=[SLIDING, FULL, SLIDING]),
    "gemma3_text-scaled": dict(
        head_dim=16, sliding_window=9, query_pre_attn_scalar=16, sliding_window_pattern=3, tie_word_embeddings=False,
        final_logit_softcapping=5.0,
        rope_parameters={
            FULL: dict(rope_type="linear", factor=4.0, rope_theta=5000.0), SLIDING: dict(rope_type="default", rope_theta=300.0)
        },
    ),
    "olmo2-biases": dict(attention_bias=True, num_key_value_heads=1, **TIED),
}  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def theirs(name, noise=0.3, **changes):
    """A random model of transformers; its gains and biases are random too."""
    torch.manual_seed(0)
    architecture = getattr(transformers, FAMILIES[name.partition("-")[0]].architecture)
    model = architecture(architecture.config_class(**SIZES | CASES[name] | changes))
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model.eval()


def logits_of(model, tokens):
    return model(input_ids=torch.tensor(tokens)).logits


def loss_of(model, tokens, targets):
    return torch.nn.functional.cross_entropy(logits_of(model, tokens).flatten(0, 1), torch.tensor(targets).flatten())


def batch(T=24):
    tokens, targets = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 2, T))
    targets[0, 3:8] = -100
    return tokens, targets


def assert_same_gradients(actual, reference, config):
    """Each relative to its own norm; those that theory says vanish, to the largest norm of all."""
    theirs = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    tensors = stacked(huggingface_names(config))
    assert set(tensors) == set(theirs)
    largest = max(map(np.linalg.norm, theirs.values()))
    for name, parts in tensors.items():
        error = np.linalg.norm(np.concatenate([actual[part] for part in parts]) - theirs[name])
        assert error <= 1e-4 * max(np.linalg.norm(theirs[name]), 1e-6 * largest), name


@every_case
def test_logits_loss_and_every_gradient_equal_transformers(tmp_path, name):
    reference, (tokens, targets) = theirs(name), batch()
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    assert_close(model.forward(tokens), logits_of(reference, tokens).detach().numpy(), rtol=1e-5)
    assert float(model.loss(tokens, targets)) == pytest.approx(loss_of(reference, tokens, targets).item(), rel=1e-5)
    reference, wide = reference.double(), nl.load(tmp_path, dtype="float64")
    expected = loss_of(reference, tokens, targets)
    expected.backward()
    loss, grads = wide.loss_and_grads(tokens, targets)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(grads, reference, model.config)
    assert_same_gradients(wide.loss_and_grads(tokens, targets, recompute=True)[1], reference, model.config)
    assert_same_gradients(model.loss_and_grads(tokens, targets)[1], reference, model.config)


@every_case
def test_64_greedy_ids_are_equal_and_cached_logits_are_those_of_the_whole_text(tmp_path, name):
    reference = theirs(name, noise=0.5)
    reference.generation_config.eos_token_id = None
    reference.save_pretrained(tmp_path)
    model, prompt = nl.load(tmp_path), [5, 17, 3, 60]
    config = GenerationConfig(do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0)
    asked = dict(attention_mask=torch.ones(1, 4, dtype=torch.long), generation_config=config)
    expected = reference.generate(torch.tensor([prompt]), **asked)[0].tolist()
    assert nl.generate(model, prompt, 64, temperature=0) == expected[4:]
    assert len(set(expected)) > 8 or name.endswith("-tied")  # a large embedding that is the head too says each token again
    text, cache = np.array([expected]), KVCache(model)
    parts = [model.forward(text[:, part], kv_cache=cache) for part in (slice(0, 20), slice(20, 21), slice(21, 68))]
    assert_close(np.concatenate(parts, axis=1), model.forward(text), rtol=1e-5)
    longer = nl.generate_batch(model, [prompt, expected[:30]], 8, temperature=0)  # padded on the left
    assert longer == [nl.generate(model, text, 8, temperature=0) for text in (prompt, expected[:30])]


@pytest.mark.parametrize("length", [4, 31, 32, 33, 40])
def test_phi_3_goes_from_one_list_of_longrope_to_the_other_where_transformers_does(tmp_path, length):
    long = CASES["phi3-longrope"]
    changes = dict(original_max_position_embeddings=32)
    reference = theirs("phi3-longrope", noise=0.5, **changes, rope_parameters=long["rope_parameters"] | changes)
    reference.generation_config.eos_token_id = None
    reference.save_pretrained(tmp_path)
    prompt = np.random.default_rng(length).integers(0, 97, length).tolist()
    config = GenerationConfig(do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0)
    asked = dict(attention_mask=torch.ones(1, length, dtype=torch.long), generation_config=config)
    expected = reference.generate(torch.tensor([prompt]), **asked)[0, length:].tolist()
    assert nl.generate(nl.load(tmp_path), prompt, 40, temperature=0) == expected
    assert len(set(expected)) > 8


@every_case
def test_transformers_opens_what_we_save_and_nothing_has_changed(tmp_path, name):
    """theirs -> ours -> theirs: the same family, weights and logits."""
    reference, (tokens, _) = theirs(name), batch()
    reference.save_pretrained(tmp_path / "theirs")
    model = nl.load(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["model_type"] == reference.config.model_type
    opened, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(opened) is type(reference)
    for key, weight in reference.state_dict().items():
        assert_same_bits(opened.state_dict()[key].numpy(), weight.numpy())
    assert torch.equal(logits_of(opened, tokens), logits_of(reference, tokens))
    again = nl.load(tmp_path / "ours")
    assert again.config == model.config
    assert_same_bits(again.params.flat, model.params.flat)


@every_case
def test_an_adapters_gradients_are_those_of_transformers_merged_model_by_the_chain_rule(tmp_path, name):
    """W + c·b·a: the gradient of b is c·dW·aᵀ, and that of a is c·bᵀ·dW."""
    theirs(name).save_pretrained(tmp_path)
    model, (tokens, targets) = nl.load(tmp_path, dtype="float64"), batch()
    model.add_adapter(nl.LoraConfig(rank=2, alpha=3.0))
    adapter = {key: view.copy() for key, view in model.adapter.params.items()}
    for i, (key, view) in enumerate(model.adapter.params.items()):
        adapter[key] = view[...] = np.random.default_rng(i).standard_normal(view.shape) * 0.3
    _, grads = model.loss_and_grads(tokens, targets)
    model.merge_adapter()
    model.save(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float64, attn_implementation="eager")
    loss_of(merged, tokens, targets).backward()
    dw = {}
    for key, parts in stacked(huggingface_names(model.config)).items():
        gradient = merged.get_parameter(key).grad.numpy()
        stops = np.cumsum([len(model.params[part]) for part in parts])[:-1]
        dw |= zip(parts, np.split(gradient, stops), strict=True)
    for key in grads:
        target = key.removesuffix("_lora_a").removesuffix("_lora_b")
        a, b = adapter[f"{target}_lora_a"], adapter[f"{target}_lora_b"]
        expected = b.T @ dw[target] if key.endswith("_a") else dw[target] @ a.T
        assert_close(grads[key], 1.5 * expected, rtol=1e-4)  # transformers computes RoPE and softmax in float32


@every_case
def test_an_adapter_is_saved_and_read_again(tmp_path, name):
    theirs(name).save_pretrained(tmp_path)
    model, again, (tokens, _) = nl.load(tmp_path), nl.load(tmp_path), batch()
    model.add_adapter(nl.LoraConfig(rank=2))
    model.adapter.params.flat[:] = np.random.default_rng(0).standard_normal(model.adapter.params.flat.shape) * 0.3
    model.save_adapter(tmp_path / "adapter", base=tmp_path)
    again = nl.load(tmp_path / "adapter")
    assert_same_bits(again.forward(tokens), model.forward(tokens))


def test_every_family_is_here():
    """Mixtures are in test_mixtures.py, because transformers stacks their experts' matrices."""
    dense = {name for name, family in FAMILIES.items() if family.fields.get("ffn") != "moe"}
    assert {name.partition("-")[0] for name in CASES} == dense
