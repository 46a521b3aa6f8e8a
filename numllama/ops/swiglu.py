"""SwiGLU:  out = silu(gate) · up,   silu(g) = g·σ(g)                                      Shazeer 2020, eq. 6

With σ' = σ·(1 − σ):
    silu'(g) = σ + g·σ·(1 − σ) = σ + silu(g)·(1 − σ)
    dgate = dout · up · silu'(gate)        dup = dout · silu(gate)
σ is written with tanh, which cannot overflow: σ(g) = (1 + tanh(g/2)) / 2.
"""

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


@accelerated(by_rows=True)
def swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple]:
    """Let `gate`, through a SiLU, say how much of `up` passes.

    Parameters
    ----------
    gate, up : array, shape (..., F)

    Returns
    -------
    out : array, shape (..., F)
    cache : tuple
    """
    check_shape("up", up, gate.shape)
    out = sigmoid(gate)                                                # (..., F)
    out *= gate
    out *= up
    return out, (gate, up)


@accelerated(by_rows=True)
def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """Gradients of :func:`swiglu_forward`: ``dgate`` and ``dup``, each (..., F)."""
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    sigma = sigmoid(gate)                                              # (..., F)
    silu = gate * sigma
    dgate = sigma + silu * (1 - sigma)                                 # silu'(gate)
    dgate *= up
    dgate *= dout
    dup = dout * silu
    return dgate, dup


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    s = 0.5 * x
    s = xp_of(x).tanh(s, out=s)
    s *= 0.5
    s += 0.5
    return s
