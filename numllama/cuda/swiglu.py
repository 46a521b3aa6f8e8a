"""Launchers of SwiGLU's kernels. gate and up may be the halves of one product's rows; dgate and dup always are."""

from math import prod

from numllama.backend import Array
from numllama.cuda import launch
from numllama.cuda.launch import int32, int64
from numllama.ops.swiglu import SwiGLUCache


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, SwiGLUCache]:
    if not _supports(gate, up):
        return NotImplemented
    out = launch.empty(gate, gate.shape, gate.dtype)
    _launch("swiglu_forward", [out, gate, up], gate, gate.shape[-1])
    return out, SwiGLUCache(gate, up)


def swiglu_backward(dout: Array, cache: SwiGLUCache) -> tuple[Array, Array]:
    gate, up = cache
    if not _supports(gate, up) or dout.dtype != gate.dtype or dout.shape != gate.shape or not launch.is_plain(dout):
        return NotImplemented
    *lead, F = gate.shape
    rows = launch.empty(gate, (*lead, 2 * F), gate.dtype)              # halves of rows, for the products that follow
    dgate, dup = rows[..., :F], rows[..., F:]
    _launch("swiglu_backward", [dgate, dup, dout, gate, up], gate, 2 * F)
    return dgate, dup


def _supports(gate: Array, up: Array) -> bool:
    """Whether the kernels can read these: both must have the same row stride."""
    return (
        gate.dtype in launch.FLOATS
        and up.dtype == gate.dtype
        and up.shape == gate.shape
        and launch.row_stride(gate) is not None
        and launch.row_stride(gate) == launch.row_stride(up)
    )


def _launch(name: str, arrays: list[Array], gate: Array, written: int) -> None:
    """Launch a kernel with (arrays, F, columns, row stride of gate and up, row stride of the results)."""
    F, N, stride = gate.shape[-1], prod(gate.shape[:-1]), launch.row_stride(gate)
    assert stride is not None  # _supports has checked
    width = launch.width(gate.dtype, F, stride, written, arrays=arrays)
    threads = min(256, 32 * launch.blocks(F, 32 * width))
    columns = launch.blocks(F, threads * width)
    args = [*map(launch.strided, arrays), int32(F), int32(columns), int64(stride), int64(written)]
    launch.launch("swiglu", name, N * columns, threads, args, DTYPE=gate.dtype, WIDTH=width)
