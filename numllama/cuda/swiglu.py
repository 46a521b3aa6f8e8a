"""Launchers of SwiGLU's kernels."""

from numllama.backend import Array
from numllama.cuda import launch


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, tuple]:
    if gate.shape != up.shape or not launch.is_plain(gate, up):
        return NotImplemented
    out = launch.empty(gate, gate.shape, gate.dtype)
    launch.elementwise("swiglu", "swiglu_forward", [out, gate, up])
    return out, (gate, up)


def swiglu_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    gate, up = cache
    if dout.shape != gate.shape or not launch.is_plain(gate, up, dout):
        return NotImplemented
    dgate, dup = launch.empty(gate, gate.shape, gate.dtype), launch.empty(gate, gate.shape, gate.dtype)
    launch.elementwise("swiglu", "swiglu_backward", [dgate, dup, dout, gate, up])
    return dgate, dup
