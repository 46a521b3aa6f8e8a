"""Launchers of the embedding's kernels."""

from math import prod

import numpy as np

from numllama.backend import Array, real_dtype
from numllama.checks import check_ids
from numllama.cuda import launch
from numllama.cuda.launch import int32
from numllama.ops.embedding import EmbeddingCache

TOGETHER = 2**16  # tokens that backward sorts together; n tokens take n² comparisons


def embedding_forward(tokens: Array, weight: Array) -> tuple[Array, EmbeddingCache]:
    if tokens.size == 0 or tokens.dtype.kind not in "iu" or weight.ndim != 2 or not launch.is_plain(weight):
        return NotImplemented
    V, C = weight.shape
    check_ids("tokens", tokens, V)
    N, dense = prod(tokens.shape), launch.ids(tokens)
    out = launch.empty(weight, (*tokens.shape, C), weight.dtype)
    width = launch.width(weight.dtype, C, arrays=(weight, out))
    threads = min(256, 32 * launch.blocks(C, 32 * width))
    rows = max(1, 128 // threads)
    args = [out, dense, weight, int32(N), int32(V), int32(C)]
    defines = {"DTYPE": weight.dtype, "WIDTH": width, "TOKEN": dense.dtype}
    launch.launch("embedding", "embedding_forward", launch.blocks(N, rows), (threads, rows), args, **defines)
    return out, EmbeddingCache(tokens, weight)


def embedding_backward(dout: Array, cache: EmbeddingCache, into: Array | None = None) -> Array:
    tokens, weight = cache
    real, (V, C) = real_dtype(dout.dtype), weight.shape
    N = prod(tokens.shape)
    if (
        N == 0
        or dout.shape != (*tokens.shape, C)
        or not launch.is_plain(dout)
        or (weight.dtype != real if into is None else into.shape != weight.shape or into.dtype != real)
        or not (into is None or into.flags.c_contiguous)
    ):
        return NotImplemented
    dweight = launch.zeros(dout, (V, C), real) if into is None else into
    dense, dout = launch.ids(tokens).reshape(N), dout.reshape(N, C)
    for start in range(0, N, TOGETHER):
        _add_rows(dweight, dout[start : start + TOGETHER], dense[start : start + TOGETHER])
    return dweight


def _add_rows(dweight: Array, dout: Array, tokens: Array) -> None:
    """dweight[tokens[n]] += dout[n], in order of n for each token."""
    (V, C), N = dweight.shape, len(tokens)
    order, ordered = launch.empty(dout, (N,), np.int32), launch.empty(dout, (N,), np.int32)
    width = launch.width(dout.dtype, C, arrays=(dout, dweight))
    defines = {"DTYPE": dout.dtype, "WIDTH": width, "TOKEN": tokens.dtype}
    args = [order, ordered, tokens, int32(N)]
    launch.launch("embedding", "embedding_sort", launch.blocks(N, 64), 64, args, **defines)
    threads = min(128, 32 * launch.blocks(C, 32 * width))
    grid = (N, launch.blocks(C, threads * width))
    args = [dweight, dout, order, ordered, int32(N), int32(V), int32(C)]
    launch.launch("embedding", "embedding_backward", grid, threads, args, **defines)
