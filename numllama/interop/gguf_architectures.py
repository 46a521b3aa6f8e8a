"""Architectures of GGUF files: a row for each ``general.architecture``, of what its values and its tensors mean.

A row lists what all models of an architecture share (`fields` of a ModelConfig), the traits that a file's values decide, and
what llama.cpp computes for it: biases, scalings of RoPE, which components RoPE pairs. A model is written as the architecture of
its family, or as a Llama, if that reads as its configuration again; otherwise the field that is lost is named.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from numllama.errors import shown
from numllama.interop.families import family_of, stored_name
from numllama.interop.gguf_rope import ROPE
from numllama.interop.traits import Trait, Values
from numllama.model import ModelConfig, parameter_shapes
from numllama.model.parameters import BIASED
from numllama.ops.rope_table import rope_table
from numllama.storage.fields import POSITIVE, Kind, as_json, check, only, require, whole

# Our field: the name behind that of the architecture, and the values allowed.
FIELDS = {
    "dim": ("embedding_length", whole(1)),
    "n_layers": ("block_count", whole(1)),
    "n_heads": ("attention.head_count", whole(1)),
    "ffn_dim": ("feed_forward_length", whole(1)),
    "max_seq_len": ("context_length", whole(1)),
    "norm_eps": ("attention.layer_norm_rms_epsilon", POSITIVE),
    "n_kv_heads": ("attention.head_count_kv", whole(1)),
    "head_dim": ("attention.key_length", whole(1)),
    "rope_theta": ("rope.freq_base", POSITIVE),
}
OPTIONAL = ("n_kv_heads", "head_dim", "rope_theta")
# The other values: those that are checked, and those that say nothing new.
OTHERS = {
    "attention.value_length": whole(1), "rope.dimension_count": whole(1), "vocab_size": whole(1),
    "attention.causal": only(True), "use_parallel_residual": only(False), "tensor_data_layout": only("Meta AI original pth"),
}  # fmt: skip
NAMES = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
BLOCK_NAMES = {
    "attn_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm", "w_gate": "ffn_gate", "w_up": "ffn_up", "w_down": "ffn_down", "ffn_post_norm": "post_ffw_norm",
    "router": "ffn_gate_inp", "experts_gate": "ffn_gate_exps", "experts_up": "ffn_up_exps", "experts_down": "ffn_down_exps",
}  # fmt: skip
FUSED = {**dict.fromkeys(("wq", "wk", "wv"), "attn_qkv"), **dict.fromkeys(("w_gate", "w_up"), "ffn_up")}
# What a file does not say, because only training needs it.
UNSAID = ("family", "dropout", "init", "init_std", "router_aux_loss", "router_aux_loss_coef")

# ------------------------------------------------------------------------------------------------ traits


def _head_dim(values: Values) -> int:
    return values.get("attention.key_length") or values["embedding_length"] // values["attention.head_count"]


def _experts(values: Values) -> dict[str, Any]:
    if not values.get("expert_count"):
        return {}
    require(values, ("expert_used_count",), "the model's description")
    return {"ffn": "moe", "n_experts": values["expert_count"], "n_experts_per_token": values["expert_used_count"]}


# llama.cpp divides the weights of a token's experts by their sum in all of these architectures.
EXPERTS = Trait(
    {
        "expert_count": whole(), "expert_used_count": whole(), "expert_gating_func": only(1),
        "expert_weights_norm": only(True), "expert_weights_scale": only(1),
    },
    _experts,
    lambda c: {"expert_count": c.n_experts, "expert_used_count": c.n_experts_per_token} if c.ffn == "moe" else {},
)  # fmt: skip
EXPERT_WIDTH = Trait(
    {"expert_feed_forward_length": whole(1)},
    lambda values: {"ffn_dim": values["expert_feed_forward_length"]},
    lambda c: {"expert_feed_forward_length": c.ffn_dim},
)
NO_ROPE_LAYERS = Trait(
    {}, lambda values: {"rope_layers": tuple(i for i in range(values["block_count"]) if (i + 1) % 4)}, lambda c: {}
)
PARTIAL_ROPE = Trait({}, lambda values: {"rotary_dim": values.get("rope.dimension_count")}, lambda c: {})
WINDOW = Trait(
    {"attention.sliding_window": whole()},
    lambda values: {"sliding_window": values.get("attention.sliding_window") or None},
    lambda c: {"attention.sliding_window": c.sliding_window or 0},
)
EMBED_SCALE = Trait({}, lambda values: {"embed_scale": math.sqrt(values["embedding_length"])}, lambda c: {})
PATTERN = Kind(
    lambda value: isinstance(value, bool | np.bool_)
    or whole().fits(value)
    or (isinstance(value, np.ndarray) and value.dtype == bool),
    "must be a whole number, or true or false for each layer",
)


def layer_windows(period: int, size: int, local_theta: float | None = None) -> Trait:
    """Sliding windows in all layers but each `period`-th.

    Parameters
    ----------
    period, size : int
        Where a file does not say them; size 0 is no window.
    local_theta : float, optional
        The base of RoPE in the layers with a window, where a file does not say it. Default that of the other layers.
    """

    def read(values: Values) -> dict[str, Any]:
        n, window = values["block_count"], values.get("attention.sliding_window", size)
        every = values.get("attention.sliding_window_pattern", period)
        if isinstance(every, np.ndarray) and len(every) != n:
            raise ValueError(f"attention.sliding_window_pattern has {len(every)} entries, but there are {n} layers")
        flags = every if isinstance(every, np.ndarray) else [_has_window(i, every) for i in range(n)]
        layers = tuple(i for i in range(n) if flags[i])
        if not (layers and window):
            return {}
        local = {} if local_theta is None else {"local_rope_theta": values.get("rope.freq_base_swa", local_theta)}
        return {"sliding_window": window, "window_layers": layers, **local}

    def write(config: ModelConfig) -> dict[str, Any]:
        if config.sliding_window is None:
            return {}
        every, layers = range(config.n_layers), config.window_layers or range(config.n_layers)
        flags = [i in layers for i in every]
        fitting = (p for p in range(2, config.n_layers + 2) if flags == [_has_window(i, p) for i in every])
        local = {} if config.local_rope_theta is None else {"rope.freq_base_swa": config.local_rope_theta}
        return {
            "attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": next(fitting, period), **local,
        }  # fmt: skip

    local = {} if local_theta is None else {"rope.freq_base_swa": POSITIVE}
    return Trait({"attention.sliding_window": whole(), "attention.sliding_window_pattern": PATTERN, **local}, read, write)


def _has_window(layer: int, period: int | bool) -> bool:
    """Whether a layer has a window if each `period`-th has none; 0 or true is all, false is none."""
    if isinstance(period, bool | np.bool_):
        return bool(period)
    return period == 0 or layer % period < period - 1


def scores_scale(n_layers: int) -> Trait:
    """The factor of attention scores, from the size of a head; with `n_layers` layers (27B) from the width by the heads."""

    def read(values: Values) -> dict[str, Any]:
        width = values["embedding_length"] // values["attention.head_count"]
        return {"attn_scale": (width if values["block_count"] == n_layers else _head_dim(values)) ** -0.5}

    return Trait({}, read, lambda c: {})


def soft_cap(ours: str, name: str, default: float | None) -> Trait:
    """The cap of attention scores or logits."""

    def write(config: ModelConfig) -> dict[str, Any]:
        cap = getattr(config, ours)
        return {} if cap is None else {name: cap}

    return Trait({name: POSITIVE}, lambda values: {ours: values.get(name, default)}, write)


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Attributes
    ----------
    families : tuple of str
        The values of Hugging Face's ``model_type`` that are written so; None is a model that no family of theirs has.
    fields : dict
        Fields of a ModelConfig that all models share.
    traits : tuple of Trait
        Beside RoPE's, which all have.
    required : tuple of str
        Values that a file must have beside those that all need.
    names : dict
        Names of a block's parts, where they are not those of most. Parts with one name are stacked in one tensor.
    turns_neighbours : bool
        llama.cpp's RoPE turns neighbouring components, not halves: rows of wq and wk are reordered.
    biases : tuple
        Values of ``ModelConfig.bias`` that llama.cpp computes, the largest first.
    scalings : tuple of str
        Types of RoPE scaling that llama.cpp computes.
    whole_heads : bool
        The heads together must be as wide as the model.
    """

    families: tuple[str | None, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    traits: tuple[Trait, ...] = ()
    required: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    turns_neighbours: bool = False
    biases: tuple[bool | str, ...] = (False,)
    scalings: tuple[str, ...] = ("linear", "yarn")
    whole_heads: bool = False


RMS = {"qk_norm": "rms"}
GEMMA = {"norm": "rmsnorm1p", "ffn": "geglu"}
TIED, UNTIED = {"tie_embeddings": True}, {"tie_embeddings": False}
ARCHITECTURES = {
    "llama": Architecture(
        (None, "llama", "mistral", "mixtral"),
        traits=(EXPERTS,),
        turns_neighbours=True,
        biases=(True, "attention", "ffn", "qkv", False),
        scalings=("linear", "yarn", "llama3", "longrope"),
    ),
    "qwen2": Architecture(("qwen2",), biases=("qkv",), whole_heads=True),
    "qwen3": Architecture(("qwen3",), RMS),
    "qwen3moe": Architecture(
        ("qwen3_moe",), RMS, (EXPERTS, EXPERT_WIDTH), ("expert_count", "expert_used_count", "expert_feed_forward_length")
    ),
    "smollm3": Architecture(("smollm3",), traits=(NO_ROPE_LAYERS,), turns_neighbours=True),
    "phi3": Architecture(
        ("phi3",), traits=(PARTIAL_ROPE, WINDOW), names=FUSED, scalings=("linear", "yarn", "longrope"), whole_heads=True
    ),
    "olmo2": Architecture(("olmo2",), {"norm_placement": "after", "qk_norm": "rms_width", **UNTIED}, whole_heads=True),
    "gemma": Architecture(("gemma",), GEMMA | TIED, (EMBED_SCALE,)),
    "gemma2": Architecture(
        ("gemma2",),
        {**GEMMA, **TIED, "norm_placement": "both"},
        (
            EMBED_SCALE, layer_windows(2, 4096), scores_scale(46),
            soft_cap("attn_softcap", "attn_logit_softcapping", 50.0), soft_cap("logit_softcap", "final_logit_softcapping", 30.0),
        ),
    ),
    "gemma3": Architecture(
        ("gemma3_text",),
        {**GEMMA, **RMS, "norm_placement": "both"},
        (EMBED_SCALE, layer_windows(6, 0, 1e4), scores_scale(62), soft_cap("logit_softcap", "final_logit_softcapping", None)),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ reading


def config_of(name: str, values: Values, shapes: Mapping[str, tuple[int, ...]], vectors: Mapping[str, np.ndarray]) -> ModelConfig:
    """The ModelConfig of a file; a ValueError names what numllama cannot honour.

    Parameters
    ----------
    name : str
        A row of the table.
    values : mapping
        By their names behind that of the architecture.
    shapes : mapping
        Of the tensors, by their names: those of the embedding, the head, and the first block's biases are enough.
    vectors : mapping
        The tensors that scale RoPE (:data:`numllama.interop.gguf_rope.TENSORS`).
    """
    row = ARCHITECTURES[name]
    traits = (ROPE, *row.traits)
    known = dict(FIELDS.values()) | OTHERS | {key: kind for trait in traits for key, kind in trait.kinds.items()}
    if unknown := values.keys() - known.keys():
        raise ValueError(f"the model needs {name}.{min(unknown)}, which numllama does not compute")
    check(values, known, as_json, f"{name}.")
    needed = [key for ours, (key, _) in FIELDS.items() if ours not in OPTIONAL]
    require(values, (*needed, *row.required), "the model's description")
    if (dim := values["embedding_length"]) < (n_heads := values["attention.head_count"]):
        raise ValueError(f"{name}.attention.head_count is {n_heads}, but the model is only {dim} wide")
    found = {ours: values[key] for ours, (key, _) in FIELDS.items() if key in values} | row.fields
    values = {"attention.key_length": _head_dim(values), "rope.freq_base": 10000.0, **values, **vectors}
    for trait in traits:
        found |= trait.read(values)
    embed = shapes.get("token_embd.weight", ())
    if len(embed) != 2:
        raise ValueError("it has no matrix token_embd.weight")
    found = {"tie_embeddings": "output.weight" not in shapes, **found, "vocab_size": embed[0], "bias": _bias(row, shapes)}
    config = ModelConfig(**found)
    _check_heads(name, config, values)
    return config if family_of(config) in row.families else replace(config, family=row.families[0])


def _bias(row: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> bool | str:
    """The largest set of biases that the first block has."""
    names = BLOCK_NAMES | row.names
    has = {bias: all(f"blk.0.{names[part]}.bias" in shapes for part in BIASED[bias]) for bias in row.biases}
    return next((bias for bias in row.biases if has[bias]), row.biases[-1])


def _check_heads(name: str, config: ModelConfig, values: Values) -> None:
    row, rotary_dim = ARCHITECTURES[name], config.rotary_dim or config.head_dim
    for key, size in (("attention.value_length", config.head_dim), ("rope.dimension_count", rotary_dim)):
        if values.get(key, size) != size:
            raise ValueError(f"{name}.{key} is {values[key]}, but only the head size, {size}, is supported")
    if row.whole_heads and config.n_heads * config.head_dim != config.dim:
        heads = f"{config.n_heads} heads of {config.head_dim}"
        raise ValueError(f"{heads} are not as wide as the model, {config.dim}, but in {name} they must be")
    kind = config.rope_scaling and config.rope_scaling["rope_type"]
    if kind and kind not in row.scalings:
        raise ValueError(f"RoPE is scaled by {kind!r}, but in {name} only {', '.join(row.scalings)} are supported")


# ------------------------------------------------------------------------------------------------ writing


def described(config: ModelConfig) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """What a file says of a model: the architecture, the values by their names behind it, and the vectors that scale RoPE.

    Raises
    ------
    ValueError
        If no architecture holds the model, or llama.cpp would compute something else.
    """
    family, errors = family_of(config), []
    own = next(name for name, row in ARCHITECTURES.items() if family in row.families)
    for name in dict.fromkeys((own, "llama")):
        try:
            return name, *_description(name, config)
        except (ValueError, OverflowError) as error:
            errors.append(error)
    raise ValueError(f"a GGUF file cannot hold this model: {errors[0]}") from errors[0]


def _description(name: str, config: ModelConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    values = {key: getattr(config, ours) for ours, (key, _) in FIELDS.items()}
    values |= {
        "vocab_size": config.vocab_size, "attention.value_length": config.head_dim,
        "rope.dimension_count": config.rotary_dim or config.head_dim,
    }  # fmt: skip
    for trait in (ROPE, *ARCHITECTURES[name].traits):
        values |= trait.write(config)
    typed = {key: _typed(value) for key, value in values.items()}
    vectors = {key: value for key, value in typed.items() if isinstance(value, np.ndarray)}
    typed = {key: value for key, value in typed.items() if key not in vectors}
    names = BLOCK_NAMES | ARCHITECTURES[name].names
    shapes = {"token_embd.weight": (config.vocab_size, config.dim)} | ({} if config.tie_embeddings else {"output.weight": ()})
    shapes |= {f"blk.0.{names[part]}.bias": () for part in BIASED[config.bias]}
    again = config_of(name, {key: _as_read(value) for key, value in typed.items()}, shapes, vectors)
    for ours, here, there in _differences(config, again):
        raise ValueError(f"{ours} is {shown(here)}, but in {name} it is {shown(there)}")
    return typed, vectors


def _typed(value: Any) -> Any:
    if isinstance(value, (str, np.ndarray)):
        return value
    return np.float32(value) if isinstance(value, float) else np.uint32(value)


def _as_read(value: Any) -> Any:
    """A value as a file gives it; a float32 becomes the shortest decimal that it may have been written from: 1e-05."""
    if isinstance(value, str):
        return value
    return float(str(value)) if value.dtype == np.float32 else value.item()


def _differences(config: ModelConfig, again: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """The fields that a file says otherwise, with the two values."""
    layout = config.rope_layout if config.rotary_dim else "half"
    a = replace(config, rope_layout=layout, attn_scale=config.attn_scale or config.head_dim**-0.5)
    b = replace(again, attn_scale=again.attn_scale or again.head_dim**-0.5)
    for each in fields(ModelConfig):
        ours, theirs = getattr(a, each.name), getattr(b, each.name)
        same = ours == theirs
        if isinstance(ours, float) and isinstance(theirs, float):
            same = math.isclose(ours, theirs, rel_tol=1e-6)
        if each.name == "rope_scaling" and not same:
            same = all(np.allclose(*tables, rtol=1e-5, atol=0) for tables in zip(_turns(a), _turns(b), strict=True))
        if not same and each.name not in UNSAID:
            yield each.name, ours, theirs


def _turns(config: ModelConfig) -> Iterator[np.ndarray]:
    """What a scaling does: the cosines and sines of the first position, in a short text and in the longest."""
    D = config.rotary_dim or config.head_dim
    for last in (1, config.max_seq_len):
        for table in rope_table(np.array([1, last]), D, config.rope_theta, config.rope_scaling, "float64"):
            yield table[0]


# ------------------------------------------------------------------------------------------------ names


def gguf_names(config: ModelConfig, name: str) -> dict[str, str]:
    """Our name of each parameter: its name in a file of an architecture. Stacked parameters have one name, in this order."""
    names = BLOCK_NAMES | ARCHITECTURES[name].names
    return {ours: stored_name(ours, NAMES, "blk", names) for ours in parameter_shapes(config)}


def more_in_file(config: ModelConfig, name: str) -> float:
    """How much larger a parameter's numbers are in a file: a gain of 1 + weight is stored, the weight here."""
    return 1.0 if config.norm == "rmsnorm1p" and name.endswith("norm") else 0.0
