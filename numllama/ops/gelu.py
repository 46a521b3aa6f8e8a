"""GELU:  out = x · Φ(x), Φ the normal distribution function                            Hendrycks & Gimpel 2016

    tanh form (GPT-2):  Φ(x) ≈ (1 + tanh u) / 2,  u = √(2/π) · (x + 0.044715·x³)
        dx = dout · ((1 + tanh u) / 2 + x · (1 − tanh² u) / 2 · u'),  u' = √(2/π) · (1 + 3·0.044715·x²)
    exact form:         Φ(x) = (1 + erf(x/√2)) / 2
        dx = dout · (Φ(x) + x · φ(x)),  φ(x) = exp(−x²/2) / √(2π)
"""

import math
from typing import NamedTuple

from numllama.backend import Array, erf, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.errors import shown

SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715


class GELUCache(NamedTuple):
    """What backward needs: the input, (..., F), and the form."""

    x: Array
    approximate: str


@accelerated(by_rows=True)
def gelu_forward(x: Array, approximate: str = "tanh") -> tuple[Array, GELUCache]:
    """Scale each value by the normal distribution function at it.

    Parameters
    ----------
    x : array, shape (..., F)
    approximate : str
        ``"tanh"``, as GPT-2 was trained, or ``"none"``, the exact form, which is slow on a CPU and meant for checking.

    Returns
    -------
    out : array, shape (..., F)
    cache : GELUCache
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"approximate is {shown(approximate)}, but must be 'tanh' or 'none'")
    if approximate == "none":
        return 0.5 * x * (1 + erf(x / math.sqrt(2))), GELUCache(x, approximate)
    tanh = xp_of(x).tanh(SLOPE * (x + CUBIC * x * x * x))              # (..., F)
    return 0.5 * x * (1 + tanh), GELUCache(x, approximate)


@accelerated(by_rows=True)
def gelu_backward(dout: Array, cache: GELUCache) -> Array:
    """Gradient of :func:`gelu_forward` with respect to ``x`` (..., F)."""
    x, approximate = cache
    check_shape("dout", dout, x.shape)
    xp = xp_of(x)
    if approximate == "none":
        density = xp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return dout * (0.5 * (1 + erf(x / math.sqrt(2))) + x * density)
    tanh = xp.tanh(SLOPE * (x + CUBIC * x * x * x))                    # (..., F)
    du = SLOPE * (1 + 3 * CUBIC * x * x)
    return dout * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * du)
