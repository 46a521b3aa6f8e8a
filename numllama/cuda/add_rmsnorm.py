"""Launchers of the kernels that add and normalise."""

from numllama.backend import Array
from numllama.cuda import launch
from numllama.cuda.rmsnorm import backward, forward, takes_rows


def add_rmsnorm_forward(x: Array, branch: Array, weight: Array, eps: float) -> tuple[tuple[Array, Array], tuple]:
    if branch.shape != x.shape or not takes_rows(weight, x, branch):
        return NotImplemented
    total, out = launch.empty(x, x.shape, x.dtype), launch.empty(x, x.shape, x.dtype)
    rstd = launch.empty(x, (*x.shape[:-1], 1), weight.dtype)
    forward("add_rmsnorm", (total, out, rstd, x, branch, weight), x, eps)
    return (total, out), (total, weight, rstd)


def add_rmsnorm_backward(douts: tuple[Array, Array], cache: tuple) -> tuple[Array, Array, Array]:
    dtotal, dout = douts
    total, weight, rstd = cache
    if dtotal.shape != total.shape or dout.shape != total.shape or not takes_rows(weight, total, dtotal, dout):
        return NotImplemented
    dx, dweight = backward("add_rmsnorm", (dout, dtotal, total), weight, rstd)
    return dx, dx, dweight
