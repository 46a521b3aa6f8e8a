"""RoPE scaling: slower turns for a context longer than the original one.

Pair j turns by ω[j] = theta^(−2j/D) per token. For an original context of L₀ tokens, a factor f and a sequence of L tokens:
    linear    ω/f: all positions move closer together                                                    Chen et al. 2023
    llama3    ω/f for pairs that make few turns within L₀, ω for those that make many, a blend between   Dubey et al. 2024
    dynamic   ω·s^(−2j/(D−2)), s = max(1, f·L/L₀ − f + 1): keeps the fastest, divides the slowest by s   Peng et al. 2023
    yarn      a blend of ω and ω/f over the pairs that make beta_fast to beta_slow turns within L₀,
              and cos and sin times 0.1·ln f + 1, which sharpens attention                               Peng et al. 2023
    longrope  ω/λ[j], where a search has found one list λ for L ≤ L₀ and one for longer sequences,
              and cos and sin times √(1 + ln f / ln L₀)                                                  Ding et al. 2024
L is the largest position of a call + 1. A key in a KV cache has the angle of the call that stored it. With dynamic scaling it
keeps that, as in transformers; where longrope goes from one list to the other, generation computes all keys again.
"""

import math
from collections.abc import Callable, Mapping

from numllama.backend import Array, xp_of


def depends_on_length(scaling: Mapping | None) -> bool:
    """Whether the same position has another angle in a longer sequence."""
    return scaling is not None and scaling.get("rope_type") in ("dynamic", "longrope")


def switches_at(scaling: Mapping | None) -> float | None:
    """The length beyond which longrope has another list; None for other types."""
    if scaling is None or scaling.get("rope_type") != "longrope":
        return None
    return scaling["original_max_position_embeddings"]


def attention_factor(scaling: Mapping | None) -> float:
    """The factor of cosines and sines, so that scores are multiplied by its square."""
    scaling = scaling or {}
    kind, f, given = scaling.get("rope_type"), max(1.0, scaling.get("factor", 1.0)), scaling.get("attention_factor")
    if kind not in ("yarn", "longrope") or given is not None:
        return 1.0 if given is None else float(given)
    if kind == "longrope":
        return 1.0 if f == 1 else math.sqrt(1 + math.log(f) / math.log(scaling["original_max_position_embeddings"]))
    over, under = scaling.get("mscale"), scaling.get("mscale_all_dim")
    over, under = (over, under) if over and under else (1.0, 0.0)
    return (0.1 * over * math.log(f) + 1) / (0.1 * under * math.log(f) + 1)


def _linear_scaling(frequencies: Array, scaling: Mapping, theta: float, length: int) -> Array:
    return frequencies / scaling["factor"]


def _llama3_scaling(frequencies: Array, scaling: Mapping, theta: float, length: int) -> Array:
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    turns = context * frequencies / (2 * math.pi)                      # (D/2,)
    kept = ((turns - low) / (high - low)).clip(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def _dynamic_scaling(frequencies: Array, scaling: Mapping, theta: float, length: int) -> Array:
    n, f = len(frequencies), scaling["factor"]
    s = max(1.0, f * length / scaling["original_max_position_embeddings"] - f + 1)
    return frequencies * s ** (-xp_of(frequencies).arange(n, dtype="float64") / max(1, n - 1))     # 2j/(D − 2) = j/(n − 1)


def _yarn_scaling(frequencies: Array, scaling: Mapping, theta: float, length: int) -> Array:
    n = len(frequencies)
    if theta == 1:
        raise ValueError("theta is 1, but yarn needs pairs that turn at different speeds")
    turns = (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    low, high = (n * math.log(scaling["original_max_position_embeddings"] / (2 * math.pi * t)) / math.log(theta) for t in turns)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n - 1)                      # the pairs of beta_fast and beta_slow turns
    divided = ((xp_of(frequencies).arange(n) - low) / (high - low or 1e-3)).clip(0, 1)
    return frequencies * (1 - divided + divided / scaling["factor"])


def _longrope_scaling(frequencies: Array, scaling: Mapping, theta: float, length: int) -> Array:
    name = "long_factor" if length > scaling["original_max_position_embeddings"] else "short_factor"
    if len(scaling[name]) != len(frequencies):
        raise ValueError(f"scaling's {name} has {len(scaling[name])} numbers, but {len(frequencies)} pairs turn")
    return frequencies / xp_of(frequencies).asarray(scaling[name], dtype="float64")


SCALINGS: dict[str, Callable[[Array, Mapping, float, int], Array]] = {
    "linear": _linear_scaling, "llama3": _llama3_scaling, "dynamic": _dynamic_scaling,
    "yarn": _yarn_scaling, "longrope": _longrope_scaling,
}  # fmt: skip


def scaled(frequencies: Array, positions: Array, theta: float, scaling: Mapping | None) -> Array:
    """The frequencies (D/2,) with which the tokens at `positions` turn."""
    if scaling is None:
        return frequencies
    length = int(positions.max()) + 1 if depends_on_length(scaling) and positions.size else 1
    return SCALINGS[scaling.get("rope_type", "llama3")](frequencies, scaling, theta, length)
