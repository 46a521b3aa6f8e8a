"""Launchers of the embedding's kernels."""

from math import prod

import numpy as np

from numllama.backend import Array, real_dtype, xp_of
from numllama.checks import check_ids
from numllama.cuda import launch
from numllama.cuda.launch import int32

TOKENS = tuple(map(np.dtype, (np.int32, np.int64, np.uint16, np.uint32)))
MAX_SORTED = 2**17  # tokens; backward sorts them with N² comparisons


def embedding_forward(tokens: Array, weight: Array) -> tuple[Array, tuple]:
    if not _takes_tokens(tokens) or weight.ndim != 2 or not launch.is_plain(weight):
        return NotImplemented
    V, C = weight.shape
    check_ids("tokens", tokens, V)
    N = prod(tokens.shape)
    out = launch.empty(weight, (*tokens.shape, C), weight.dtype)
    width = launch.width(weight.dtype, C, arrays=(weight, out))
    threads = min(256, 32 * launch.blocks(C, 32 * width))
    rows = max(1, 128 // threads)
    args = [out, _dense(tokens), weight, int32(N), int32(V), int32(C)]
    defines = {"DTYPE": weight.dtype, "WIDTH": width, "TOKEN": tokens.dtype}
    launch.launch("embedding", "embedding_forward", launch.blocks(N, rows), (threads, rows), args, **defines)
    return out, (tokens, weight)


def embedding_backward(dout: Array, cache: tuple, into: Array | None = None) -> Array:
    tokens, weight = cache
    real, (V, C) = real_dtype(dout.dtype), weight.shape
    N = prod(tokens.shape)
    if (
        not _takes_tokens(tokens)
        or N > MAX_SORTED
        or dout.shape != (*tokens.shape, C)
        or not launch.is_plain(dout)
        or (weight.dtype != real if into is None else into.shape != weight.shape or into.dtype != real)
        or not (into is None or into.flags.c_contiguous)
    ):
        return NotImplemented
    dweight = launch.zeros(dout, (V, C), real) if into is None else into
    order, ordered = launch.empty(dout, (N,), np.int32), launch.empty(dout, (N,), np.int32)
    width = launch.width(dout.dtype, C, arrays=(dout, dweight))
    defines = {"DTYPE": dout.dtype, "WIDTH": width, "TOKEN": tokens.dtype}
    args = [order, ordered, _dense(tokens), int32(N)]
    launch.launch("embedding", "embedding_sort", launch.blocks(N, 64), 64, args, **defines)
    threads = min(128, 32 * launch.blocks(C, 32 * width))
    grid = (N, launch.blocks(C, threads * width))
    args = [dweight, dout, order, ordered, int32(N), int32(V), int32(C)]
    launch.launch("embedding", "embedding_backward", grid, threads, args, **defines)
    return dweight


def _takes_tokens(tokens: Array) -> bool:
    return tokens.dtype in TOKENS and tokens.size > 0


def _dense(tokens: Array) -> Array:
    """Tokens are few: a view of a batch is copied."""
    return xp_of(tokens).ascontiguousarray(tokens)
