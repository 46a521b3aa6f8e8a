"""Families of models in Hugging Face's layout: a row for each ``model_type``, of what its config.json and its tensors mean.

A row lists what all models of a family share (`fields` of a ModelConfig), the `traits` that a config.json decides, each with its
own reading and writing, and how tensors are named. A model is saved as the first family whose config.json reads as its
configuration again; if there is none, in the same layout with our own names and ``"model_type": "numllama"``.
A config.json that needs something numllama does not compute is refused by name: ignoring it would give wrong numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from numllama.errors import shown
from numllama.model import ModelConfig, parameter_shapes
from numllama.storage.fields import (
    FLAG,
    LIST,
    OBJECT,
    POSITIVE,
    TEXT,
    Kind,
    as_json,
    check,
    is_number,
    number,
    only,
    optional,
    require,
    whole,
)

Values = Mapping[str, Any]  # of a config.json
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
    "partial_rotary_factor": only(1, None),
    "attn_logit_softcapping": only(None),
    "final_logit_softcapping": only(None),
}
PARTIAL = number(lambda value: 0 < value <= 1, "must lie in (0, 1]")


class Trait(NamedTuple):
    """A part of a config.json that a family's models differ in.

    Attributes
    ----------
    kinds : dict
        The fields that it reads, and the values allowed.
    read : function
        Fields of a ModelConfig, from a config.json with the family's defaults.
    write : function
        Fields of a config.json, from a ModelConfig.
    """

    kinds: dict[str, Kind]
    read: Callable[[Values], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]


# ------------------------------------------------------------------------------------------------ traits


def _rope(values: Values, partial: Kind = HONOURED["partial_rotary_factor"]) -> dict[str, Any]:
    """RoPE's base and scaling: in ``rope_parameters``, or in ``rope_theta`` and ``rope_scaling`` as before transformers 5.

    For ``dynamic`` scaling ``max_position_embeddings`` is the original length, and the model supports `factor` times as many.
    """
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": values.get("rope_theta", 10000.0), **rope}
    rope.pop("type", None)
    check(rope, {"partial_rotary_factor": partial}, as_json)
    rope.pop("partial_rotary_factor", None)
    kind, longer, most = rope["rope_type"], {}, values["max_position_embeddings"]
    if kind in ("llama3", "yarn", "longrope"):
        original = values.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings") or most
        rope["original_max_position_embeddings"] = original
        if kind != "llama3" and rope.get("factor") is None and is_number(original) and original > 0:
            rope["factor"] = most / original
    if kind == "dynamic":
        rope["original_max_position_embeddings"] = most
        if is_number(factor := rope.get("factor")):
            longer = {"max_seq_len": values.get("numllama_max_seq_len") or max(most, int(factor * most))}
    return {"rope_scaling": rope, **longer}  # ModelConfig moves the base to rope_theta


def _partial_rope(values: Values) -> dict[str, Any]:
    """The same where RoPE may turn only the first components of a head."""
    kept = values.get("partial_rotary_factor") or 1.0
    part = (values.get("rope_scaling") or values.get("rope_parameters") or {}).get("partial_rotary_factor") or kept
    rope = _rope(values, optional(PARTIAL))
    head_dim = values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
    return {**rope, "rotary_dim": None if part == 1 else int(head_dim * part)}


def _write_rope(config: ModelConfig) -> dict[str, Any]:
    scaling, values = config.rope_scaling, {}
    if scaling and scaling["rope_type"] == "dynamic":
        values = {
            "numllama_max_seq_len": config.max_seq_len,
            "max_position_embeddings": int(scaling["original_max_position_embeddings"]),
        }
        scaling = {key: value for key, value in scaling.items() if key != "original_max_position_embeddings"}
    return {**values, "rope_theta": config.rope_theta, "rope_scaling": scaling}


def _write_partial_rope(config: ModelConfig) -> dict[str, Any]:
    part = (config.rotary_dim or config.head_dim) / config.head_dim
    return {**_write_rope(config), "partial_rotary_factor": part}


ROPE = Trait({}, _rope, _write_rope)
PARTIAL_ROPE = Trait({"partial_rotary_factor": optional(PARTIAL)}, _partial_rope, _write_partial_rope)

BIAS = {(False, False): False, (True, False): "attention", (False, True): "ffn", (True, True): True}  # by the two flags
ATTENTION_BIAS = Trait(
    {},
    lambda values: {"bias": BIAS[values.get("attention_bias", False), False]},
    lambda config: {"attention_bias": config.bias == "attention"},
)
BIASES = Trait(
    {},
    lambda values: {"bias": BIAS[values.get("attention_bias", False), values.get("mlp_bias", False)]},
    lambda config: {"attention_bias": config.bias in (True, "attention"), "mlp_bias": config.bias in (True, "ffn")},
)
WINDOW = Trait(
    {},
    lambda values: {"sliding_window": values.get("sliding_window")},
    lambda config: {"sliding_window": config.sliding_window},
)

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = Kind(
    lambda value: isinstance(value, list) and all(each in (SLIDING, FULL) for each in value if isinstance(each, str))
    and all(isinstance(each, str) for each in value),
    f"must list {SLIDING!r} or {FULL!r} for each layer",
)  # fmt: skip


def layer_windows(unsaid: Callable[[Values, int], bool], may_be_off: bool = True) -> Trait:
    """Sliding windows in some layers.

    Parameters
    ----------
    unsaid : function
        Whether layer i has a window, where a config.json has no ``layer_types``.
    may_be_off : bool
        ``use_sliding_window`` must be true for windows.
    """

    def read(values: Values) -> dict[str, Any]:
        n, size = values["num_hidden_layers"], values.get("sliding_window")
        types = values.get("layer_types") or [SLIDING if unsaid(values, i) else FULL for i in range(n)]
        if len(types) != n:
            raise ValueError(f"layer_types has {len(types)} entries, but num_hidden_layers is {n}")
        layers = tuple(i for i, kind in enumerate(types) if kind == SLIDING)
        is_on = values.get("use_sliding_window", False) if may_be_off else True
        return {"sliding_window": size, "window_layers": layers} if layers and is_on and size else {}

    def write(config: ModelConfig) -> dict[str, Any]:
        every = range(config.n_layers) if config.sliding_window else ()
        layers = config.window_layers or every
        values = {
            "sliding_window": config.sliding_window,
            "layer_types": [SLIDING if i in layers else FULL for i in range(config.n_layers)],
        }
        flags = {"use_sliding_window": bool(config.sliding_window), "max_window_layers": min(layers, default=config.n_layers)}
        return values | (flags if may_be_off else {})

    flags = {"use_sliding_window": FLAG} if may_be_off else {}
    return Trait({"layer_types": optional(LAYER_TYPES), "max_window_layers": whole(), **flags}, read, write)


def _layers_with_rope(values: Values) -> dict[str, Any]:
    n, every = values["num_hidden_layers"], values["no_rope_layer_interval"]
    flags = values.get("no_rope_layers")
    flags = [(i + 1) % every != 0 for i in range(n)] if flags is None else flags[:n]
    if len(flags) != n or not any(flags):
        raise ValueError(f"no_rope_layers is {as_json(flags)}, but one number for each of {n} layers is needed, not all 0")
    return {"rope_layers": tuple(i for i, flag in enumerate(flags) if flag)}


NO_ROPE_LAYERS = Trait(
    {
        "no_rope_layers": optional(
            Kind(lambda value: LIST.fits(value) and all(map(whole(0, 1).fits, value)), "must be a list of 0 and 1")
        ),
        "no_rope_layer_interval": whole(1),
    },
    _layers_with_rope,
    lambda config: {"no_rope_layers": [int(i in (config.rope_layers or (i,))) for i in range(config.n_layers)]},
)

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
        Names of a block's parts, where they are not Llama's. Parts with one name are stacked in one tensor.
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


QWEN_WINDOWS = layer_windows(lambda values, i: i >= values["max_window_layers"])
QWEN = dict(max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096, max_window_layers=28)
SMOL_WINDOWS = layer_windows(lambda values, i: i not in _layers_with_rope(values)["rope_layers"])
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
        dict(max_position_embeddings=4096, rms_norm_eps=1e-5),
        names=FUSED,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        {"norm_placement": "after", "qk_norm": "rms_width"},
        (ROPE, ATTENTION_BIAS),
        dict(rms_norm_eps=1e-5),
        names=NORMS_AFTER,
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
    wanted = replace(config, family=None, rope_layout=config.rope_layout if config.rotary_dim else "half")
    for kind in sorted(FAMILIES, key=lambda kind: kind != config.family):
        if config.dim % config.n_heads and FAMILIES[kind].whole_heads:
            continue
        try:
            if _read(_written(config, kind), kind) == wanted:
                return kind
        except ValueError:  # some part of it has no place there
            continue
    return None


def is_llama(config: ModelConfig) -> bool:
    """Whether `LlamaForCausalLM` computes the same. It divides `dim` by the heads even if `head_dim` is given."""
    return family_of(config) == "llama"


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
    return {name: _huggingface_name(name, names) for name in parameter_shapes(config)}


def _huggingface_name(name: str, names: Mapping[str, str]) -> str:
    kind = "bias" if name.endswith("_bias") else "weight"
    name = name.removesuffix("_bias")
    if not name.startswith("blocks."):
        return f"{NAMES[name]}.{kind}"
    _, i, short = name.split(".")
    return f"model.layers.{i}.{names[short]}.{kind}"
