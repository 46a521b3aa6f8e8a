"""Families in Hugging Face's layout: how each is written and read, and what is refused by name."""

import contextlib
import json
import tracemalloc

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from interop.checkpoints import SHAPE, edit_json, edit_tensors, random_model, tokens
from safetensors.numpy import load_file

import numllama as nl
from numllama.interop.families import FAMILIES, FIELDS, HONOURED, config_from_huggingface, family_of
from numllama.interop.huggingface import to_halves
from numllama.interop.inspect import inspect

GEMMA = dict(norm="rmsnorm1p", ffn="geglu", embed_scale=24**0.5)
GEMMA_2 = dict(**GEMMA, norm_placement="both", attn_scale=12**-0.5)
GEMMA_3 = dict(**GEMMA_2, qk_norm="rms")
LINEAR = dict(rope_type="linear", factor=4.0)
LONG = dict(
    rope_type="longrope", factor=4.0, original_max_position_embeddings=8, short_factor=[1.0, 1.5], long_factor=[2.0, 3.0]
)  # fmt: skip
SU = dict(type="su", short_factor=[1.0, 1.5], long_factor=[2.0, 3.0], original_max_position_embeddings=8)  # as first published
EXPERTS = dict(ffn="moe", n_experts=3, n_experts_per_token=2)
MODELS = {  # a model_type, and a word if it has several rows
    "llama": {},
    "mistral": dict(sliding_window=3),
    "mistral wide": dict(dim=18, head_dim=4),
    "mistral plain": dict(family="mistral"),
    "qwen2": dict(bias="qkv"),
    "qwen2 windows": dict(bias="qkv", sliding_window=3, window_layers=(1,)),
    "qwen3": dict(qk_norm="rms"),
    "qwen3 biases": dict(qk_norm="rms", bias="attention", tie_embeddings=True, sliding_window=4),
    "smollm3": dict(rope_layers=(1,)),
    "smollm3 windows": dict(rope_layers=(0,), sliding_window=3, window_layers=(1,), bias=True),
    "phi3": dict(rotary_dim=4),
    "phi3 long": dict(rotary_dim=4, rope_scaling=LONG),
    "phi3 plain": dict(family="phi3", sliding_window=5),
    "olmo2": dict(norm_placement="after", qk_norm="rms_width"),
    "olmo2 biases": dict(norm_placement="after", qk_norm="rms_width", bias="attention"),
    "gemma": GEMMA,
    "gemma biases": dict(**GEMMA, bias="attention", tie_embeddings=True, head_dim=10),
    "gemma2": dict(**GEMMA_2, attn_softcap=50.0, logit_softcap=30.0, sliding_window=5, window_layers=(0,)),
    "gemma2 caps": dict(**GEMMA_2, attn_softcap=2.0),
    "gemma2 windows": dict(**GEMMA_2, sliding_window=4, bias="attention"),
    "gemma3_text": GEMMA_3,
    "gemma3_text cap": dict(**GEMMA_3, logit_softcap=30.0),
    "gemma3_text local": dict(**GEMMA_3, sliding_window=3, window_layers=(0,), local_rope_theta=9.0, rope_scaling=LINEAR),
    "mixtral": EXPERTS,
    "mixtral many": EXPERTS | dict(n_experts=12),
    "mixtral window": dict(**EXPERTS, sliding_window=3, router_aux_loss=True, router_aux_loss_coef=0.5),
    "qwen3_moe": dict(**EXPERTS, qk_norm="rms", router_normalised=False),
    "qwen3_moe biases": dict(**EXPERTS, qk_norm="rms", bias="attention", sliding_window=4, tie_embeddings=True),
}
every_model = pytest.mark.parametrize("name", MODELS)


def kind_of(name):
    return name.partition(" ")[0]


def test_every_family_is_here():
    assert {kind_of(name) for name in MODELS} == set(FAMILIES)


@every_model
def test_a_model_survives_a_save_bit_for_bit_as_its_family(tmp_path, name):
    model = random_model(**MODELS[name])
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == kind_of(name) == family_of(model.config)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [FAMILIES[kind_of(name)].architecture]
    again = nl.load(tmp_path)
    assert again.config == model.config
    assert_same_bits(again.params.flat, model.params.flat)


@every_model
def test_every_parameter_is_a_part_of_the_model(name):
    model = random_model(**MODELS[name])
    counts = inspect(model)["parameters"]
    assert counts.pop("total") == sum(counts.values()) == model.params.flat.size
    norms = {"before": 2, "after": 2, "both": 4}[model.config.norm_placement]
    assert counts["norms"] == (model.config.n_layers * norms + 1) * model.config.dim


@every_model
def test_interleaved_weights_are_permuted_on_the_way(tmp_path, name):
    model = random_model(**MODELS[name], rope_layout="interleaved")
    model.save(tmp_path)
    again = nl.load(tmp_path)
    assert again.config.rope_layout == ("interleaved" if model.config.rotary_dim else "half")  # the first: as our own
    assert_close(again.forward(tokens()), model.forward(tokens()), rtol=1e-5)


def test_phi_3_stacks_matrices(tmp_path):
    model = random_model(**MODELS["phi3"], family="phi3")
    model.save(tmp_path)
    stored, p = load_file(tmp_path / "model.safetensors"), model.params
    qkv, gate_up = (stored[f"model.layers.1.{part}.weight"] for part in ("self_attn.qkv_proj", "mlp.gate_up_proj"))
    assert_same_bits(qkv, np.concatenate([p["blocks.1.wq"], p["blocks.1.wk"], p["blocks.1.wv"]]))
    assert_same_bits(gate_up, np.concatenate([p["blocks.1.w_gate"], p["blocks.1.w_up"]]))
    assert len(stored) == 3 + 2 * 6
    edit_tensors(tmp_path, lambda t: t.update({"model.layers.1.mlp.gate_up_proj.weight": gate_up[1:]}))
    with pytest.raises(nl.CheckpointError, match=r"gate_up_proj\.weight has shape \(39, 24\), but \(40, 24\) is needed$"):
        nl.load(tmp_path)


def test_the_gains_of_queries_and_keys_are_permuted_with_their_rows(tmp_path):
    model = random_model(qk_norm="rms", rope_layout="interleaved")
    model.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert_same_bits(stored["model.layers.0.self_attn.k_norm.weight"], to_halves(model.params["blocks.0.k_norm"], 1))


OURS = {
    "windows_norms_and_biases": dict(sliding_window=3, bias="qkv", qk_norm="rms"),
    "one_local_rope": dict(sliding_window=3, window_layers=(0,), local_rope_theta=9.0),
    "norms_after": dict(norm_placement="after"),
    "gemma's norm": dict(norm="rmsnorm1p"),
    "an embedding of another scale": GEMMA | dict(embed_scale=2.0),
    "scores of a scale that no whole number gives": GEMMA_3 | dict(attn_scale=0.3),
    "partial_rope_that_phi_3_does_not_scale_so": dict(rotary_dim=4, rope_scaling=LINEAR),
    "partial_rope_and_yarn": dict(rotary_dim=4, rope_scaling=LINEAR | dict(rope_type="yarn", original_max_position_embeddings=8)),
    "longrope_for_heads_that_are_not_their_share_of_the_width": dict(rotary_dim=4, head_dim=10, rope_scaling=LONG),
    "partial_rope_and_biases": dict(rotary_dim=4, bias="qkv"),
    "experts_by_sigmoid": dict(**EXPERTS, router_score="sigmoid"),
    "experts_and_biases_of_qkv": dict(**EXPERTS, bias="qkv"),
    "experts_with_norms_after": dict(**EXPERTS, norm_placement="after"),
    "a_family_that_does_not_fit": dict(norm="layernorm", family="qwen2"),
    "a_family_that_is_unknown": dict(norm="layernorm", family="falcon"),
}


@pytest.mark.parametrize("name", OURS)
def test_what_no_family_computes_is_written_as_our_own(tmp_path, name):
    model = random_model(**OURS[name])
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "numllama"
    assert nl.load(tmp_path).config == model.config
    assert_same_bits(nl.load(tmp_path).params.flat, model.params.flat)


# ------------------------------------------------------------------------------------------------ config.json


SIZES = dict(vocab_size=23, hidden_size=24, num_hidden_layers=4, num_attention_heads=4, intermediate_size=20)


def read(kind, **values):
    return config_from_huggingface({"model_type": kind, "num_key_value_heads": 2, **SIZES, **values})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (dict(model_type="mistral"), dict(sliding_window=4096, n_kv_heads=2, max_seq_len=131072)),
        (dict(model_type="mistral", sliding_window=None), dict(sliding_window=None, family="mistral")),
        (dict(model_type="qwen2", sliding_window=9), dict(sliding_window=None, bias="qkv", max_seq_len=32768)),
        (dict(model_type="qwen2", use_sliding_window=True), dict(sliding_window=None)),  # from layer 28 on
        (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=3), dict(sliding_window=4096, window_layers=(3,))),
        (dict(model_type="qwen2", use_sliding_window=True, max_window_layers=0), dict(window_layers=None, sliding_window=4096)),
        (dict(model_type="qwen3"), dict(head_dim=128, qk_norm="rms", bias=False)),
        (dict(model_type="smollm3"), dict(rope_layers=(0, 1, 2), rope_theta=2e6, tie_embeddings=True)),
        (dict(model_type="smollm3", no_rope_layers=[0, 1, 1, 0, 1]), dict(rope_layers=(1, 2))),  # a longer list is cut
        (dict(model_type="phi3", partial_rotary_factor=0.75), dict(rotary_dim=4, norm_eps=1e-5, family=None)),
        (dict(model_type="phi3", rope_parameters=dict(rope_theta=9.0, partial_rotary_factor=0.4)), dict(rotary_dim=2)),
        (dict(model_type="phi3", sliding_window=2047, resid_pdrop=0.0), dict(sliding_window=2047, family="phi3")),
        (
            dict(model_type="phi3", partial_rotary_factor=0.75, rope_scaling=SU),
            dict(rope_scaling=dict(LONG, factor=1.0, original_max_position_embeddings=4096)),
        ),
        (dict(model_type="gemma"), dict(norm="rmsnorm1p", ffn="geglu", head_dim=256, tie_embeddings=True, embed_scale=24**0.5)),
        (dict(model_type="gemma", hidden_act="gelu", hidden_activation=None), dict(ffn="geglu")),
        (dict(model_type="gemma2"), dict(attn_softcap=50.0, logit_softcap=30.0, window_layers=(0, 2), norm_placement="both")),
        (dict(model_type="gemma2", attn_logit_softcapping=None, final_logit_softcapping=None), dict(logit_softcap=None)),
        (dict(model_type="gemma3_text"), dict(local_rope_theta=1e4, rope_theta=1e6, attn_scale=1 / 16, window_layers=None)),
        (dict(model_type="gemma3_text", sliding_window_pattern=2), dict(window_layers=(0, 2), sliding_window=4096)),
        (
            dict(model_type="gemma3_text", rope_local_base_freq=7.0, rope_theta=9.0, rope_scaling=LINEAR),
            dict(local_rope_theta=7.0, rope_theta=9.0, rope_scaling=LINEAR),
        ),
        (
            dict(model_type="gemma3_text", rope_parameters={"full_attention": dict(LINEAR, rope_theta=9.0)}),
            dict(local_rope_theta=1e4, rope_theta=9.0, rope_scaling=LINEAR),
        ),
        (dict(model_type="gemma3_text", layer_types=["full_attention"] * 4), dict(local_rope_theta=None, sliding_window=None)),
        (dict(model_type="olmo2"), dict(qk_norm="rms_width", norm_placement="after", norm_eps=1e-5, max_seq_len=2048)),
        (dict(model_type="mixtral"), dict(n_experts=8, n_experts_per_token=2, rope_theta=1e6, sliding_window=None, ffn_dim=20)),
        (dict(model_type="mixtral", num_experts=4), dict(n_experts=4, router_normalised=True, router_aux_loss=False)),
        (dict(model_type="mixtral", sliding_window=9, output_router_logits=True), dict(sliding_window=9, router_aux_loss=True)),
        (dict(model_type="qwen3_moe"), dict(n_experts=128, n_experts_per_token=8, ffn_dim=768, router_normalised=False)),
        (dict(model_type="qwen3_moe", num_local_experts=9), dict(n_experts=9, qk_norm="rms", head_dim=6, sliding_window=None)),
        (dict(model_type="qwen3_moe", use_sliding_window=True), dict(sliding_window=4096, window_layers=None)),
    ],
    ids=str,
)
def test_a_published_config_is_read_as_its_family_means_it(values, expected):
    config = read(values["model_type"], **values)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(model_type="mistral", hidden_act="gelu"), 'hidden_act is "gelu", but only "silu" is supported'),
        (dict(model_type="llama", is_causal=False), "is_causal is false, but only true is supported"),
        (dict(model_type="mistral", sliding_window=0), "sliding_window is 0, but must be a whole number of at least 1"),
        (dict(model_type="mistral", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5, but only 1 is supported"),
        (dict(model_type="phi3", partial_rotary_factor=1.5), r"partial_rotary_factor is 1.5, but must lie in \(0, 1\]"),
        (dict(model_type="phi3", partial_rotary_factor=0.5), "rotary_dim is 3, but must be even and at most head_dim"),
        (dict(model_type="phi3", rope_scaling=LINEAR), 'rope_scaling\'s rope_type is "linear", but must be one of'),
        (dict(model_type="phi3", rope_scaling=dict(type=[])), r"rope_scaling's rope_type is \[\], but must be one of"),
        (dict(model_type="phi3", rope_scaling=LONG, head_dim=4), "head_dim is 4, but only 6 is supported"),
        (dict(model_type="qwen2", use_sliding_window="yes"), 'use_sliding_window is "yes", but must be true or false'),
        (dict(model_type="qwen2", layer_types=["full_attention"]), "layer_types has 1 entries, but num_hidden_layers is 4"),
        (dict(model_type="qwen3", layer_types=["linear_attention"] * 4), "layer_types is .*, but must list"),
        (dict(model_type="qwen3", layer_types=[3] * 4), "layer_types is .*, but must list"),
        (dict(model_type="qwen3", quantization_config={}), "quantization_config is {}, but only null is supported"),
        (dict(model_type="smollm3", no_rope_layers=[1]), r"no_rope_layers is \[1\], but one number for each of 4 layers"),
        (dict(model_type="smollm3", no_rope_layers=[0] * 4), "no_rope_layers is .*, but one number for each of 4 layers"),
        (dict(model_type="smollm3", no_rope_layers=[2] * 4), "no_rope_layers is .*, but must be a list of 0 and 1"),
        (dict(model_type="olmo2", final_logit_softcapping=30.0), "final_logit_softcapping is 30.0, but only null is supported"),
        (dict(model_type="mixtral", num_local_experts=0), "num_local_experts is 0, but must be a whole number of at least 1"),
        (dict(model_type="mixtral", num_experts_per_tok=9), "n_experts is 8 and n_experts_per_token is 9, but the first must"),
        (dict(model_type="mixtral", router_aux_loss_coef=-1), "router_aux_loss_coef is -1, but must not be negative"),
        (dict(model_type="qwen3_moe", mlp_only_layers=[0]), r"mlp_only_layers is \[0\], but only \[\] is supported"),
        (dict(model_type="qwen3_moe", norm_topk_prob=1), "norm_topk_prob is 1, but must be true or false"),
        (dict(model_type="gemma3"), "model_type is 'gemma3', but must be one of"),
        (dict(model_type="gemma3_text", rope_parameters=dict(rope_theta=5.0)), r"rope_parameters has unknown key\(s\) rope"),
        (dict(model_type="gemma2", attn_logit_softcapping=-1.0), "attn_logit_softcapping is -1.0, but must be a positive number"),
        (dict(model_type="gemma2", hidden_activation="silu"), 'hidden_activation is "silu", but only "gelu_pytorch_tanh" is'),
        (dict(model_type="gemma", hidden_act="silu"), 'hidden_act is "silu", but only "gelu_pytorch_tanh" is supported'),
        (dict(model_type="gemma", use_bidirectional_attention=True), "use_bidirectional_attention is true, but only false is"),
        (dict(model_type="gemma3_text", attn_logit_softcapping=50.0), "attn_logit_softcapping is 50.0, but only null is"),
        (dict(model_type="gemma3_text", sliding_window=None), "sliding_window is null, but must be a whole number"),
        (dict(model_type="gemma3_text", query_pre_attn_scalar=0), "query_pre_attn_scalar is 0, but must be a positive number"),
        (
            dict(model_type="gemma3_text", rope_parameters=dict(sliding_attention=dict(rope_type="linear"))),
            "sliding_attention's rope_type is \"linear\", but only \"default\" is supported",
        ),
        (
            dict(model_type="gemma3_text", rope_parameters=dict(full_attention=3)),
            "rope_parameters' full_attention is 3, but must be a mapping",
        ),
        (dict(model_type=["llama"]), r"model_type is \['llama'\], but must be one of"),
    ],
    ids=str,
)
def test_what_a_family_cannot_have_is_refused_by_name(values, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read(values["model_type"], **values)


WRONG = [None, True, "x" * 10_000, "8", [8], {"a": 8}, -(10**400), 10**400, 1e999, float("nan"), 0.5, -1, [[[]]], ["x" * 99], 0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_value_of_any_type_is_read_or_refused_in_one_sentence(kind):
    family = FAMILIES[kind]
    known = {name for name, _, _ in FIELDS.values()} | set(HONOURED) | set(family.honoured)
    for name in sorted(known.union(*(trait.kinds for trait in family.traits))):
        for value in WRONG:
            for nested in (value, {name: value}, {"full_attention": value}, {"sliding_attention": {"rope_theta": value}}):
                try:
                    read(kind, **{name: nested})
                except ValueError as error:
                    assert len(str(error)) < 400


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("n", [65_537, 10**9, 2**62])
def test_an_absurd_number_of_layers_costs_nothing(kind, n):
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            family_of(read(kind, num_hidden_layers=n))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_number_that_no_config_holds_is_written_as_our_own():
    assert family_of(nl.ModelConfig(**SHAPE | GEMMA_3 | dict(attn_scale=1e-200))) is None


def test_a_file_of_another_family_lacks_its_tensors(tmp_path):
    random_model().save(tmp_path)
    edit_json(tmp_path / "config.json", model_type="qwen2")
    with pytest.raises(nl.CheckpointError, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.bias"):
        nl.load(tmp_path)


@every_model
def test_an_adapter_goes_with_its_family(tmp_path, name):
    model = random_model(**MODELS[name])
    model.save(tmp_path / "base")
    model.add_adapter(nl.LoraConfig(rank=2))
    model.adapter.params.flat[:] = np.random.default_rng(0).standard_normal(model.adapter.params.flat.shape)
    model.save_adapter(tmp_path / "adapter", base=tmp_path / "base")
    assert_same_bits(nl.load(tmp_path / "adapter").forward(tokens()), model.forward(tokens()))
