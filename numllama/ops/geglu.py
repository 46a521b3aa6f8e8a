"""GeGLU:  out = gelu(gate) · up,   gelu(g) = g·Φ(g)                                        Shazeer 2020, eq. 6

Φ in the tanh form of `gelu`:  Φ(g) ≈ (1 + tanh u) / 2,  u = √(2/π) · (g + 0.044715·g³):
    gelu'(g) = Φ(g) + g · (1 − tanh² u) / 2 · u',  u' = √(2/π) · (1 + 3·0.044715·g²)
    dgate = dout · up · gelu'(gate)        dup = dout · gelu(gate)
"""

from typing import NamedTuple

from numllama.backend import Array
from numllama.checks import check_shape
from numllama.dispatch import accelerated
from numllama.ops.gelu import GELUCache, gelu_backward, gelu_forward


class GeGLUCache(NamedTuple):
    """What backward needs: the inputs, each (..., F)."""

    gate: Array
    up: Array


@accelerated(by_rows=True)
def geglu_forward(gate: Array, up: Array) -> tuple[Array, GeGLUCache]:
    """Scale `up` by the GELU of `gate`, in its tanh form.

    Parameters
    ----------
    gate, up : array, shape (..., F)

    Returns
    -------
    out : array, shape (..., F)
    cache : GeGLUCache
    """
    check_shape("up", up, gate.shape)
    gelu, _ = gelu_forward(gate)                                       # (..., F)
    return gelu * up, GeGLUCache(gate, up)


@accelerated(by_rows=True)
def geglu_backward(dout: Array, cache: GeGLUCache) -> tuple[Array, Array]:
    """Gradients of :func:`geglu_forward`: ``dgate`` and ``dup``, each (..., F)."""
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    dgate = gelu_backward(dout * up, GELUCache(gate, "tanh"))          # (..., F)
    dup = dout * gelu_forward(gate)[0]                                 # (..., F)
    return dgate, dup
