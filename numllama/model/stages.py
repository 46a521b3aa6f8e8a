"""The stages that a block is made of: maps, norms, RoPE, each with its parameters.

A *stage* is a pair of functions that knows its parameters by name:
    out, cache = forward(x, w, name, context)        reads w[name]
    dx         = backward(dout, cache, g, name)      adds the gradient of w[name] to g, once, unless it is frozen
`w` maps names to arrays; `g` is :class:`~numllama.model.parameters.Gradients`, or those of a layer. The tables at the end list
the choices of a configuration.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from numllama import ops
from numllama.backend import Array, real_dtype, xp_of
from numllama.model.config import ModelConfig
from numllama.model.rounding import rounded
from numllama.ops.add_rmsnorm import AddRMSNormCache
from numllama.ops.dropout import DropoutCache
from numllama.ops.layernorm import LayerNormCache
from numllama.ops.linear import LinearCache
from numllama.ops.lora import LoraCache


class OpPair(NamedTuple):
    """A stage: a function and its backward."""

    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[..., Any]


class MapCache(NamedTuple):
    """The caches of a linear map and of its low-rank update, if there is one."""

    linear: LinearCache
    lora: LoraCache | None


class MapsCache(NamedTuple):
    """The same of several maps of one input."""

    linears: tuple[LinearCache, ...]
    loras: list[LoraCache | None]


class SameCache(NamedTuple):
    """What a layer without a norm in front is recomputed from: its input."""

    x: Array


class AddedNormCache(NamedTuple):
    """The caches of a residual sum's norm and of its branch's dropout; the RMSNorm's is AddRMSNormCache."""

    norm: LayerNormCache | SameCache
    dropout: DropoutCache | None


AddNormCache = AddRMSNormCache | AddedNormCache


def add_gradient(g, name, gradient):
    if name in g:
        g.add(name, gradient)


def scaled(x, factor):
    return x if factor == 1 else x * factor


def linear_forward(x, w, name, context):
    dtype = None if context.low_precision is None else real_dtype(context.low_precision)
    out, cache = ops.linear_forward(x, w[name], w.get(f"{name}_bias"), dtype)
    update, lora_cache = lora_forward(x, w, name, context)
    if update is not None:
        out += rounded(update, out.dtype)
    return out, MapCache(cache, lora_cache)


def linears_forward(x, w, names, context, dtype=None):
    """Several maps of one input, whose results are rounded to `dtype`."""
    biases = tuple(w[f"{name}_bias"] for name in names) if f"{names[0]}_bias" in w else None
    outs, cache = ops.linears_forward(x, tuple(w[name] for name in names), biases, dtype)
    lora_caches = []
    for name, out in zip(names, outs, strict=True):
        update, lora_cache = lora_forward(x, w, name, context)
        if update is not None:
            out += rounded(update, out.dtype)
        lora_caches.append(lora_cache)
    return outs, MapsCache(cache, lora_caches)


def linear_cache(x, w, name, context):
    """The cache of linear_forward, without the product."""
    return MapCache(LinearCache(x, w[name], w.get(f"{name}_bias")), lora_forward(x, w, name, context)[1])


def lora_forward(x, w, name, context):
    """An adapter's update of a map's output, and its cache; None twice without one."""
    if f"{name}_lora_a" not in w:
        return None, None
    return ops.lora_forward(x, w[f"{name}_lora_a"], w[f"{name}_lora_b"], w[f"{name}_lora_scale"])


def lora_backward(dout, cache, g, name, dx):
    """dx, to which the update adds if there is one."""
    if cache is not None:
        dx, da, db = ops.lora_backward(dout, cache, dx=dx)
        g.add(f"{name}_lora_a", da)
        g.add(f"{name}_lora_b", db)
    return dx


def linear_backward(dout, caches, g, name, dx=None):
    cache, lora_cache = caches
    if name in g:
        buffer = g.buffer(name)
        dx, dweight, *dbias = ops.linear_backward(dout, cache, into=buffer, dx=dx)
        if buffer is None:
            g.add(name, dweight)
        if dbias:
            g.add(f"{name}_bias", dbias[0])
    else:
        dx = ops.linear_backward_input(dout, cache, dx=dx)
    return lora_backward(dout, lora_cache, g, name, dx)


def linears_backward(douts, caches, g, names, dx=None):
    """dx, to which all of the maps add."""
    cache, lora_caches = caches
    if names[0] in g:
        buffers = tuple(g.buffer(name) for name in names)
        into = None if buffers[0] is None else buffers
        dx, dweights, *dbiases = ops.linears_backward(douts, cache, into=into, dx=dx)
        for name, dweight in zip(names, dweights, strict=True) if into is None else ():
            g.add(name, dweight)
        for name, dbias in zip(names, *dbiases, strict=True) if dbiases else ():
            g.add(f"{name}_bias", dbias)
    else:
        dx = ops.linears_backward_input(douts, cache, dx=dx)
    for name, dout, lora_cache in zip(names, douts, lora_caches, strict=True):
        dx = lora_backward(dout, lora_cache, g, name, dx)
    return dx


def rmsnorm_forward(x, w, name, context):
    return ops.rmsnorm_forward(x, w[name], context.config.norm_eps)


def rmsnorm_backward(dout, cache, g, name):
    dx, dweight = ops.rmsnorm_backward(dout, cache)
    add_gradient(g, name, dweight)
    return dx


def rmsnorm1p_forward(x, w, name, context):
    """The gain is 1 + weight, and its gradient that of the weight."""
    return ops.rmsnorm_forward(x, 1 + w[name], context.config.norm_eps)


def same_forward(x, w, name, context):
    return x, None


def kept_forward(x, w, name, context):
    return x, SameCache(x)


def same_backward(dout, cache, g, name):
    return dout


def layernorm_forward(x, w, name, context):
    return ops.layernorm_forward(x, w[name], w[f"{name}_bias"], context.config.norm_eps)


def layernorm_backward(dout, cache, g, name):
    dx, dweight, dbias = ops.layernorm_backward(dout, cache)
    add_gradient(g, name, dweight)
    add_gradient(g, f"{name}_bias", dbias)
    return dx


def add_rmsnorm_forward(x, branch, w, name, context, site):
    return ops.add_rmsnorm_forward(x, branch, w[name], context.config.norm_eps, *dropped_at(site, context))


def add_rmsnorm1p_forward(x, branch, w, name, context, site):
    return ops.add_rmsnorm_forward(x, branch, 1 + w[name], context.config.norm_eps, *dropped_at(site, context))


def add_rmsnorm_backward(dx, dout, cache, g, name):
    buffer = g.buffer(name)
    dx, dbranch, dweight = ops.add_rmsnorm_backward((dx, dout), cache, buffer)
    if buffer is None:
        add_gradient(g, name, dweight)
    return dx, dbranch


def added(norm):
    """A residual sum and then a norm, as two ops."""

    def forward(x, branch, w, name, context, site):
        p, key = dropped_at(site, context)
        branch, dropout_cache = (branch, None) if key is None else ops.dropout_forward(branch, p, key)
        x = branch if x is None else x + branch
        out, cache = norm.forward(x, w, name, context)
        return (x, out), AddedNormCache(cache, dropout_cache)

    def backward(dx, dout, cache, g, name):
        dn = norm.backward(dout, cache.norm, g, name)
        dx = dn if dx is None else dx + dn
        return dx, dx if cache.dropout is None else ops.dropout_backward(dx, cache.dropout)

    return OpPair(forward, backward)


def dropped_at(site, context):
    """The dropout of a branch: its probability and the key of its mask, one per site; no key outside training."""
    if context.key is None or context.config.dropout == 0:
        return 0.0, None
    key = context.key[site] if hasattr(context.key, "dtype") else (*context.key, site)
    return context.config.dropout, key


def l2norm_forward(x, w, name, context):
    return ops.rmsnorm_forward(x, xp_of(x).ones(x.shape[-1], real_dtype(x.dtype)), context.config.norm_eps)


def l2norm_backward(dout, cache, g, name):
    dx, _ = ops.rmsnorm_backward(dout, cache)  # the gain is a constant
    return dx


def split_heads(x: Array, n_heads: int) -> Array:
    """(B, T, H·D) -> (B, H, T, D), a view."""
    B, T, width = x.shape
    return x.reshape(B, T, n_heads, width // n_heads).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) -> (B, T, H·D)."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


def across_heads(norm):
    """A norm of all heads of a token together."""

    def forward(x, w, name, context):                                  # x (B, H, T, D)
        out, cache = norm.forward(merge_heads(x), w, name, context)    # (B, T, H·D)
        return split_heads(out, x.shape[1]), cache

    def backward(dout, cache, g, name):
        return split_heads(norm.backward(merge_heads(dout), cache, g, name), dout.shape[1])

    return OpPair(forward, backward)


def flash_forward(q, k, v, context):
    return ops.flash_attention_forward(q, k, v, context.first, context.last, context.config.attn_scale)


def flash_backward(dout, cache):
    return ops.flash_attention_backward(dout, cache)


def capped_attention_forward(q, k, v, context):
    """Scores with a soft cap: densely."""
    c, k, v = context.config, rounded(k, q.dtype), rounded(v, q.dtype)
    return ops.attention_forward(q, k, v, context.first, context.last, None, c.attn_scale, c.attn_softcap)


def capped_attention_backward(dout, cache):
    return ops.attention_backward(dout, cache)


def capped_forward(x, cap):
    return (x, None) if cap is None else ops.softcap_forward(x, cap)


def capped_backward(dout, cache):
    return dout if cache is None else ops.softcap_backward(dout, cache)


def each_forward(forward):
    def run(xs, w, names, context):
        pairs = [forward(x, w, name, context) for x, name in zip(xs, names, strict=True)]
        return tuple(out for out, _ in pairs), tuple(cache for _, cache in pairs)

    return run


def each_backward(backward):
    def run(douts, caches, g, names):
        return tuple(backward(dout, cache, g, name) for dout, cache, name in zip(douts, caches, names, strict=True))

    return run


def ropes_forward(xs, w, names, context):
    turned = rotary_parts(xs, context.cos)                             # views: RoPE runs in place
    return xs, ops.ropes_forward(turned, context.cos, context.sin, context.config.rope_layout, outs=turned)[1]


def ropes_backward(douts, cache, g, names):
    turned = rotary_parts(douts, cache.cos)
    ops.ropes_backward(turned, cache, outs=turned)
    return douts


def rotary_parts(xs, cos):
    """The components that a table turns: of each head the first ones, or all."""
    R = 2 * cos.shape[-1]
    return xs if xs[0].shape[-1] == R else tuple(x[..., :R] for x in xs)


SAME = OpPair(same_forward, same_backward)
NORM = {
    "rmsnorm": OpPair(rmsnorm_forward, rmsnorm_backward),
    "rmsnorm1p": OpPair(rmsnorm1p_forward, rmsnorm_backward),
    "layernorm": OpPair(layernorm_forward, layernorm_backward),
}
ADD_NORM = {  # a residual sum first: (x, branch) -> (x + dropout(branch), norm of it)
    "rmsnorm": OpPair(add_rmsnorm_forward, add_rmsnorm_backward),
    "rmsnorm1p": OpPair(add_rmsnorm1p_forward, add_rmsnorm_backward),
    "layernorm": added(NORM["layernorm"]),
}
NO_NORM, ADD = dict.fromkeys(NORM, SAME), dict.fromkeys(NORM, added(OpPair(kept_forward, same_backward)))


class BlockNorms(NamedTuple):
    """By kind of norm, what a block of one `norm_placement` begins with, with and without the residual sum, and ends with."""

    add_first: dict[str, OpPair]
    first: dict[str, OpPair]
    last: dict[str, OpPair]


BLOCK_NORMS = {
    "before": BlockNorms(ADD_NORM, NORM, NO_NORM),
    "after": BlockNorms(ADD, NO_NORM, NORM),
    "both": BlockNorms(ADD_NORM, NORM, NORM),
}


def each(pair):
    """A stage of one array as a stage of several, each with its own name."""
    return [OpPair(each_forward(pair.forward), each_backward(pair.backward))]


ROPE = {True: [OpPair(ropes_forward, ropes_backward)], False: []}      # by whether there is a table
ATTENTION = {  # by whether the scores have a soft cap
    False: OpPair(flash_forward, flash_backward),
    True: OpPair(capped_attention_forward, capped_attention_backward),
}
HEAD_NORM = {**NORM, "layernorm": NORM["rmsnorm"]}
BEFORE_ROPE = {
    "rms": {norm: each(pair) for norm, pair in HEAD_NORM.items()},
    "rms_width": {norm: each(across_heads(pair)) for norm, pair in HEAD_NORM.items()},
    **{choice: {norm: [] for norm in NORM} for choice in ("l2", None)},
}
AFTER_ROPE = {"l2": each(OpPair(l2norm_forward, l2norm_backward)), **{choice: [] for choice in ("rms", "rms_width", None)}}


def head_stages(config: ModelConfig, has_rope: bool) -> list[OpPair]:
    """The stages of queries and keys between their projection and attention, in a layer with RoPE or without."""
    return BEFORE_ROPE[config.qk_norm][config.norm] + ROPE[has_rope] + AFTER_ROPE[config.qk_norm]
