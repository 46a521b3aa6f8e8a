"""SwiGLU:  out = silu(gate) · up,   silu(g) = g·σ(g)                                      Shazeer 2020, eq. 6

With σ' = σ·(1 − σ):
    silu'(g) = σ + g·σ·(1 − σ) = σ + silu(g)·(1 − σ)
    dgate = dout · up · silu'(gate)        dup = dout · silu(gate)
σ is written with tanh, which cannot overflow: σ(g) = (1 + tanh(g/2)) / 2.
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class SwiGLUCache(NamedTuple):
    """What backward needs: the inputs, each (..., F)."""

    gate: Array
    up: Array


@accelerated(by_rows=True)
def swiglu_forward(gate: Array, up: Array) -> tuple[Array, SwiGLUCache]:
    """Scale `up` by the SiLU of `gate`.

    Parameters
    ----------
    gate, up : array, shape (..., F)

    Returns
    -------
    out : array, shape (..., F)
    cache : SwiGLUCache
    """
    check_shape("up", up, gate.shape)
    return gate * sigmoid(gate) * up, SwiGLUCache(gate, up)


@accelerated(by_rows=True)
def swiglu_backward(dout: Array, cache: SwiGLUCache) -> tuple[Array, Array]:
    """Gradients of :func:`swiglu_forward`: ``dgate`` and ``dup``, each (..., F)."""
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    sigma = sigmoid(gate)                                              # (..., F)
    silu = gate * sigma                                                # (..., F)
    dgate = dout * up * (sigma + silu * (1 - sigma))                   # (..., F)
    dup = dout * silu                                                  # (..., F)
    return dgate, dup


def sigmoid(g: Array) -> Array:
    """σ(g) = 1 / (1 + exp(−g)), by a tanh."""
    return 0.5 * (1 + xp_of(g).tanh(0.5 * g))
