"""Names that other implementations give to weights, values and gradients, as names of golden vectors.

    model.layers.0.self_attn.q_proj.weight         weights/blocks.0.wq            Hugging Face
    layers.0.attention.wq                          values/layer.0.q               Meta: a module stands for its output
    grad/transformer.h.0.attn.proj.weight          d_weights/blocks.0.wo          litgpt, nanoGPT
    wq                                             weights/blocks.0.wq, ...       llama2.c: all layers in one array
    layer.0.q, d_layer.0.q, blocks.0.wq.grad       values/, d_values/, d_weights/ short names of golden vectors
"""

import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from numllama.errors import DataError, shown
from numllama.learn.equations import Equations, gradient_of
from numllama.learn.mistakes.mistake import short_name

FEW = 3  # names in a sentence
TRAINED = ("after/", "optimizer/")
OTHERS = (*TRAINED, "decoding/", "filters/")  # golden vectors beside the model's values
MODULES = {  # a module's name behind its layer: its weight, and its output
    "self_attn.q_proj|attention.wq|attn.q_proj": ("wq", "q"),
    "self_attn.k_proj|attention.wk|attn.k_proj": ("wk", "k"),
    "self_attn.v_proj|attention.wv|attn.v_proj": ("wv", "v"),
    "self_attn.o_proj|attention.wo|attn.proj|attn.c_proj|attn.o_proj": ("wo", "attn_out"),
    "self_attn.q_norm|attn.norm_q|attn.q_norm": ("q_norm", "q_norm"),
    "self_attn.k_norm|attn.norm_k|attn.k_norm": ("k_norm", "k_norm"),
    "self_attn|attention|attn": ("", "attn_out"),
    "input_layernorm|attention_norm|norm_1|ln_1|rms_1": ("attn_norm", "attn_norm"),
    "post_attention_layernorm|ffn_norm|norm_2|ln_2|rms_2": ("ffn_norm", "ffn_norm"),
    "mlp.gate_proj|feed_forward.w1|mlp.fc_1|mlp.c_fc1|mlp.w1": ("w_gate", "gate"),
    "mlp.up_proj|feed_forward.w3|mlp.fc_2|mlp.c_fc2|mlp.w3": ("w_up", "up"),
    "mlp.down_proj|feed_forward.w2|mlp.proj|mlp.c_proj|mlp.w2": ("w_down", "ffn_out"),
    "mlp|feed_forward": ("", "ffn_out"),
    "": ("", "after_ffn"),
}
OUTER = {
    "model.embed_tokens|embed_tokens|tok_embeddings|transformer.wte|wte": ("embed", "embedding"),
    "model.norm|norm|transformer.ln_f|transformer.norm_f|ln_f": ("norm", "norm"),
    "lm_head|output": ("head", "logits"),
    "loss": ("", "loss"),
}
STACKED = {  # llama2.c: one array for all layers
    "rms_att_weight": "attn_norm", "rms_ffn_weight": "ffn_norm", "w1": "w_gate", "w2": "w_down", "w3": "w_up",
    **{name: name for name in ("wq", "wk", "wv", "wo")},
}  # fmt: skip
SINGLE = {"token_embedding_table": "embed", "rms_final_weight": "norm", "wcls": "head"}
LAYER = re.compile(r"(?:model\.|transformer\.)?(?:layers|h|blocks)\.(\d+)(?:\.(.*))?")
_BY_MODULE = {module: pair for modules, pair in MODULES.items() for module in modules.split("|")}
_BY_OUTER = {module: pair for modules, pair in OUTER.items() for module in modules.split("|")}


def named_tensors(
    tensors: Mapping[str, np.ndarray], equations: Equations, names: Mapping[str, str] | None = None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors by the names of golden vectors, and the names that mean nothing here.

    Parameters
    ----------
    tensors : mapping of str to array
    equations : Equations
    names : mapping of str to str, optional
        Names of a dump: what they are called in golden vectors.

    Raises
    ------
    DataError
        If two tensors are the same value, or if `names` has a name that does not exist.
    """
    found: dict[str, np.ndarray] = {}
    unknown = []
    known = known_names(equations)
    for name, wanted in (names or {}).items():
        if name not in tensors:
            raise DataError(f"the map of names has {shown(name)}, but the dump does not")
        if not is_known(wanted, known):
            raise DataError(f"the map of names calls {shown(name)} {shown(wanted)}, which golden vectors do not have")
    for name, array in tensors.items():
        meant = {names[name]: array} if names and name in names else meaning(name, array, equations.config.n_layers, known)
        if not meant:
            unknown.append(name)
        for each, value in meant.items():
            if each in found:
                raise DataError(f"the dump has {each} twice: once as {shown(name)}")
            found[each] = value
    return found, unknown


def with_guess(name: str, equations: Equations) -> str:
    """An unknown name, and the known one that is nearly the same."""
    known = known_names(equations)
    shorts = {each.removeprefix("values/").removeprefix("weights/") for each in known} | known
    near = difflib.get_close_matches(name, sorted(shorts), 1, 0.9)
    return f"{name} (did you mean {near[0]}?)" if near else name


def known_names(equations: Equations) -> set[str]:
    """Every value, weight and gradient, and the batch."""
    values = set(equations.rows) | {source for row in equations.rows.values() for source in row.inputs.values()}
    real = {name for name in values if name.startswith(("values/", "weights/"))}
    return real | {gradient_of(name) for name in real} | {"rope/cos", "rope/sin", "positions", "tokens", "targets", "segments"}


def is_known(name: str, known: set[str]) -> bool:
    return name in known or name.startswith(OTHERS)


def meaning(name: str, array: np.ndarray, n_layers: int, known: set[str]) -> dict[str, np.ndarray]:
    """What a tensor is, by the names of golden vectors; empty if its name means nothing."""
    if is_known(name, known):
        return {name: array}
    plain, gradient = _without_gradient(name)
    kind = "d_" if gradient else ""
    if plain in STACKED and array.ndim and len(array) == n_layers:
        return {f"{kind}weights/blocks.{i}.{STACKED[plain]}": array[i] for i in range(n_layers)}
    candidates = (f"{part}/{plain}" for part in ("values", "weights", "rope"))
    found = next((candidate for candidate in candidates if candidate in known), None)
    if found is None:
        found = f"weights/{SINGLE[plain]}" if plain in SINGLE else _by_module(plain)
    return {kind + found: array} if found is not None and kind + found in known else {}


def _without_gradient(name: str) -> tuple[str, bool]:
    """A name without what says that it is a gradient, and whether it is one."""
    plain = re.sub(r"^(grads?|gradients?)[/.]|^d_(?!values|weights)|[./]grad$", "", name)
    return plain, plain != name


def _by_module(name: str) -> str | None:
    """The weight of a module, or the module's output."""
    module = re.sub(r"\.(weight|output|out)$", "", name)
    is_weight = name.endswith(".weight")
    in_layer = LAYER.fullmatch(module)
    weight, value = (_BY_MODULE.get(in_layer[2] or "") if in_layer else _BY_OUTER.get(module)) or ("", "")
    if is_weight:
        return (f"weights/blocks.{in_layer[1]}.{weight}" if in_layer else f"weights/{weight}") if weight else None
    return (f"values/layer.{in_layer[1]}.{value}" if in_layer else f"values/{value}") if value else None


def readable(name: str) -> str:
    """A name as a sentence has it: "layer.0.q", "the gradient of layer.0.q", "blocks.0.wq"."""
    value = name.removeprefix("d_")
    plain = value.removeprefix("values/").removeprefix("weights/")
    if value.startswith("weights/") and short_name(value).endswith("norm"):  # its name is also a value's
        plain += " (the gain)"
    return f"the gradient of {plain}" if value != name else plain


def some(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
