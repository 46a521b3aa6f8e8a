"""ModelConfig: what it refuses, what it fills in, and the presets against published sizes."""

import json
import re
from dataclasses import FrozenInstanceError, asdict, replace
from math import prod

import pytest

from numllama.model import PRESETS, ModelConfig, count_parameters, parameter_shapes

SMALL = dict(vocab_size=23, dim=16, n_layers=2, n_heads=4)
LLAMA_31 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


# ------------------------------------------------------------------------------------------------ what is refused


SIZES = ["vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "max_seq_len", "head_dim"]


@pytest.mark.parametrize("field", SIZES)
@pytest.mark.parametrize("value", [0, -3, 2.0, "8", True])
def test_a_size_is_a_whole_number_of_at_least_one(field, value):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}, but must be a whole number of at least 1$"):
        ModelConfig(**SMALL | {field: value})


@pytest.mark.parametrize(
    ("field", "value", "choices"),
    [
        ("rope_layout", "split", "'half', 'interleaved'"),
        ("qk_norm", "rmsnorm", "None, 'rms', 'rms_width', 'l2'"),
        ("norm", "batchnorm", "'rmsnorm', 'rmsnorm1p', 'layernorm'"),
        ("positions", "alibi", "'rope', 'learned', 'none'"),
        ("ffn", "relu", "'swiglu', 'geglu', 'gelu', 'moe'"),
        ("init", "xavier", "'normal', 'truncated_normal'"),
        ("norm", None, "'rmsnorm', 'rmsnorm1p', 'layernorm'"),
    ],
    ids=["rope_layout", "qk_norm", "norm", "positions", "ffn", "init", "norm_none"],
)
def test_a_choice_is_one_of_its_table(field, value, choices):
    with pytest.raises(ValueError, match=f"^{field} is {value!r}, but must be one of {choices}$"):
        ModelConfig(**SMALL, **{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(dim=18), "dim is 18 and n_heads is 4, but the first must be a multiple of the second"),
        (dict(n_kv_heads=3), "n_heads is 4 and n_kv_heads is 3, but the first must be a multiple of the second"),
        (dict(n_kv_heads=8), "n_heads is 4 and n_kv_heads is 8, but the first must be a multiple of the second"),
        (dict(dim=12), "head_dim is 3, but RoPE turns pairs of components and needs an even one"),
        (dict(head_dim=5), "head_dim is 5, but RoPE turns pairs of components and needs an even one"),
        (dict(dropout=1.0), r"dropout is 1.0, but must lie in \[0, 1\)"),
        (dict(dropout=-0.1), r"dropout is -0.1, but must lie in \[0, 1\)"),
        (dict(dropout=float("nan")), r"dropout is nan, but must lie in \[0, 1\)"),
        (dict(norm_eps=0.0), "norm_eps is 0.0, but must be a positive number"),
        (dict(rope_theta=-1.0), "rope_theta is -1.0, but must be a positive number"),
        (dict(init_std=0.0), "init_std is 0.0, but must be a positive number"),
        (dict(init_std=float("nan")), "init_std is nan, but must be a positive number"),
    ],
    ids=[
        "heads_do_not_divide_dim", "kv_heads_do_not_divide_heads", "more_kv_heads_than_heads", "odd_head", "odd_given_head",
        "dropout_1", "dropout_below_0", "dropout_nan", "norm_eps_0", "rope_theta_below_0", "init_std_0", "init_std_nan",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModelConfig(**SMALL | changes)


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_only_rope_needs_an_even_head(positions):
    assert ModelConfig(**SMALL | dict(dim=12), positions=positions).head_dim == 3


def test_a_head_dim_of_its_own_frees_dim_from_the_number_of_heads():
    assert ModelConfig(**SMALL | dict(dim=18), head_dim=6).head_dim == 6


def test_a_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        ModelConfig(**SMALL).dim = 32


# ------------------------------------------------------------------------------------------------ defaults


def test_kv_heads_default_to_all_heads_and_a_head_to_its_share_of_the_width():
    config = ModelConfig(**SMALL)
    assert (config.n_kv_heads, config.head_dim) == (4, 4)


@pytest.mark.parametrize(("dim", "ffn_dim"), [(16, 48), (24, 64), (64, 176), (288, 768), (512, 1368), (768, 2048)])
def test_swiglu_is_eight_thirds_as_wide_rounded_up_to_a_multiple_of_8(dim, ffn_dim):
    assert ModelConfig(**SMALL | dict(dim=dim)).ffn_dim == ffn_dim
    assert ffn_dim % 8 == 0
    assert 0 <= ffn_dim - 8 * dim / 3 < 8


def test_gelu_is_four_times_as_wide():
    assert ModelConfig(**SMALL, ffn="gelu").ffn_dim == 64


def test_given_sizes_are_kept():
    config = ModelConfig(**SMALL, n_kv_heads=1, ffn_dim=7, head_dim=10)
    assert (config.n_kv_heads, config.ffn_dim, config.head_dim) == (1, 7, 10)


def test_a_plain_configuration_is_a_llama_2():
    config = asdict(ModelConfig(**SMALL))
    expected = dict(norm="rmsnorm", positions="rope", ffn="swiglu", rope_layout="half", rope_theta=10000.0, norm_eps=1e-5)
    expected |= dict(rope_scaling=None, qk_norm=None, bias=False, tie_embeddings=False, dropout=0.0, init_std=0.02)
    assert {name: config[name] for name in expected} == expected


# ------------------------------------------------------------------------------------------------ to and from a dict


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name):
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


ONLY_EXPERTS = ("n_experts", "n_experts_per_token", "router_aux_loss")
ONLY_ROPE = ("rope_layers", "rotary_dim", "local_rope_theta")


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_every_field_survives_a_dict(positions):
    of_rope = dict(rope_layers=(1,), rotary_dim=4, local_rope_theta=50.0) if positions == "rope" else {}
    of_ffn = dict(ffn="moe", n_experts=4, n_experts_per_token=3, router_aux_loss=True, bias="qkv") if of_rope else {}
    config = ModelConfig(
        **SMALL, n_kv_heads=2, ffn_dim=20, max_seq_len=9, head_dim=6, norm_eps=1e-6, rope_theta=500.0, rope_scaling=LLAMA_31,
        rope_layout="interleaved", tie_embeddings=True, qk_norm="rms", norm="layernorm", positions=positions,
        dropout=0.5, init_std=0.1, init="truncated_normal", sliding_window=5, window_layers=(0,), attn_scale=0.5,
        norm_placement="both", embed_scale=2.0, attn_softcap=5.0, logit_softcap=6.0, family="mistral", router_score="sigmoid",
        router_normalised=False, router_aux_loss_coef=0.1, **of_rope, **(of_ffn or dict(ffn="gelu", bias=True)),
    )  # fmt: skip
    values = config.to_dict()
    plain = ModelConfig(**SMALL).to_dict()
    same = [name for name in values if values[name] == plain[name]]  # at their defaults
    assert set(same) == {*SMALL, *(["positions"] if of_rope else [*ONLY_ROPE, *ONLY_EXPERTS])}
    assert ModelConfig.from_dict(json.loads(json.dumps(values))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(bias="all"), "bias is 'all', but must be one of False, True, 'qkv', 'attention', 'ffn'"),
        (dict(bias=1), "bias is 1, but must be one of False, True, 'qkv', 'attention', 'ffn'"),
        (dict(norm_placement="sandwich"), "norm_placement is 'sandwich', but must be one of 'before', 'after', 'both'"),
        (dict(sliding_window=0), "sliding_window is 0, but must be a whole number of at least 1"),
        (dict(rotary_dim=3), "rotary_dim is 3, but must be even and at most head_dim, which is 4"),
        (dict(rotary_dim=6), "rotary_dim is 6, but must be even and at most head_dim, which is 4"),
        (dict(window_layers=(0,)), r"window_layers is \(0,\), but without a sliding_window no layer has one"),
        (dict(local_rope_theta=9.0), "local_rope_theta is 9.0, but without a sliding_window no layer has one"),
        (dict(rope_layers=(0,), positions="none"), r"rope_layers is \(0,\), but positions is 'none', without RoPE"),
        (dict(rope_layers=(2,)), r"rope_layers holds 2, but the layers are 0\.\.1"),
        (dict(rope_layers=()), r"rope_layers is \(\), but must be a list of layers"),
        (dict(rope_layers=(-1,)), r"rope_layers is \(-1,\), but must be a list of layers"),
        (dict(rope_layers=1), "rope_layers is 1, but must be a list of layers"),
        (dict(attn_scale=0.0), "attn_scale is 0.0, but must be a positive number"),
        (dict(embed_scale="big"), "embed_scale is 'big', but must be a positive number"),
        (dict(logit_softcap=-1.0), "logit_softcap is -1.0, but must be a positive number"),
        (dict(family=3), "family is 3, but must be a text"),
    ],
    ids=str,
)
def test_an_option_of_other_families_is_checked(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModelConfig(**SMALL, **changes)


def test_experts_survive_a_dict():
    config = ModelConfig(**SMALL, ffn="moe", n_experts=4, n_experts_per_token=3, bias="attention", router_score="sigmoid")
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_what_all_layers_have_is_the_default():
    assert ModelConfig(**SMALL, sliding_window=3, window_layers=[1, 0], rope_layers=(0, 1), rotary_dim=4) == ModelConfig(
        **SMALL, sliding_window=3
    )


@pytest.mark.parametrize(
    "changes",
    [
        dict(sliding_window=3), dict(rope_layers=(0,)), dict(rotary_dim=2), dict(attn_scale=1.0), dict(embed_scale=2.0),
        dict(norm_placement="after"), dict(norm="rmsnorm1p"), dict(qk_norm="rms_width"), dict(ffn="geglu"),
        dict(attn_softcap=5.0), dict(logit_softcap=5.0), dict(ffn="moe", n_experts=2, n_experts_per_token=1),
    ],
    ids=str,
)  # fmt: skip
def test_only_what_llama_and_gpt_2_have_is_classic(changes):
    assert not ModelConfig(**SMALL, **changes).is_classic
    assert ModelConfig(**SMALL, norm="layernorm", ffn="gelu", bias="qkv", qk_norm="l2", family="phi3").is_classic


def test_a_dict_is_a_copy():
    config = ModelConfig(**SMALL, rope_scaling=LLAMA_31)
    config.to_dict()["rope_scaling"]["factor"] = 2.0
    assert config.rope_scaling["factor"] == 8.0


def test_unknown_keys_are_refused():
    with pytest.raises(ValueError, match=r"^unknown configuration key\(s\) hidden_size, width$"):
        ModelConfig.from_dict(SMALL | dict(width=3, hidden_size=4))


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"^the configuration lacks vocab_size, n_layers$"):
        ModelConfig.from_dict(dict(dim=16, n_heads=4))


# ------------------------------------------------------------------------------------------------ RoPE scaling


@pytest.mark.parametrize(
    "spelling",
    [
        LLAMA_31,
        LLAMA_31 | dict(rope_type="llama3"),
        LLAMA_31 | dict(type="llama3"),
        LLAMA_31 | dict(type="llama3", rope_type="llama3"),
        LLAMA_31 | dict(rope_type="llama3", rope_theta=500000.0),
    ],
    ids=["bare", "rope_type", "type", "both", "rope_parameters"],
)
def test_all_spellings_of_rope_scaling_become_one(spelling):
    config = ModelConfig(**SMALL, rope_theta=500000.0, rope_scaling=spelling)
    assert config.rope_scaling == {"rope_type": "llama3", **LLAMA_31}


@pytest.mark.parametrize(
    "spelling",
    [None, dict(rope_type="default"), dict(type="default", rope_theta=10000.0)],
    ids=["none", "rope_type", "rope_parameters"],
)
def test_default_rope_scaling_is_none(spelling):
    assert ModelConfig(**SMALL, rope_scaling=spelling).rope_scaling is None


@pytest.mark.parametrize("kind", ["proportional", "mrope", 3, None, ["llama3"]])
@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_other_rope_scaling_is_refused_by_name(key, kind):
    known = "'default', 'linear', 'dynamic', 'llama3', 'yarn', 'longrope'"
    with pytest.raises(ValueError, match=rf"^rope_scaling is of type {re.escape(repr(kind))}, but only {known} are known$"):
        ModelConfig(**SMALL, rope_scaling={key: kind, "factor": 2.0})


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_linear_rope_scaling_is_known_and_a_factor_of_one_is_none(key):
    for factor, expected in {2.0: {"rope_type": "linear", "factor": 2.0}, 1: None}.items():
        assert ModelConfig(**SMALL, rope_scaling={key: "linear", "factor": factor}).rope_scaling == expected


YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
LONGROPE = dict(
    rope_type="longrope", factor=4.0, short_factor=[1.0, 1.5], long_factor=[2.0, 3.0], original_max_position_embeddings=32,
)  # fmt: skip


@pytest.mark.parametrize(
    "scaling",
    [
        YARN, YARN | dict(beta_fast=16.0, truncate=False), YARN | dict(mscale=1.0, mscale_all_dim=0.0),
        LONGROPE, LONGROPE | dict(attention_factor=1.1),
    ],
)
def test_optional_fields_of_a_scaling_are_kept_and_null_is_their_default(scaling):
    absent = {} if "attention_factor" in scaling else {"attention_factor": None}
    config = ModelConfig(**SMALL, rope_scaling=scaling | absent)
    assert config.rope_scaling == scaling
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        (YARN | dict(factor=-1.0), "rope_scaling's factor is -1.0, but must be a positive number"),
        (YARN | dict(truncate=1), "rope_scaling's truncate is 1, but must be true or false"),
        (LONGROPE | dict(short_factor=2.0), "rope_scaling's short_factor is 2.0, but must be a list of positive numbers"),
        (LONGROPE | dict(long_factor=[1, "2"]), r"rope_scaling's long_factor is \[1, '2'\], but must be a list of .* numbers"),
        (LONGROPE | dict(long_factor=[1.0]), "rope_scaling's long_factor has 1 numbers, but RoPE turns 2 pairs of components"),
        (LONGROPE | dict(original_max_position_embeddings=1), "rope_scaling's original_max_.* is 1, but must be larger than 1"),
        (dict(factor=8.0, low_freq_factor=1.0), "rope_scaling lacks high_freq_factor, original_max_position_embeddings"),
        (LLAMA_31 | dict(beta_fast=32, a=1), r"rope_scaling of type 'llama3' has unknown key\(s\) a, beta_fast"),
        (LLAMA_31 | dict(low_freq_factor=4.0), "rope_scaling's high_freq_factor must be larger than its low_freq_factor"),
    ],
    ids=["factor", "truncate", "no_list", "a_text", "short", "one", "missing", "unknown", "low_not_below_high"],
)
def test_incomplete_or_strange_rope_scaling_is_refused(scaling, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ModelConfig(**SMALL, rope_scaling=scaling)


# ------------------------------------------------------------------------------------------------ sizes and presets

# vocab_size, dim, n_layers, n_heads, n_kv_heads, head_dim, ffn_dim, max_seq_len, tie_embeddings, number of parameters
PUBLISHED = {
    "shakespeare-cpu": (65, 128, 4, 4, 4, 32, 344, 64, False, 808_320),
    "shakespeare": (65, 384, 6, 6, 6, 64, 1024, 256, False, 10_671_744),
    "50m": (32000, 512, 8, 8, 8, 64, 1368, 1024, False, 57_975_296),
    "117m": (50257, 768, 12, 12, 12, 64, 2048, 1024, True, 123_551_232),
    "345m": (50257, 1024, 24, 16, 16, 64, 2736, 1024, True, 353_896_448),
    "stories260k": (512, 64, 5, 8, 4, 8, 172, 512, True, 260_032),
    "stories15m": (32000, 288, 6, 6, 6, 48, 768, 256, True, 15_191_712),
    "llama-2-7b": (32000, 4096, 32, 32, 32, 128, 11008, 4096, False, 6_738_415_616),
    "llama-3-8b": (128256, 4096, 32, 32, 8, 128, 14336, 8192, False, 8_030_261_248),
    "llama-3.1-8b": (128256, 4096, 32, 32, 8, 128, 14336, 131072, False, 8_030_261_248),
    "llama-3.2-1b": (128256, 2048, 16, 32, 8, 64, 8192, 131072, True, 1_235_814_400),
}


def test_no_preset_goes_unchecked():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_shape_and_size(name):
    c = PRESETS[name]
    shape = c.vocab_size, c.dim, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim, c.max_seq_len, c.tie_embeddings
    assert (*shape, count_parameters(c)) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_size_of_a_llama_is_its_closed_form(name):
    V, C, L, H, K, D, F, _, tied, _ = PUBLISHED[name]
    per_layer = 2 * H * D * C + 2 * K * D * C + 3 * F * C + 2 * C
    assert count_parameters(PRESETS[name]) == (1 if tied else 2) * V * C + L * per_layer + C


def test_every_preset_is_a_plain_llama():
    for config in PRESETS.values():
        switches = config.norm, config.positions, config.ffn, config.bias, config.qk_norm, config.norm_eps
        assert switches == ("rmsnorm", "rope", "swiglu", False, None, 1e-5)


@pytest.mark.parametrize(
    ("name", "theta", "factor", "layout"),
    [
        ("llama-2-7b", 10000.0, None, "half"),
        ("llama-3-8b", 500000.0, None, "half"),
        ("llama-3.1-8b", 500000.0, 8.0, "half"),
        ("llama-3.2-1b", 500000.0, 32.0, "half"),
        ("stories15m", 10000.0, None, "interleaved"),
        ("stories260k", 10000.0, None, "interleaved"),
    ],
)
def test_a_preset_has_the_published_rope(name, theta, factor, layout):
    config = PRESETS[name]
    scaling = None if factor is None else {"rope_type": "llama3", **LLAMA_31, "factor": factor}
    assert (config.rope_theta, config.rope_scaling, config.rope_layout) == (theta, scaling, layout)


def test_a_preset_can_be_changed():
    assert ModelConfig.preset("50m", dropout=0.1, max_seq_len=64) == replace(PRESETS["50m"], dropout=0.1, max_seq_len=64)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match=r"^preset is '7b', but must be one of shakespeare-cpu, shakespeare, 50m, "):
        ModelConfig.preset("7b")


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize(("n_layers", "dim", "head_dim"), [(1, 16, 2), (3, 40, 6), (5, 64, 8), (2, 24, 10)])
def test_grouped_queries_save_exactly_the_missing_key_and_value_rows(n_layers, dim, head_dim, kv_heads):
    shape = dict(vocab_size=31, dim=dim, n_layers=n_layers, n_heads=8, head_dim=head_dim)
    saved = count_parameters(ModelConfig(**shape)) - count_parameters(ModelConfig(**shape, n_kv_heads=kv_heads))
    assert saved == 2 * n_layers * dim * head_dim * (8 - kv_heads)


def test_a_gpt2_counts_as_published():
    """GPT-2 small: 124,439,808 parameters."""
    gpt2 = ModelConfig(
        50257, 768, 12, 12, max_seq_len=1024, norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True
    )
    assert count_parameters(gpt2) == 124_439_808
    assert sum(map(prod, parameter_shapes(gpt2).values())) == 124_439_808
