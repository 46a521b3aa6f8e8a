"""Launchers of GELU's kernels, in the tanh form."""

from numllama.backend import Array
from numllama.cuda import launch
from numllama.ops.gelu import GELUCache


def gelu_forward(x: Array, approximate: str = "tanh") -> tuple[Array, GELUCache]:
    if approximate != "tanh" or not launch.is_plain(x):
        return NotImplemented
    out = launch.empty(x, x.shape, x.dtype)
    launch.elementwise("gelu", "gelu_forward", [out, x])
    return out, GELUCache(x, approximate)


def gelu_backward(dout: Array, cache: GELUCache) -> Array:
    x, approximate = cache
    if approximate != "tanh" or dout.shape != x.shape or not launch.is_plain(x, dout):
        return NotImplemented
    dx = launch.empty(x, x.shape, x.dtype)
    launch.elementwise("gelu", "gelu_backward", [dx, dout, x])
    return dx
