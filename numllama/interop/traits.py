"""Traits: the parts of a config.json that a family's models differ in, each with its reading and its writing.

    sliding_window, layer_types, ...    <->    sliding_window, window_layers
On the left stand fields of a Hugging Face config.json, on the right those of a ModelConfig.
:mod:`numllama.interop.families` says which family has which traits.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from numllama.model import ModelConfig
from numllama.model.parameters import MOST_LAYERS
from numllama.storage.fields import (
    FLAG,
    LIST,
    OBJECT,
    POSITIVE,
    Kind,
    as_json,
    check,
    is_number,
    number,
    one_of,
    only,
    optional,
    refuse_unknown,
    whole,
)

Values = Mapping[str, Any]  # of a config.json
WHOLE, PARTIAL = only(1, None), number(lambda value: 0 < value <= 1, "must lie in (0, 1]")


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


def _rope_fields(values: Values) -> dict[str, Any]:
    """The fields of RoPE: in ``rope_parameters``, or in ``rope_theta`` and ``rope_scaling`` as before transformers 5."""
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    rope = {"rope_type": rope.get("type", "default"), "rope_theta": values.get("rope_theta", 10000.0), **rope}
    rope.pop("type", None)
    return rope


def _rope(values: Values) -> dict[str, Any]:
    """RoPE's base and scaling.

    For ``dynamic`` scaling ``max_position_embeddings`` is the original length, and the model supports `factor` times as many.
    """
    rope = _rope_fields(values)
    check(rope, {"partial_rotary_factor": WHOLE}, as_json)
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


PHI_3_ROPES = {"default": "default", **dict.fromkeys(("longrope", "su", "yarn"), "longrope")}  # older files say su or yarn


def _partial_rope(values: Values) -> dict[str, Any]:
    """The same in Phi 3, where RoPE may turn only the first components of a head, and longrope alone extends the context."""
    rope, share = _rope_fields(values), values["hidden_size"] // values["num_attention_heads"]
    check(rope, {"rope_type": one_of(*PHI_3_ROPES)}, as_json, "rope_scaling's ")
    check(rope, {"partial_rotary_factor": optional(PARTIAL)}, as_json)
    rope["rope_type"] = PHI_3_ROPES[rope["rope_type"]]
    if rope["rope_type"] == "longrope":
        check(values, {"head_dim": only(share, None)}, as_json)        # transformers counts its lists like this
    part = rope.pop("partial_rotary_factor", None) or values.get("partial_rotary_factor") or 1.0
    head_dim = values.get("head_dim") or share
    return {**_rope({**values, "rope_scaling": rope}), "rotary_dim": None if part == 1 else int(head_dim * part)}


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
    values = {**_write_rope(config), "partial_rotary_factor": part}
    if original := (config.rope_scaling or {}).get("original_max_position_embeddings"):
        values["original_max_position_embeddings"] = int(original)  # Phi 3 reads it here only
    return values


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
WINDOW_OR_OFF = Trait(
    {"use_sliding_window": FLAG},
    lambda values: WINDOW.read(values) if values.get("use_sliding_window", False) else {},
    lambda config: {**WINDOW.write(config), "use_sliding_window": config.sliding_window is not None},
)

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = Kind(
    lambda value: LIST.fits(value) and all(isinstance(each, str) and each in (SLIDING, FULL) for each in value),
    f"must list {SLIDING!r} or {FULL!r} for each layer",
)


def count_layers(values: Values) -> int:
    """The number of layers, checked before a list with one entry for each is made."""
    n = values["num_hidden_layers"]
    if n > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {n:,}, but a model of more than {MOST_LAYERS:,} layers cannot be built")
    return n


def layer_windows(unsaid: Callable[[Values, range], Iterable[int]], may_be_off: bool = True) -> Trait:
    """Sliding windows in some layers.

    Parameters
    ----------
    unsaid : function
        The layers with a window where a config.json has no ``layer_types``, out of all layers.
    may_be_off : bool
        ``use_sliding_window`` must be true for windows.
    """

    def read(values: Values) -> dict[str, Any]:
        n, size, types = count_layers(values), values.get("sliding_window"), values.get("layer_types")
        if types and len(types) != n:
            raise ValueError(f"layer_types has {len(types)} entries, but num_hidden_layers is {n}")
        said = (i for i, kind in enumerate(types or ()) if kind == SLIDING)
        layers = tuple(said if types else unsaid(values, range(n)))
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


def _write_windows(config: ModelConfig) -> dict[str, Any]:
    """A window must be a number, even if no layer has one."""
    return {**ALTERNATING.write(config), "sliding_window": config.sliding_window or config.max_seq_len}


QWEN_WINDOWS = layer_windows(lambda values, every: every[values["max_window_layers"] :])
SMOL_WINDOWS = layer_windows(lambda values, every: set(every) - set(_layers_with_rope(values)["rope_layers"]))
ALTERNATING = layer_windows(lambda values, every: every[::2], may_be_off=False)
LAYER_WINDOWS = ALTERNATING._replace(write=_write_windows)


def _layers_with_rope(values: Values) -> dict[str, Any]:
    n, every = count_layers(values), values["no_rope_layer_interval"]
    flags = values.get("no_rope_layers") or [int((i + 1) % every != 0) for i in range(n)]
    layers = tuple(i for i, flag in enumerate(flags[:n]) if flag)
    if len(flags) < n or not layers:
        raise ValueError(f"no_rope_layers is {as_json(flags)}, but one number for each of {n} layers is needed, not all 0")
    return {"rope_layers": layers}


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

EMBED_SCALE = Trait({}, lambda values: {"embed_scale": math.sqrt(values["hidden_size"])}, lambda config: {})
SCORES_SCALE = Trait(
    {"query_pre_attn_scalar": POSITIVE},
    lambda values: {"attn_scale": values["query_pre_attn_scalar"] ** -0.5},
    lambda config: {"query_pre_attn_scalar": round((config.attn_scale or config.head_dim**-0.5) ** -2)},
)


def soft_cap(ours: str, name: str) -> Trait:
    """The cap of attention scores or logits; null is none."""
    kinds = {name: optional(POSITIVE)}
    return Trait(kinds, lambda values: {ours: values.get(name)}, lambda config: {name: getattr(config, ours)})


SCORES_CAP = soft_cap("attn_softcap", "attn_logit_softcapping")
LOGIT_CAP = soft_cap("logit_softcap", "final_logit_softcapping")


def _two_ropes(values: Values) -> dict[str, Any]:
    """RoPE of the layers without a window, and the base of those with one: together, or as before transformers 5 apart."""
    both = values.get("rope_parameters") or {}
    refuse_unknown(both, (FULL, SLIDING), "rope_parameters has unknown key(s)")
    check(both, dict.fromkeys((FULL, SLIDING), optional(OBJECT)), as_json, "rope_parameters' ")
    rope = {**(both.get(FULL) or {}), **(values.get("rope_scaling") or {})}
    local = {"rope_theta": values["rope_local_base_freq"], **(both.get(SLIDING) or {})}
    check(local, {**dict.fromkeys(("rope_type", "type"), only("default")), "rope_theta": POSITIVE}, as_json, f"{SLIDING}'s ")
    windows = GEMMA_3_WINDOWS.read(values)
    bases = {"local_rope_theta": local["rope_theta"]} if windows else {}
    return {**_rope({**values, "rope_scaling": rope, "rope_parameters": None}), **windows, **bases}


def _write_two_ropes(config: ModelConfig) -> dict[str, Any]:
    local = {} if config.local_rope_theta is None else {"rope_local_base_freq": config.local_rope_theta}
    return {**_write_rope(config), **_write_windows(config), **local}


GEMMA_3_WINDOWS = layer_windows(
    lambda values, every: (i for i in every if (i + 1) % values["sliding_window_pattern"]), may_be_off=False
)
TWO_ROPES = Trait(
    {**GEMMA_3_WINDOWS.kinds, "rope_local_base_freq": POSITIVE, "sliding_window_pattern": whole(1)}, _two_ropes, _write_two_ropes
)


def renamed(**fields: tuple[str, Kind]) -> Trait:
    """Fields of a ModelConfig that a config.json has by another name: each with that name, and the values allowed."""
    return Trait(
        dict(fields.values()),
        lambda values: {field: values[name] for field, (name, _) in fields.items()},
        lambda config: {name: getattr(config, field) for field, (name, _) in fields.items()},
    )


def n_experts(names: tuple[str, ...], default: int) -> Trait:
    """The number of experts, which has several names; the first of them is written."""
    return Trait(
        dict.fromkeys(names, whole(1)),
        lambda values: {"n_experts": next((values[name] for name in names if name in values), default)},
        lambda config: {names[0]: config.n_experts},
    )


ROUTING = renamed(
    n_experts_per_token=("num_experts_per_tok", whole(1)),
    router_aux_loss=("output_router_logits", FLAG),
    router_aux_loss_coef=("router_aux_loss_coef", number(lambda value: value >= 0, "must not be negative")),
)
QWEN_EXPERTS = renamed(ffn_dim=("moe_intermediate_size", whole(1)), router_normalised=("norm_topk_prob", FLAG))
