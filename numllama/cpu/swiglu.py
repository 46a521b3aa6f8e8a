"""SwiGLU in place: silu(g) = h + h·tanh h and σ(g) = (1 + tanh h) / 2, with h = g/2, in two arrays instead of six."""

import numpy as np

from numllama.backend import real_dtype
from numllama.checks import check_shape
from numllama.cpu.rounding import rounded, takes_two_bytes
from numllama.ops.swiglu import SwiGLUCache


@takes_two_bytes
def swiglu_forward(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, SwiGLUCache]:
    check_shape("up", up, gate.shape)
    half = 0.5 * rounded(gate, real_dtype(gate.dtype))                 # (..., F)
    out = np.tanh(half)
    out *= half
    out += half                                                        # silu(gate)
    out *= rounded(up, out.dtype)
    return rounded(out, gate.dtype), SwiGLUCache(gate, up)


def swiglu_backward(dout: np.ndarray, cache: SwiGLUCache) -> tuple[np.ndarray, np.ndarray]:
    gate, up = (rounded(x, dout.dtype) for x in cache)
    check_shape("dout", dout, gate.shape)
    half = 0.5 * gate                                                  # (..., F)
    sigma = np.tanh(half)
    sigma += 1
    silu = half * sigma
    sigma *= 0.5
    dgate = np.subtract(1, sigma, out=half)
    dgate *= silu
    dgate += sigma                                                     # silu'(gate)
    dgate *= up
    dgate *= dout
    dup = np.multiply(dout, silu, out=silu)
    return dgate, dup
