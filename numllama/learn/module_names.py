"""The names that golden vectors have for what the modules of a PyTorch model compute.

A table maps a module to the name of its output, or of its input and output; ``*`` is the number of a layer. The name of a weight
follows from that of its module's output.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from numllama.errors import listed

Names = Mapping[str, str | tuple[str | None, str | None]]


class by_token(str):
    """The name of a value of heads that a module has by token, (B, T, H·D) or (B, T, H, D); it is stored as (B, H, T, D)."""


HUGGING_FACE: Names = {
    "embed_tokens": ("tokens", "embedding"),
    "layers.*.input_layernorm": "layer.*.attn_norm",
    "layers.*.self_attn.q_proj": "layer.*.q",
    "layers.*.self_attn.k_proj": "layer.*.k",
    "layers.*.self_attn.v_proj": "layer.*.v",
    "layers.*.self_attn.q_norm": by_token("layer.*.q_norm"),
    "layers.*.self_attn.k_norm": by_token("layer.*.k_norm"),
    "layers.*.self_attn.o_proj": (by_token("layer.*.head_outputs"), "layer.*.attn_out"),
    "layers.*.post_attention_layernorm": ("layer.*.after_attention", "layer.*.ffn_norm"),
    "layers.*.mlp.gate_proj": "layer.*.gate",
    "layers.*.mlp.up_proj": "layer.*.up",
    "layers.*.mlp.down_proj": ("layer.*.swiglu", "layer.*.ffn_out"),
    "layers.*": "layer.*.after_ffn",
    "norm": "norm",
    "lm_head": "logits",
}
META: Names = {
    "tok_embeddings": ("tokens", "embedding"),
    "layers.*.attention_norm": "layer.*.attn_norm",
    "layers.*.attention.wq": "layer.*.q",
    "layers.*.attention.wk": "layer.*.k",
    "layers.*.attention.wv": "layer.*.v",
    "layers.*.attention.wo": (by_token("layer.*.head_outputs"), "layer.*.attn_out"),
    "layers.*.ffn_norm": ("layer.*.after_attention", "layer.*.ffn_norm"),
    "layers.*.feed_forward.w1": "layer.*.gate",
    "layers.*.feed_forward.w3": "layer.*.up",
    "layers.*.feed_forward.w2": ("layer.*.swiglu", "layer.*.ffn_out"),
    "layers.*": "layer.*.after_ffn",
    "norm": "norm",
    "output": "logits",
}
WRAPPED = r"(?:.*\.)?"  # a table also fits a model that is part of another module
WEIGHTS = {"embedding": "embed", "norm": "norm", "logits": "head"}  # by the output of their module
WEIGHTS |= {f"layer.*.{name}": f"blocks.*.{name}" for name in ("attn_norm", "q_norm", "k_norm", "ffn_norm")}
WEIGHTS |= {f"layer.*.{name}": f"blocks.*.w{name}" for name in "qkv"}
WEIGHTS |= {"layer.*.attn_out": "blocks.*.wo", "layer.*.ffn_out": "blocks.*.w_down"}
WEIGHTS |= {"layer.*.gate": "blocks.*.w_gate", "layer.*.up": "blocks.*.w_up"}


class Named(NamedTuple):
    """Modules by their names in a model, with the names of their inputs and outputs; parameters, with their own."""

    modules: dict[str, tuple[str | None, str | None]]
    parameters: dict[str, str]


def named(model: Any, names: Names | None) -> Named:
    """What `names` says of a model's modules and parameters; by default the table that names all parameters.

    Raises
    ------
    ValueError
        If a name fits no module and no parameter, or if no table fits.
    """
    if names is not None:
        found, unknown = _matched(model, names)
        if unknown:
            raise ValueError(f"{type(model).__name__} has no module or parameter {listed(unknown)}")
        return found
    unnamed = []
    for table in (HUGGING_FACE, META):
        found, _ = _matched(model, table, WRAPPED)
        unnamed.append([name for name, _ in model.named_parameters() if name not in found.parameters])
        if found.parameters and not unnamed[-1]:
            return found
    missing = listed(min(unnamed, key=len)[:1]) or "none"
    raise ValueError(f"no table has all parameters of {type(model).__name__}, such as {missing}: pass names={{module: name}}")


def _matched(model: Any, names: Names, before: str = "") -> tuple[Named, list[str]]:
    """What `names` says of a model, and those that say nothing."""
    inputs = {pattern: None if isinstance(given, str) else given[0] for pattern, given in names.items()}
    outputs = {pattern: given if isinstance(given, str) else given[1] for pattern, given in names.items()}
    parameters = {pattern: name for pattern, name in outputs.items() if name}
    for pattern, name in outputs.items():
        if name in WEIGHTS:
            parameters |= {f"{pattern}.weight": WEIGHTS[name], f"{pattern}.bias": f"{WEIGHTS[name]}_bias"}
    modules = _matches(names, (name for name, _ in model.named_modules()), before)
    weights = _matches(parameters, (name for name, _ in model.named_parameters()), before)
    used = {pattern for pattern, _ in [*modules.values(), *weights.values()]}
    return Named(
        {name: (_numbered(inputs[p], number), _numbered(outputs[p], number)) for name, (p, number) in modules.items()},
        {name: str(_numbered(parameters[p], number)) for name, (p, number) in weights.items()},
    ), [pattern for pattern in names if pattern not in used]


def _matches(patterns: Iterable[str], there: Iterable[str], before: str) -> dict[str, tuple[str, str]]:
    """Each name that a pattern fits, with the pattern and the number that stands for ``*``."""
    expressions = {pattern: re.compile(before + re.escape(pattern).replace(r"\*", r"(\d+)")) for pattern in patterns}
    found = {name: (pattern, e.fullmatch(name)) for name in there for pattern, e in expressions.items() if e.fullmatch(name)}
    return {name: (pattern, (*match.groups(), "*")[0]) for name, (pattern, match) in found.items() if match}


def _numbered(name: str | None, number: str) -> str | None:
    return name and type(name)(name.replace("*", number))
