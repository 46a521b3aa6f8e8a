"""RoPE scaling against transformers: tables, logits, gradients, and greedy ids past the original length."""

import math

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.peer import PARITY, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import numllama as nl
from numllama import ops
from numllama.generation.decode import is_plain
from numllama.generation.kv_cache import KVCache
from numllama.interop.huggingface import huggingface_names
from numllama.model import LoraConfig
from numllama.ops.rope_scaling import depends_on_length

pytestmark = PARITY

SHORT, LONG = [1.0, 1.1, 1.5], [1.0, 2.5, 7.0]  # heads of 6: three pairs
ROPES = {
    "linear": dict(rope_type="linear", factor=4.0),
    "dynamic": dict(rope_type="dynamic", factor=4.0),
    "llama3": dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32,
    ),
    "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    "yarn_mscale": dict(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.3, beta_fast=8.0,
        beta_slow=2.0, truncate=False,
    ),
    "yarn_mscale_0": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=0.0),
    "yarn_attention": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, attention_factor=1.3),
    "longrope": dict(
        rope_type="longrope", short_factor=SHORT, long_factor=LONG, factor=4.0, original_max_position_embeddings=32,
    ),
    "longrope_unsaid": dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=32),
    "longrope_attention": dict(
        rope_type="longrope", short_factor=SHORT, long_factor=LONG, factor=4.0, original_max_position_embeddings=32,
        attention_factor=0.9,
    ),
}  # fmt: skip
FIXED = [name for name, rope in ROPES.items() if rope["rope_type"] not in ("dynamic", "longrope")]


def theirs(rope, noise=0.1, **changes):
    """A random model of transformers with an original length of 32."""
    torch.manual_seed(0)
    most = 32 if rope == "dynamic" else 128
    shape = dict(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2,
        max_position_embeddings=most, bos_token_id=None, eos_token_id=None, attn_implementation="eager",
    )  # fmt: skip
    rope = dict(rope_theta=500.0, **ROPES[rope])
    model = LlamaForCausalLM(LlamaConfig(**{**shape, **changes}, rope_parameters=rope))
    with torch.no_grad():
        for weight in model.parameters():
            weight += noise * torch.randn_like(weight)
    return model


def greedy(model, prompt, n=64):
    """Without a cache for longrope, whose keys their Llama, unlike their Phi 3, does not compute again."""
    cached = model.config.rope_parameters["rope_type"] != "longrope"
    config = GenerationConfig(do_sample=False, max_new_tokens=n, eos_token_id=None, pad_token_id=0, use_cache=cached)
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("T", [20, 33, 64])
def test_the_table_is_that_of_transformers(tmp_path, rope, T):
    reference = theirs(rope)
    frequencies, factor = ROPE_INIT_FUNCTIONS[ROPES[rope]["rope_type"]](reference.config, seq_len=T)
    reference.save_pretrained(tmp_path)
    c = nl.load(tmp_path).config
    angles = np.arange(T)[:, None] * frequencies.double().numpy()
    cos, sin = ops.rope_table(np.arange(T), c.head_dim, c.rope_theta, c.rope_scaling, "float64")
    assert_close(cos, factor * np.cos(angles), rtol=1e-5)
    assert_close(sin, factor * np.sin(angles), rtol=1e-5)


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("T", [20, 64])
def test_logits_loss_and_every_gradient_equal_transformers(tmp_path, rope, T):
    reference = theirs(rope)
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    assert model.config.max_seq_len == 128
    tokens, targets = np.random.default_rng(1).integers(0, 97, (2, 2, T))
    logits = reference(input_ids=torch.tensor(tokens)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    expected.backward()
    assert_close(model.forward(tokens), logits.detach().numpy(), rtol=1e-5)
    loss, grads = model.loss_and_grads(tokens, targets)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: weight.grad.numpy() for name, weight in reference.named_parameters()}
    names = huggingface_names(model.config)
    for name, gradient in grads.items():
        assert_close(gradient, gradients[names[name]], rtol=1e-4)


@pytest.mark.parametrize("plain", [True, False], ids=["decoder", "forward"])
@pytest.mark.parametrize("rope", ROPES)
def test_greedy_ids_are_equal_for_64_tokens_past_the_original_length(tmp_path, rope, plain):
    reference = theirs(rope, noise=0.5)
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    if not plain:
        model.add_adapter(LoraConfig(rank=1))                                # changes nothing yet, and decodes by forward
    assert is_plain(model) == plain
    for length in (4, 40):                                                  # crosses the original 32, or begins beyond them
        prompt = np.random.default_rng(length).integers(0, 97, length).tolist()
        expected = greedy(theirs(rope, noise=0.5), prompt)                  # theirs remembers the longest text so far
        assert nl.generate(model, prompt, 64, temperature=0) == expected
        assert len(set(expected)) > 10


@pytest.mark.parametrize("rope", FIXED)
def test_cached_logits_are_those_of_the_whole_sequence(tmp_path, rope):
    theirs(rope).save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 97, (2, 60))
    cache = KVCache(model, batch_size=2)
    steps = [model.forward(part, kv_cache=cache) for part in np.split(tokens, [25, 30, 31, 32, 33], 1)]
    assert_close(np.concatenate(steps, 1), model.forward(tokens), rtol=1e-5)


@pytest.mark.parametrize("rope", [name for name in ROPES if name not in FIXED])
def test_a_table_that_depends_on_the_length_is_that_of_each_call_as_in_transformers(tmp_path, rope):
    """Up to the original length cached logits are those of the whole sequence; beyond it earlier keys keep their angles."""
    reference = theirs(rope)
    reference.save_pretrained(tmp_path)
    model = nl.load(tmp_path)
    assert depends_on_length(model.config.rope_scaling)
    tokens = np.random.default_rng(0).integers(0, 97, (1, 48))
    cache, past, steps, expected = KVCache(model), None, [], []
    for part in np.split(tokens, [20, 31, 32, 33, 40], 1):
        steps.append(model.forward(part, kv_cache=cache))
        with torch.no_grad():
            out = reference(input_ids=torch.tensor(part), past_key_values=past, use_cache=True)
        past = out.past_key_values
        expected.append(out.logits.numpy())
    cached, whole = np.concatenate(steps, 1), model.forward(tokens)
    assert_close(cached, np.concatenate(expected, 1), rtol=1e-5)
    assert_close(cached[:, :32], model.forward(tokens[:, :32]), rtol=1e-5)
    assert np.abs(cached[:, 33:] - whole[:, 33:]).max() > 1e-3


@pytest.mark.parametrize("rope", ROPES)
def test_what_we_save_opens_there_and_nothing_has_changed(tmp_path, rope):
    reference = theirs(rope)
    reference.save_pretrained(tmp_path / "theirs")
    model = nl.load(tmp_path / "theirs")
    model.save(tmp_path / "ours")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    said, kept = reference.config.rope_parameters, opened.config.rope_parameters
    assert {key: kept[key] for key in said} == said
    assert math.isclose(kept.get("factor", 4.0), ROPES[rope].get("factor", 4.0))
    assert opened.config.max_position_embeddings == reference.config.max_position_embeddings
    tokens = torch.tensor(np.random.default_rng(2).integers(0, 97, (1, 50)))
    with torch.no_grad():
        assert torch.equal(opened(tokens).logits, reference.eval()(tokens).logits)
    opened.save_pretrained(tmp_path / "back")
    again = nl.load(tmp_path / "back")
    assert again.config == model.config
    assert_same_bits(again.params.flat, model.params.flat)


def test_older_spellings_and_the_original_length_beside_the_scaling(tmp_path):
    """As Phi-3 writes it: `type`, and original_max_position_embeddings among the other fields."""
    from numllama.interop.huggingface import config_from_huggingface

    scaling = dict(type="longrope", short_factor=SHORT, long_factor=LONG)
    values = dict(
        model_type="llama", vocab_size=97, hidden_size=48, num_hidden_layers=1, num_attention_heads=8, intermediate_size=80,
        max_position_embeddings=128, original_max_position_embeddings=32, rope_theta=500.0, rope_scaling=scaling,
    )  # fmt: skip
    expected = dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, factor=4.0, original_max_position_embeddings=32)
    assert config_from_huggingface(values).rope_scaling == expected
