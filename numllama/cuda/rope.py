"""Launchers of RoPE's kernel. Heads are read where they lie, and written as (B, T, H, D) seen as (B, H, T, D)."""

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.launch import int32, int64


def rope_forward(x: Array, cos: Array, sin: Array, layout: str = "half") -> tuple[Array, tuple]:
    out = _turned(x, cos, sin, layout, 1)
    return out if out is NotImplemented else (out, (cos, sin, layout))


def rope_backward(dout: Array, cache: tuple) -> Array:
    cos, sin, layout = cache
    return _turned(dout, cos, sin, layout, -1)


def _turned(x: Array, cos: Array, sin: Array, layout: str, sign: int) -> Array:
    real = real_dtype(x.dtype)
    if x.ndim != 4 or x.size == 0 or x.dtype not in launch.FLOATS or cos.dtype != real or sin.dtype != real:
        return NotImplemented
    B, H, T, D = x.shape
    per_sequence = cos.ndim == 4
    table = (B, 1, T, D // 2) if per_sequence else (T, D // 2)
    strides = [stride // x.dtype.itemsize for stride in x.strides]
    if (
        D % 2
        or layout not in ("half", "interleaved")
        or cos.shape != table
        or sin.shape != table
        or not (cos.flags.c_contiguous and sin.flags.c_contiguous)
        or strides[3] != 1
    ):
        return NotImplemented
    out = launch.empty(x, (B, T, H, D), x.dtype)
    width = launch.width(x.dtype, D // 2, *strides[:3], arrays=(x, out, cos, sin))
    pairs = max(1, width // 2) if layout == "interleaved" else width
    threads = min(256, 32 * launch.blocks(H * D // 2 // pairs, 32))
    args = [
        out, launch.strided(x), cos, sin, int64(strides[0]), int64(strides[1]), int64(strides[2]),
        int64(T * D // 2 if per_sequence else 0), int32(H), int32(T), int32(D), real.type(sign),
    ]  # fmt: skip
    launch.launch("rope", "rope", B * T, threads, args, DTYPE=x.dtype, WIDTH=width, INTERLEAVED=layout == "interleaved")
    return out.swapaxes(1, 2)
