"""Families of models in Hugging Face's layout: a row for each ``model_type``, of what its config.json and its tensors mean.

A row lists what all models of a family share (`fields` of a ModelConfig), the traits that a config.json decides
(:mod:`numllama.interop.traits`), and how tensors are named. A model is saved as the first family whose config.json reads
as its configuration again; if there is none, in the same layout with our own names and ``"model_type": "numllama"``.
A config.json that needs something numllama does not compute is refused by name: ignoring it would give wrong numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numllama.errors import shown
from numllama.interop.traits import (
    ATTENTION_BIAS,
    BIASES,
    EMBED_SCALE,
    LAYER_WINDOWS,
    LOGIT_CAP,
    NO_ROPE_LAYERS,
    PARTIAL_ROPE,
    QWEN_EXPERTS,
    QWEN_WINDOWS,
    ROPE,
    ROUTING,
    SCORES_CAP,
    SCORES_SCALE,
    SMOL_WINDOWS,
    TWO_ROPES,
    WHOLE,
    WINDOW,
    WINDOW_OR_OFF,
    Trait,
    Values,
    n_experts,
)
from numllama.model import ModelConfig, parameter_shapes
from numllama.model.parameters import MOST_LAYERS
from numllama.storage.fields import (
    ANYTHING,
    FLAG,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    as_json,
    check,
    number,
    only,
    optional,
    require,
    whole,
)

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Our field: Hugging Face's name, the values allowed, and Llama's default. The last two rows are used only in training and only by
# us: transformers ignores them.
REQUIRED = object()
FIELDS = {
    "vocab_size": ("vocab_size", whole(1), REQUIRED),
    "dim": ("hidden_size", whole(1), REQUIRED),
    "n_layers": ("num_hidden_layers", whole(1), REQUIRED),
    "n_heads": ("num_attention_heads", whole(1), REQUIRED),
    "ffn_dim": ("intermediate_size", whole(1), REQUIRED),
    "n_kv_heads": ("num_key_value_heads", optional(whole(1)), None),
    "head_dim": ("head_dim", optional(whole(1)), None),
    "max_seq_len": ("max_position_embeddings", whole(1), 2048),
    "norm_eps": ("rms_norm_eps", POSITIVE, 1e-6),
    "tie_embeddings": ("tie_word_embeddings", FLAG, False),
    "init_std": ("initializer_range", POSITIVE, 0.02),
    "dropout": ("dropout", number(), 0.0),
    "init": ("numllama_init", TEXT, "normal"),
}
# Other fields of a config.json, and the values allowed. A field that no trait of a family reads changes nothing there: attention
# dropout is for training, and transformers' Llama has no windows. Other values that would change the numbers are refused.
HONOURED = {
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "attention_dropout": optional(number(lambda value: 0 <= value <= 1, "must lie in [0, 1]")),
    "sliding_window": optional(whole(1)),
    "rope_theta": POSITIVE,
    "rope_scaling": optional(OBJECT),
    "rope_parameters": optional(OBJECT),
    "original_max_position_embeddings": optional(whole(1)),
    "numllama_max_seq_len": optional(whole(1)),
    "hidden_act": only("silu", "swish"),
    "quantization_config": only(None),
    "partial_rotary_factor": WHOLE,
    "attn_logit_softcapping": only(None),
    "final_logit_softcapping": only(None),
    "is_causal": only(True),
}

# ------------------------------------------------------------------------------------------------ the table


NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "w_gate": "mlp.gate_proj",
    "w_up": "mlp.up_proj",
    "w_down": "mlp.down_proj",
}
FUSED = {
    **dict.fromkeys(("wq", "wk", "wv"), "self_attn.qkv_proj"),
    **dict.fromkeys(("w_gate", "w_up"), "mlp.gate_up_proj"),
}
NORMS_AROUND = {
    "attn_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
MIXTRAL_EXPERTS = {
    "router": "block_sparse_moe.gate",
    "experts_gate": "block_sparse_moe.experts.*.w1",
    "experts_up": "block_sparse_moe.experts.*.w3",
    "experts_down": "block_sparse_moe.experts.*.w2",
}
QWEN_MLP = {
    "router": "mlp.gate",
    "experts_gate": "mlp.experts.*.gate_proj",
    "experts_up": "mlp.experts.*.up_proj",
    "experts_down": "mlp.experts.*.down_proj",
}
NORMS_AFTER = {"attn_post_norm": "post_attention_layernorm", "ffn_post_norm": "post_feedforward_layernorm"}


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes
    ----------
    architecture : str
        The class of transformers.
    fields : dict
        Fields of a ModelConfig that all models of the family share.
    traits : tuple of Trait
    defaults : dict
        What a config.json leaves out, where that is not what a Llama's does.
    honoured : dict
        Other fields of a config.json, and the values allowed.
    fixed : dict
        What is written to each config.json.
    names : dict
        Names of a block's parts, where they are not Llama's. Parts with one name are stacked in one tensor; a name with an
        asterisk stands for a tensor of each expert (:mod:`numllama.interop.mixtures`).
    whole_heads : bool
        The heads must divide the width, even if ``head_dim`` is given.
    """

    architecture: str
    fields: dict[str, Any]
    traits: tuple[Trait, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    honoured: dict[str, Kind] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    names: dict[str, str] = field(default_factory=dict)
    whole_heads: bool = False


GELU = "gelu_pytorch_tanh"
GEMMA = {"norm": "rmsnorm1p", "ffn": "geglu"}
GEMMA_KINDS = {"hidden_activation": only(GELU, None), "use_bidirectional_attention": only(False, None)}
QWEN = dict(max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096, max_window_layers=28)
EXPERTS = dict(output_router_logits=False, router_aux_loss_coef=0.001)
FAMILIES = {
    "llama": Family("LlamaForCausalLM", {}, (ROPE, BIASES), whole_heads=True),
    "mistral": Family(
        "MistralForCausalLM",
        {},
        (ROPE, WINDOW),
        dict(max_position_embeddings=131072, num_key_value_heads=8, sliding_window=4096),
    ),
    "qwen2": Family("Qwen2ForCausalLM", {"bias": "qkv"}, (ROPE, QWEN_WINDOWS), QWEN),
    "qwen3": Family("Qwen3ForCausalLM", {"qk_norm": "rms"}, (ROPE, ATTENTION_BIAS, QWEN_WINDOWS), {**QWEN, "head_dim": 128}),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        {},
        (ROPE, BIASES, NO_ROPE_LAYERS, SMOL_WINDOWS),
        dict(max_position_embeddings=32768, num_key_value_heads=4, tie_word_embeddings=True, rope_theta=2e6)
        | dict(no_rope_layer_interval=4, use_sliding_window=False),
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        {},
        (PARTIAL_ROPE, WINDOW),
        dict(max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5),
        names=FUSED,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        {"norm_placement": "after", "qk_norm": "rms_width"},
        (ROPE, ATTENTION_BIAS),
        dict(rms_norm_eps=1e-5),
        names=NORMS_AFTER,
    ),
    "gemma": Family(
        "GemmaForCausalLM",
        GEMMA,
        (ROPE, ATTENTION_BIAS, EMBED_SCALE),
        dict(max_position_embeddings=8192, num_key_value_heads=16, head_dim=256, tie_word_embeddings=True),
        {"hidden_act": only(GELU, "gelu"), **GEMMA_KINDS},
        {"hidden_act": GELU},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        {**GEMMA, "norm_placement": "both"},
        (ROPE, LAYER_WINDOWS, ATTENTION_BIAS, EMBED_SCALE, SCORES_SCALE, SCORES_CAP, LOGIT_CAP),
        dict(max_position_embeddings=8192, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True, sliding_window=4096)
        | dict(query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
        {"hidden_act": ANYTHING, "sliding_window": whole(1), **GEMMA_KINDS},
        {"hidden_activation": GELU},
        NORMS_AROUND,
        whole_heads=True,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        {**GEMMA, "norm_placement": "both", "qk_norm": "rms"},
        (TWO_ROPES, ATTENTION_BIAS, EMBED_SCALE, SCORES_SCALE, LOGIT_CAP),
        dict(max_position_embeddings=131072, num_key_value_heads=4, head_dim=256, tie_word_embeddings=True, sliding_window=4096)
        | dict(query_pre_attn_scalar=256, rope_theta=1e6, rope_local_base_freq=1e4, sliding_window_pattern=6),
        {"hidden_act": ANYTHING, "sliding_window": whole(1), **GEMMA_KINDS},
        {"hidden_activation": GELU},
        NORMS_AROUND,
        whole_heads=True,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        {"ffn": "moe"},
        (ROPE, WINDOW, n_experts(("num_local_experts", "num_experts"), 8), ROUTING),
        dict(max_position_embeddings=131072, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1e6, num_experts_per_tok=2)
        | EXPERTS,
        {"router_jitter_noise": only(0, None)},
        names=MIXTRAL_EXPERTS,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        {"ffn": "moe", "qk_norm": "rms"},
        (ROPE, ATTENTION_BIAS, WINDOW_OR_OFF, n_experts(("num_experts", "num_local_experts"), 128), ROUTING, QWEN_EXPERTS),
        dict(max_position_embeddings=32768, num_key_value_heads=4, sliding_window=4096, num_experts_per_tok=8)
        | dict(moe_intermediate_size=768, norm_topk_prob=False, **EXPERTS),
        {"decoder_sparse_step": only(1), "mlp_only_layers": only([], None)},
        names=QWEN_MLP,
    ),
}


# ------------------------------------------------------------------------------------------------ configurations


def config_from_huggingface(values: Values) -> ModelConfig:
    """The ModelConfig of a config.json; a ValueError names fields that numllama cannot honour."""
    kind = values.get("model_type")
    if kind == "numllama":
        return ModelConfig.from_dict({key: value for key, value in values.items() if key not in about({})})
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(map(repr, (*FAMILIES, "numllama")))
        raise ValueError(f"model_type is {shown(kind)}, but must be one of {known}")
    config = _read(values, kind)
    return config if family_of(config) == kind else replace(config, family=kind)


def _read(values: Values, kind: str) -> ModelConfig:
    family = FAMILIES[kind]
    kinds = {name: kind for name, kind, _ in FIELDS.values()} | HONOURED | family.honoured
    for trait in family.traits:
        kinds |= trait.kinds
    check(values, kinds, as_json)
    require(values, [name for name, _, default in FIELDS.values() if default is REQUIRED], "the configuration")
    values = {name: default for name, _, default in FIELDS.values()} | family.defaults | dict(values)
    fields = {field: values[name] for field, (name, _, _) in FIELDS.items()} | family.fields
    for trait in family.traits:
        fields |= trait.read(values)
    return ModelConfig(**fields)


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that describe the model."""
    kind = family_of(config)
    return {"model_type": "numllama", **config.to_dict()} if kind is None else _written(config, kind)


def family_of(config: ModelConfig) -> str | None:
    """The ``model_type`` as which a model is saved; None for our own."""
    if config.n_layers > MOST_LAYERS:  # no list with an entry for each is made
        return None
    wanted = replace(config, family=None, rope_layout=config.rope_layout if config.rotary_dim else "half")
    for kind in sorted(FAMILIES, key=lambda kind: kind != config.family):
        if config.dim % config.n_heads and FAMILIES[kind].whole_heads:
            continue
        try:
            if _read(_written(config, kind), kind) == wanted:
                return kind
        except (ValueError, OverflowError):  # some part of it has no place there
            continue
    return None


def is_llama(config: ModelConfig) -> bool:
    """Whether `LlamaForCausalLM` computes the same. It divides `dim` by the heads even if `head_dim` is given."""
    return family_of(replace(config, family=None)) == "llama"


def _written(config: ModelConfig, kind: str) -> dict[str, Any]:
    family = FAMILIES[kind]
    values = {name: getattr(config, field) for field, (name, _, _) in FIELDS.items()}
    for trait in family.traits:
        values |= trait.write(config)
    return {"model_type": kind, "architectures": [family.architecture], **values, **family.fixed}


def about(generation_config: Mapping[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The other fields of a config.json. Without ids, transformers would use 1 and 2."""
    ids = {name: generation_config.get(name) for name in SPECIAL_IDS}
    return {"model_type": "numllama", **ids, "torch_dtype": dtype}


# ------------------------------------------------------------------------------------------------ names


def huggingface_names(config: ModelConfig, kind: str | None = None) -> dict[str, str]:
    """Our name of each parameter: its name in the files of a family, by default that as which the model is saved.

    Parameters that are stacked in one tensor have the same name there, in this order.
    """
    kind = family_of(config) if kind is None else kind
    if kind in (None, "numllama"):
        return {name: name for name in parameter_shapes(config)}
    names = BLOCK_NAMES | FAMILIES[kind].names
    return {name: stored_name(name, NAMES, "model.layers", names) for name in parameter_shapes(config)}


def stored_name(name: str, names: Mapping[str, str], layers: str, block_names: Mapping[str, str]) -> str:
    """A parameter's name in a file: one of `names`, or behind that of `layers` and a number one of `block_names`."""
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if not name.startswith("blocks."):
        return f"{names[name]}.{kind}"
    _, i, short = name.split(".")
    return f"{layers}.{i}.{block_names[short]}.{kind}"
