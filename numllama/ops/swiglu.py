"""SwiGLU:  out = silu(gate) · up,   silu(g) = g·σ(g)                                      Shazeer 2020, eq. 6

With σ' = σ·(1 − σ):
    silu'(g) = σ + g·σ·(1 − σ) = σ + silu(g)·(1 − σ)
    dgate = dout · up · silu'(gate)        dup = dout · silu(gate)
σ is written with tanh, which cannot overflow: σ(g) = (1 + tanh h) / 2, so silu(g) = h + h·tanh h, with h = g/2.
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
    half = 0.5 * gate                                                  # (..., F)
    out = xp_of(gate).tanh(half)
    out *= half
    out += half                                                        # silu(gate)
    out *= up
    return out, (gate, up)


@accelerated(by_rows=True)
def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """Gradients of :func:`swiglu_forward`: ``dgate`` and ``dup``, each (..., F)."""
    gate, up = cache
    check_shape("dout", dout, gate.shape)
    xp = xp_of(gate)
    half = 0.5 * gate                                                  # (..., F)
    sigma = xp.tanh(half)
    sigma += 1
    silu = half * sigma
    sigma *= 0.5
    dgate = xp.subtract(1, sigma, out=half)
    dgate *= silu
    dgate += sigma                                                     # silu'(gate)
    dgate *= up
    dgate *= dout
    dup = xp.multiply(dout, silu, out=silu)
    return dgate, dup
