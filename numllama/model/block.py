"""The two blocks of a layer, attention and feed-forward: forward, and backward read upwards.

    x -> x + dropout(wo · attention(wq · n, wk · n, wv · n))           n = norm(x)
    x -> x + dropout(w_down · activation(w_gate · n, w_up · n))        n = norm(x); or a mixture of such feed-forwards
The residual stream x is only ever added to. So its gradient runs straight back through all layers, and each block adds
the part that came through itself:  dx = dout + (backward of the branch)(dout).
A block returns its branch, and the next one begins with the sum and the norm, which are one op. The embedding is the first
branch, of a stream that does not exist yet: there x is None.
With `norm_placement` "after" or "both" a branch ends with a norm of its own; with "after" it has no other.
The maps and norms that blocks are made of are :mod:`numllama.model.stages`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from numllama import ops
from numllama.backend import Array
from numllama.checks import checked_arguments
from numllama.model.config import ModelConfig
from numllama.model.context import Context
from numllama.model.experts import experts_backward, experts_forward
from numllama.model.parameters import LayerGradients
from numllama.model.rounding import rounded
from numllama.model.stages import (
    ATTENTION,
    BLOCK_NORMS,
    SAME,
    AddNormCache,
    MapCache,
    MapsCache,
    OpPair,
    head_stages,
    linear_backward,
    linear_cache,
    linear_forward,
    linears_backward,
    linears_forward,
    merge_heads,
    split_heads,
)
from numllama.ops.attention import AttentionCache
from numllama.ops.flash_attention import FlashAttentionCache

# ------------------------------------------------------------------------------------------------ caches


class AttentionParts(NamedTuple):
    """The caches of attention, of each thing that it is made of."""

    projections: list[tuple[tuple[str, ...], MapsCache]]  # by the names of the maps
    stages: list[tuple[Callable, Any]]  # each with its backward
    attention: FlashAttentionCache | AttentionCache
    out: MapCache
    last_norm: Any


class AttentionBlockCache(NamedTuple):
    """What backward of an attention block needs."""

    config: ModelConfig
    norm: AddNormCache
    parts: AttentionParts


class FFNBlockCache(NamedTuple):
    """What backward of a feed-forward block needs."""

    config: ModelConfig
    norm: AddNormCache
    ffn: Any
    last_norm: Any


class LayerCache(NamedTuple):
    """What backward of a layer needs."""

    attention: AttentionBlockCache
    ffn: FFNBlockCache


# ------------------------------------------------------------------------------------------------ attention


def attention_block_forward(
    x: Array | None, branch: Array, w: dict[str, Array], context: Context, layer: int
) -> tuple[tuple[Array, Array], AttentionBlockCache]:
    """(x, branch) -> (x + dropout(branch), wo · attention(norm of that)); each (B, T, C)."""
    c = context.config
    norm = BLOCK_NORMS[c.norm_placement].add_first[c.norm]
    (stream, n), norm_cache = norm.forward(x, branch, w, "attn_norm", context, 2 * layer)
    branch, caches = attention_forward(n, w, context, layer)
    total = stream[:, -branch.shape[1] :]                              # n_last, or all
    return (total, branch), AttentionBlockCache(c, norm_cache, caches)


def attention_forward(n: Array, w: dict[str, Array], context: Context, layer: int) -> tuple[Array, AttentionParts]:
    """wo · attention(wq · n, wk · n, wv · n) of the normalised stream n (B, T, C); its norm, if the block ends with one."""
    context = context.for_layer(layer)
    (q, k, v), projections = projections_forward(n, w, context)        # (B, T, H·D or K·D)
    c = context.config
    q = split_heads(q, c.n_heads)                                      # (B, H, T, D)
    k, v = split_heads(k, c.n_kv_heads), split_heads(v, c.n_kv_heads)  # (B, K, T, D)
    if context.n_last is None:
        (q, k), stages = stages_forward((q, k), w, ("q_norm", "k_norm"), context)
    else:
        (k,), _ = stages_forward((k,), w, ("k_norm",), context)
        context = context.last_tokens()                                # now T is n_last
        (q,), stages = stages_forward((q,), w, ("q_norm",), context)
    if context.low_precision is not None:
        k, v = rounded(k, context.low_precision), rounded(v, context.low_precision)
    if context.kv_cache is not None:
        k, v = context.kv_cache.append(layer, k, v)                    # (B, K, S, D)
    mixed, attention_cache = ATTENTION[c.attn_softcap is not None].forward(q, k, v, context)
    out, out_cache = linear_forward(merge_heads(mixed), w, "wo", context)    # (B, T, C)
    out, last_cache = BLOCK_NORMS[c.norm_placement].last[c.norm].forward(out, w, "attn_post_norm", context)
    return out, AttentionParts(projections, stages, attention_cache, out_cache, last_cache)


def attention_block_backward(
    dx: Array | None, dbranch: Array, cache: AttentionBlockCache, g: LayerGradients
) -> tuple[Array, Array]:
    """(dx, dbranch), each (B, T, C); adds the gradients of the block's parameters to `g`."""
    c, parts = cache.config, cache.parts
    norms = BLOCK_NORMS[c.norm_placement]
    dbranch = norms.last[c.norm].backward(dbranch, parts.last_norm, g, "attn_post_norm")
    dout = linear_backward(dbranch, parts.out, g, "wo")                # (B, T, H·D)
    dmixed = split_heads(dout, c.n_heads)                              # (B, H, T, D)
    dq, dk, dv = ATTENTION[c.attn_softcap is not None].backward(dmixed, parts.attention)
    dq, dk = stages_backward((dq, dk), parts.stages, g, ("q_norm", "k_norm"))
    douts = merge_heads(dq), merge_heads(dk), merge_heads(dv)          # (B, T, H·D or K·D)
    dn = projections_backward(douts, parts.projections, g)             # (B, T, C)
    # dx goes in too: the stream also went on unchanged
    return norms.add_first[c.norm].backward(dx, dn, cache.norm, g, "attn_norm")


def projections_forward(n: Array, w: dict[str, Array], context: Context) -> tuple[tuple[Array, Array, Array], list]:
    """Queries, keys and values of n (B, T, C); queries only of the last `n_last` tokens."""
    outs, caches = {}, []
    for names in projection_groups(context):
        fewer = names == ("wq",) and context.n_last is not None
        results, cache = linears_forward(n[:, -(context.n_last or 0) :] if fewer else n, w, names, context)
        outs |= zip(names, results, strict=True)
        caches.append((names, cache))
    return (outs["wq"], outs["wk"], outs["wv"]), caches


def projections_backward(douts: tuple[Array, Array, Array], caches: list, g: LayerGradients) -> Array:
    """dn: it fed three maps, whose gradients add."""
    by_name, dn = dict(zip(("wq", "wk", "wv"), douts, strict=True)), None
    for names, cache in caches:
        dn = linears_backward(tuple(by_name[name] for name in names), cache, g, names, dx=dn)
    return dn


def projection_groups(context: Context) -> list[tuple[str, ...]]:
    """Which of wq, wk and wv run together: all, unless the heads have a norm, which needs each in rows of its own."""
    if context.n_last is not None:
        return [("wk", "wv"), ("wq",)]
    return [("wq", "wk", "wv")] if context.config.qk_norm is None else [("wq",), ("wk",), ("wv",)]


def stages_forward(
    xs: tuple[Array, ...], w: dict[str, Array], names: tuple[str, ...], context: Context
) -> tuple[tuple[Array, ...], list]:
    """Run the head stages in order."""
    caches = []
    for forward, backward in head_stages(context.config, context.cos is not None):
        xs, cache = forward(xs, w, names, context)
        caches.append((backward, cache))
    return xs, caches


def stages_backward(
    douts: tuple[Array, ...], caches: Sequence, g: LayerGradients, names: tuple[str, ...]
) -> tuple[Array, ...]:
    """Run the head stages backward, last one first."""
    for backward, cache in reversed(caches):
        douts = backward(douts, cache, g, names)
    return douts


# ------------------------------------------------------------------------------------------------ feed-forward


def gated(op):
    """A feed-forward whose activation, an op, has two inputs."""
    names = ("w_gate", "w_up")

    def forward(n, w, context):
        (gate, up), linear_caches = linears_forward(n, w, names, context, context.low_precision)    # (B, T, F) both
        out, cache = getattr(ops, f"{op}_forward")(gate, up)
        return out, (linear_caches, cache)

    def backward(dout, caches, g):
        linear_caches, cache = caches
        return linears_backward(getattr(ops, f"{op}_backward")(dout, cache), linear_caches, g, names)

    return OpPair(forward, backward)


def gelu_forward(n, w, context):
    up, up_cache = linear_forward(n, w, "w_up", context)               # (B, T, F)
    out, cache = ops.gelu_forward(up)
    return out, (up_cache, cache)


def gelu_backward(dout, caches, g):
    up_cache, cache = caches
    return linear_backward(ops.gelu_backward(dout, cache), up_cache, g, "w_up")


def with_down(pair: OpPair) -> OpPair:
    """An activation, and w_down after it; `cache_only` leaves out that product, a fifth of the layer's."""

    def forward(n, w, context, cache_only=False):
        a, cache = pair.forward(n, w, context)                         # (B, T, F)
        if cache_only:
            return None, (cache, linear_cache(a, w, "w_down", context))
        out, down_cache = linear_forward(a, w, "w_down", context)      # (B, T, C)
        return out, (cache, down_cache)

    def backward(dout, caches, g):
        cache, down_cache = caches
        return pair.backward(linear_backward(dout, down_cache, g, "w_down"), cache, g)

    return OpPair(forward, backward)


FFN = {
    "swiglu": with_down(gated("swiglu")),
    "geglu": with_down(gated("geglu")),
    "gelu": with_down(OpPair(gelu_forward, gelu_backward)),
    "moe": OpPair(experts_forward, experts_backward),
}


def ffn_block_forward(
    x: Array, branch: Array, w: dict[str, Array], context: Context, layer: int, cache_only: bool = False
) -> tuple[Any, FFNBlockCache]:
    """(x, branch) -> (x + dropout(branch), feed-forward of the norm of that); `cache_only` leaves out the outputs."""
    c = context.config
    norms = BLOCK_NORMS[c.norm_placement]
    add_norm = norms.add_first[c.norm]
    (x, n), norm_cache = add_norm.forward(x, branch, w, "ffn_norm", context, 2 * layer + 1)
    cache_only = cache_only and norms.last[c.norm] is SAME
    out, ffn_cache = FFN[c.ffn].forward(n, w, context, cache_only)     # (B, T, C)
    if cache_only:
        return None, FFNBlockCache(c, norm_cache, ffn_cache, None)
    out, last_cache = norms.last[c.norm].forward(out, w, "ffn_post_norm", context)
    return (x, out), FFNBlockCache(c, norm_cache, ffn_cache, last_cache)


def ffn_block_backward(
    dx: Array | None, dbranch: Array, cache: FFNBlockCache, g: LayerGradients
) -> tuple[Array, Array]:
    """(dx, dbranch), each (B, T, C); adds the gradients of the block's parameters to `g`."""
    c = cache.config
    norms = BLOCK_NORMS[c.norm_placement]
    dbranch = norms.last[c.norm].backward(dbranch, cache.last_norm, g, "ffn_post_norm")
    dn = FFN[c.ffn].backward(dbranch, cache.ffn, g)                    # (B, T, C)
    return norms.add_first[c.norm].backward(dx, dn, cache.norm, g, "ffn_norm")


# ------------------------------------------------------------------------------------------------ a layer


@checked_arguments()
def layer_forward(
    x: Array | None, branch: Array, w: dict[str, Array], context: Context, layer: int
) -> tuple[tuple[Array, Array], LayerCache]:
    """Attention, then feed-forward. Dropout's site 0 is the embedding's, layer i drops its branches at 2i + 1 and 2i + 2."""
    (x, branch), attention_cache = attention_block_forward(x, branch, w, context, layer)
    (x, branch), ffn_cache = ffn_block_forward(x, branch, w, context, layer)
    return (x, branch), LayerCache(attention_cache, ffn_cache)


def layer_entry(cache: LayerCache) -> AddNormCache:
    """The part of a layer's cache from which it can be recomputed: that of its first norm."""
    return cache.attention.norm


def layer_again(entry: AddNormCache, w: dict[str, Array], context: Context, layer: int) -> LayerCache:
    """The layer's cache, from :func:`layer_entry`."""
    c, x = context.config, entry.norm.x                                # the stream that the layer's first norm read
    n, _ = BLOCK_NORMS[c.norm_placement].first[c.norm].forward(x, w, "attn_norm", context)
    branch, caches = attention_forward(n, w, context, layer)
    _, ffn_cache = ffn_block_forward(x, branch, w, context, layer, cache_only=True)
    return LayerCache(AttentionBlockCache(c, entry, caches), ffn_cache)


@checked_arguments()
def layer_backward(dx: Array | None, dbranch: Array, cache: LayerCache, g: LayerGradients) -> tuple[Array, Array]:
    """(dx, dbranch) of the layer's inputs, from those of its outputs."""
    return attention_block_backward(*ffn_block_backward(dx, dbranch, cache.ffn, g), cache.attention, g)
