"""Launchers of the softmax kernels."""

from math import prod

from numllama.backend import Array
from numllama.cuda import launch
from numllama.ops.softmax import SoftmaxCache


def softmax_forward(x: Array) -> tuple[Array, SoftmaxCache]:
    if x.ndim == 0 or not launch.is_plain(x):
        return NotImplemented
    p = launch.empty(x, x.shape, x.dtype)
    _rows("softmax_forward", p, x)
    return p, SoftmaxCache(p)


def softmax_backward(dout: Array, cache: SoftmaxCache) -> Array:
    (p,) = cache
    if dout.shape != p.shape or not launch.is_plain(p, dout):
        return NotImplemented
    dx = launch.empty(p, p.shape, p.dtype)
    _rows("softmax_backward", dx, dout, p)
    return dx


def _rows(name: str, *arrays: Array) -> None:
    x = arrays[0]
    n, N = x.shape[-1], prod(x.shape[:-1])
    width = launch.width(x.dtype, arrays=arrays)
    threads, rows = launch.row_block(n, width)
    args = [*arrays, launch.int32(N), launch.int32(n)]
    launch.launch("softmax", name, launch.blocks(N, rows), (threads, rows), args, DTYPE=x.dtype, WIDTH=width)
