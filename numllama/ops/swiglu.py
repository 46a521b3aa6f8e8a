"""SwiGLU:  out = silu(gate) · up,   silu(g) = g·σ(g)                                      Shazeer 2020, eq. 6

With σ' = σ·(1 − σ):
    silu'(g) = σ + g·σ·(1 − σ) = σ · (1 + g·(1 − σ))
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
    return gate * sigmoid(gate) * up, (gate, up)


@accelerated(by_rows=True)
def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """Gradients of :func:`swiglu_forward`: ``dgate`` and ``dup``, each (..., F)."""
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    sigma = sigmoid(gate)                                              # (..., F)
    dgate = dout * up * sigma * (1 + gate * (1 - sigma))
    dup = dout * gate * sigma
    return dgate, dup


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 + 0.5 * xp_of(x).tanh(0.5 * x)
