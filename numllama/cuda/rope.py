"""Launchers of RoPE's kernel. Heads are read through their strides, and written in place or as (B, T, H, D) memory."""

from numllama.backend import Array, real_dtype
from numllama.cuda import launch
from numllama.cuda.launch import int32, int64
from numllama.ops.rope import RopeCache


def rope_forward(
    x: Array, cos: Array, sin: Array, layout: str = "half", *, out: Array | None = None
) -> tuple[Array, RopeCache]:
    turned = _turned(x, cos, sin, layout, 1, out)
    return NotImplemented if turned is NotImplemented else (turned, RopeCache(cos, sin, layout))


def rope_backward(dout: Array, cache: RopeCache, *, out: Array | None = None) -> Array:
    cos, sin, layout = cache
    return _turned(dout, cos, sin, layout, -1, out)


def ropes_forward(
    xs: tuple[Array, ...], cos: Array, sin: Array, layout: str = "half", *, outs: tuple[Array, ...] | None = None
) -> tuple[tuple[Array, ...], RopeCache]:
    outs = _turned_together(xs, cos, sin, layout, 1, outs)
    return outs if outs is NotImplemented else (outs, RopeCache(cos, sin, layout))


def ropes_backward(
    douts: tuple[Array, ...], cache: RopeCache, *, outs: tuple[Array, ...] | None = None
) -> tuple[Array, ...]:
    cos, sin, layout = cache
    return _turned_together(douts, cos, sin, layout, -1, outs)


def _turned_together(
    xs: tuple[Array, ...], cos: Array, sin: Array, layout: str, sign: int, outs: tuple[Array, ...] | None
) -> tuple[Array, ...]:
    """Rotate queries and keys in one launch, if they are heads of one array."""
    if len(xs) < 2 or any(x.ndim != 4 for x in xs) or (outs is not None and len(outs) != len(xs)):
        return NotImplemented
    x, out = launch.adjacent(xs, 1), None if outs is None else launch.adjacent(outs, 1)
    if x is None or (out is None) != (outs is None):
        return NotImplemented
    turned = _turned(x, cos, sin, layout, sign, out)
    if turned is NotImplemented:
        return NotImplemented
    return outs or launch.parts(turned, [x.shape[1] for x in xs], 1)


def _turned(x: Array, cos: Array, sin: Array, layout: str, sign: int, given: Array | None) -> Array:
    real = real_dtype(x.dtype)
    if x.ndim != 4 or x.size == 0 or x.dtype not in launch.FLOATS or cos.dtype != real or sin.dtype != real:
        return NotImplemented
    B, H, T, D = x.shape
    per_sequence = cos.ndim == 4
    table = (B, 1, T, D // 2) if per_sequence else (T, D // 2)
    out = launch.empty(x, (B, T, H, D), x.dtype).swapaxes(1, 2) if given is None else given
    if (
        D % 2
        or layout not in ("half", "interleaved")
        or cos.shape != table
        or sin.shape != table
        or not (cos.flags.c_contiguous and sin.flags.c_contiguous)
        or out.shape != x.shape
        or out.dtype != x.dtype
        or x.strides[3] != x.dtype.itemsize
        or out.strides[3] != x.dtype.itemsize
    ):
        return NotImplemented
    strides = [stride // x.dtype.itemsize for array in (x, out) for stride in array.strides[:3]]
    width = launch.width(x.dtype, D // 2, *strides, arrays=(x, out, cos, sin))
    pairs = max(1, width // 2) if layout == "interleaved" else width
    threads = min(256, 32 * launch.blocks(H * D // 2 // pairs, 32))
    args = [
        launch.strided(out), launch.strided(x), cos, sin, *map(int64, strides), int64(T * D // 2 if per_sequence else 0),
        int32(H), int32(T), int32(D), real.type(sign),
    ]  # fmt: skip
    launch.launch("rope", "rope", B * T, threads, args, DTYPE=x.dtype, WIDTH=width, INTERLEAVED=layout == "interleaved")
    return out
