"""RoPE's scaling in a GGUF file: values, and for some types a tensor of factors by which the frequencies are divided.

    linear      rope.scaling.type, factor
    yarn        the same, original_context_length, attn_factor
    llama3      rope_freqs.weight, from which the four numbers of a config.json are recovered
    longrope    original_context_length, attn_factor, rope_factors_short.weight, rope_factors_long.weight
The files that llama.cpp's converter writes of Phi 3 have no type: the tensors tell.
"""

import math
from collections.abc import Callable, Mapping
from math import pi
from typing import Any

import numpy as np

from numllama.errors import shown
from numllama.interop.traits import Trait, Values
from numllama.model import ModelConfig
from numllama.ops.rope_scaling import attention_factor
from numllama.storage.fields import FLAG, POSITIVE, TEXT, only, require, whole

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = (FACTORS, LONG, SHORT)
ORIGINAL = "rope.scaling.original_context_length"
KINDS = {
    "rope.scaling.type": TEXT, "rope.scaling.factor": POSITIVE, "rope.scale_linear": POSITIVE, ORIGINAL: whole(2),
    "rope.scaling.finetuned": FLAG, "rope.scaling.attn_factor": POSITIVE,
    "rope.scaling.yarn_ext_factor": only(1), "rope.scaling.yarn_attn_factor": only(1),
    "rope.scaling.yarn_beta_fast": only(32), "rope.scaling.yarn_beta_slow": only(1),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ reading


def _read(values: Values) -> dict[str, Any]:
    kind = values.get("rope.scaling.type", "linear")
    if kind not in READERS:
        raise ValueError(f"RoPE is scaled by {shown(kind)}, but only {', '.join(READERS)} are supported")
    rotary_dim = values.get("rope.dimension_count", values["attention.key_length"])
    for name in TENSORS:
        if name in values and len(values[name]) != rotary_dim // 2:
            raise ValueError(f"{name} has {len(values[name])} numbers, but RoPE turns {rotary_dim // 2} pairs")
        if name in values and not (np.isfinite(values[name]) & (values[name] > 0)).all():
            raise ValueError(f"{name} holds numbers by which frequencies cannot be divided")
    if LONG in values:
        kind = "longrope"
    scaling = READERS[kind](values)
    if FACTORS in values and (values[FACTORS] != 1).any():
        if scaling is not None:
            raise ValueError(f"RoPE is scaled by {kind!r} and by {FACTORS}, but only one of them is supported")
        scaling = recovered(values[FACTORS], rotary_dim, values["rope.freq_base"])
    factor = values.get("rope.scaling.attn_factor", 1.0)
    if factor != 1 and (scaling is None or scaling["rope_type"] not in ("yarn", "longrope")):
        raise ValueError(f"rope.scaling.attn_factor is {factor}, but only yarn and longrope have such a factor")
    return {"rope_scaling": scaling}


def _linear(values: Values) -> dict[str, Any] | None:
    factor = values.get("rope.scaling.factor", values.get("rope.scale_linear", 1.0))
    return None if factor == 1 else {"rope_type": "linear", "factor": factor}


def _yarn(values: Values) -> dict[str, Any] | None:
    original, factor = values.get(ORIGINAL, values["context_length"]), values.get("rope.scaling.factor", 1.0)
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    times = values.get("rope.scaling.attn_factor", 1.0)
    return scaling if times == 1 else {**scaling, "attention_factor": times * attention_factor(scaling)}


def _longrope(values: Values) -> dict[str, Any]:
    require(values, (LONG, SHORT, ORIGINAL))
    short, long = ([float(str(number)) for number in values[name].astype("float32")] for name in (SHORT, LONG))
    scaling = {
        "rope_type": "longrope", "factor": values["context_length"] / values[ORIGINAL], "short_factor": short,
        "long_factor": long, "original_max_position_embeddings": values[ORIGINAL],
    }  # fmt: skip
    factor = values.get("rope.scaling.attn_factor", 1.0)
    is_usual = math.isclose(factor, attention_factor(scaling), rel_tol=1e-6)
    return scaling if is_usual else {**scaling, "attention_factor": factor}


READERS: dict[str, Callable[[Values], dict[str, Any] | None]] = {
    "none": lambda values: None, "linear": _linear, "yarn": _yarn, "longrope": _longrope,
}  # fmt: skip


def recovered(factors: np.ndarray, D: int, theta: float) -> dict[str, Any]:
    """Llama 3.1's scaling, from the factors by which it divides the frequencies; ValueError if it is another."""
    for original in (2**n for n in range(25)):  # 13 in all published models
        scaling = {
            "rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }  # fmt: skip
        if np.allclose(rope_factors(scaling, D, theta), factors, rtol=1e-4):
            return scaling
    raise ValueError(f"{FACTORS} scales RoPE in another way than Llama 3.1, which is not supported")


def rope_factors(scaling: Mapping[str, Any], D: int, theta: float) -> np.ndarray:
    """The factors by which Llama 3.1's scaling divides the frequencies, shape (D/2,)."""
    frequencies = theta ** (-np.arange(0, D, 2) / D)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((scaling["original_max_position_embeddings"] * frequencies / (2 * pi) - low) / (high - low)).clip(0, 1)
    return 1 / (kept + (1 - kept) / scaling["factor"])


# ------------------------------------------------------------------------------------------------ writing


def _write(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling or {}
    kind = scaling.get("rope_type")
    values: dict[str, Any] = {"rope.scaling.type": kind} if kind in READERS else {}
    if kind in ("linear", "yarn"):
        values["rope.scaling.factor"] = float(scaling["factor"])
    if kind in ("yarn", "longrope"):
        values[ORIGINAL] = int(scaling["original_max_position_embeddings"])
        usual = attention_factor({"rope_type": "yarn", "factor": scaling["factor"]}) if kind == "yarn" else 1.0
        values["rope.scaling.attn_factor"] = attention_factor(scaling) / usual
    if kind == "longrope":
        values |= {name: np.array(scaling[key], "<f4") for name, key in ((LONG, "long_factor"), (SHORT, "short_factor"))}
    if kind == "llama3":
        values[FACTORS] = rope_factors(scaling, config.head_dim, config.rope_theta).astype("<f4")
    return values


ROPE = Trait(KINDS, _read, _write)
