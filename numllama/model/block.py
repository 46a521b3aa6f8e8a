"""The two blocks of a layer, attention and feed-forward: forward, and backward read upwards.

    x -> x + dropout(wo · attention(wq · n, wk · n, wv · n))           n = norm(x)
    x -> x + dropout(w_down · activation(w_gate · n, w_up · n))        n = norm(x)
The residual stream x is only ever added to. So its gradient runs straight back through all layers, and each block adds
the part that came through itself:  dx = dout + (backward of the branch)(dout).
A block hands its branch on, and the next one begins with the sum and the norm of it, which are one op. The embedding is the first
branch, of a stream that begins with it: there x is None.

A *stage* is a pair of functions that knows its parameters by name:
    out, cache = forward(x, w, name, context)        reads w[name]
    dx         = backward(dout, cache, g, name)      adds to g[name], once, if it is there: what is frozen has no gradient
What a configuration chooses, it chooses in the tables below.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from numllama import ops
from numllama.backend import Array, real_dtype, xp_of
from numllama.model.config import ModelConfig


@dataclass(frozen=True)
class Context:
    """What the blocks of one pass share.

    Attributes
    ----------
    config : ModelConfig
    positions : integer array, shape (T,) or (B, T)
        None where nothing is learned of them, and RoPE's table has what it needs.
    cos, sin : array, shape (T, D/2) or (B, 1, T, D/2)
        RoPE's table, if there is one.
    first, last : array, shape (T,) or (B, T)
        Query t sees the keys ``first <= s < last``; None is causal.
    key : tuple of int, or uint32 array, shape (sites, 2)
        Names this pass's dropout masks, or is the key of each; None drops nothing.
    kv_cache : KVCache
        Keys and values of the tokens before these; None if there are none.
    lora_scale : float
        Of the low-rank updates, in a model with an adapter.
    n_last : int
        Compute outputs for the last n tokens only; earlier tokens contribute keys and values. None: all.
    """

    config: ModelConfig
    positions: Array | None
    cos: Array | None = None
    sin: Array | None = None
    first: Array | None = None
    last: Array | None = None
    key: tuple[int, ...] | None = None
    kv_cache: Any = None
    lora_scale: float = 1.0
    n_last: int | None = None

    def last_tokens(self) -> "Context":
        """The context of the last `n_last` tokens."""
        n = self.n_last
        cos, sin = (None if table is None else table[..., -n:, :] for table in (self.cos, self.sin))
        first, last = (None if ends is None else ends[..., -n:] for ends in (self.first, self.last))
        positions = None if self.positions is None else self.positions[..., -n:]
        return replace(self, positions=positions, cos=cos, sin=sin, first=first, last=last)


# ------------------------------------------------------------------------------------------------ stages


def add_gradient(g, name, gradient):
    if name in g:
        g[name] += gradient


def linear_forward(x, w, name, context):
    out, cache = ops.linear_forward(x, w[name], w.get(f"{name}_bias"))
    update, lora_cache = lora_forward(x, w, name, context)
    if update is not None:
        out += update
    return out, (cache, lora_cache)


def linears_forward(x, w, names, context):
    """Several maps of one input."""
    biases = tuple(w[f"{name}_bias"] for name in names) if f"{names[0]}_bias" in w else None
    outs, cache = ops.linears_forward(x, tuple(w[name] for name in names), biases)
    lora_caches = []
    for name, out in zip(names, outs, strict=True):
        update, lora_cache = lora_forward(x, w, name, context)
        if update is not None:
            out += update
        lora_caches.append(lora_cache)
    return outs, (cache, lora_caches)


def linear_cache(x, w, name, context):
    """What linear_forward keeps for backward, without the product."""
    return (x, w[name], w.get(f"{name}_bias")), lora_forward(x, w, name, context)[1]


def lora_forward(x, w, name, context):
    """An adapter's update of a map's output, and its cache; both None where it has none."""
    if f"{name}_lora_a" not in w:
        return None, None
    return ops.lora_forward(x, w[f"{name}_lora_a"], w[f"{name}_lora_b"], context.lora_scale)


def lora_backward(dout, cache, g, name, dx):
    """dx and what the update adds to it, if there is one."""
    if cache is not None:
        dx, da, db = ops.lora_backward(dout, cache, dx=dx)
        g[f"{name}_lora_a"] += da
        g[f"{name}_lora_b"] += db
    return dx


def linear_backward(dout, caches, g, name, dx=None):
    cache, lora_cache = caches
    if name in g:
        dx, _, *dbias = ops.linear_backward(dout, cache, into=g[name], dx=dx)
        if dbias:
            g[f"{name}_bias"] += dbias[0]
    else:
        dx = ops.linear_backward_input(dout, cache, dx=dx)
    return lora_backward(dout, lora_cache, g, name, dx)


def linears_backward(douts, caches, g, names, dx=None):
    """dx, to which all of the maps add."""
    cache, lora_caches = caches
    if names[0] in g:
        dx, _, *dbiases = ops.linears_backward(douts, cache, into=tuple(g[name] for name in names), dx=dx)
        for name, dbias in zip(names, *dbiases, strict=True) if dbiases else ():
            g[f"{name}_bias"] += dbias
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


def layernorm_forward(x, w, name, context):
    return ops.layernorm_forward(x, w[name], w[f"{name}_bias"], context.config.norm_eps)


def layernorm_backward(dout, cache, g, name):
    dx, dweight, dbias = ops.layernorm_backward(dout, cache)
    add_gradient(g, name, dweight)
    add_gradient(g, f"{name}_bias", dbias)
    return dx


def add_rmsnorm_forward(x, branch, w, name, context, site):
    return ops.add_rmsnorm_forward(x, branch, w[name], context.config.norm_eps, *dropped_at(site, context))


def add_rmsnorm_backward(dx, dout, cache, g, name):
    dx, dbranch, _ = ops.add_rmsnorm_backward((dx, dout), cache, g[name] if name in g else None)  # noqa: SIM401 - g has no get
    return dx, dbranch


def add_layernorm_forward(x, branch, w, name, context, site):
    p, key = dropped_at(site, context)
    branch, dropout_cache = (branch, None) if key is None else ops.dropout_forward(branch, p, key)
    x = branch if x is None else x + branch
    out, cache = layernorm_forward(x, w, name, context)
    return (x, out), (cache, dropout_cache)


def add_layernorm_backward(dx, dout, cache, g, name):
    cache, dropout_cache = cache
    dn = layernorm_backward(dout, cache, g, name)
    dx = dn if dx is None else dx + dn
    return dx, dx if dropout_cache is None else ops.dropout_backward(dx, dropout_cache)


def dropped_at(site, context):
    """What a branch loses: its share and the key of its mask, one for each site; no key outside training."""
    if context.key is None or context.config.dropout == 0:
        return 0.0, None
    key = context.key[site] if hasattr(context.key, "dtype") else (*context.key, site)
    return context.config.dropout, key


def l2norm_forward(x, w, name, context):
    return ops.rmsnorm_forward(x, xp_of(x).ones(x.shape[-1], real_dtype(x.dtype)), context.config.norm_eps)


def l2norm_backward(dout, cache, g, name):
    dx, _ = ops.rmsnorm_backward(dout, cache)  # the gain is a constant
    return dx


def each_forward(forward):
    """A stage of one array as one of several, each with its own name."""

    def run(xs, w, names, context):
        pairs = [forward(x, w, name, context) for x, name in zip(xs, names, strict=True)]
        return tuple(out for out, _ in pairs), tuple(cache for _, cache in pairs)

    return run


def each_backward(backward):
    def run(douts, caches, g, names):
        return tuple(backward(dout, cache, g, name) for dout, cache, name in zip(douts, caches, names, strict=True))

    return run


def ropes_forward(xs, w, names, context):
    return ops.ropes_forward(xs, context.cos, context.sin, context.config.rope_layout, outs=xs)   # nobody else has them


def ropes_backward(douts, cache, g, names):
    return ops.ropes_backward(douts, cache, outs=douts)


NORM = {
    "rmsnorm": (rmsnorm_forward, rmsnorm_backward),
    "layernorm": (layernorm_forward, layernorm_backward),
}
ADD_NORM = {  # a residual sum first: (x, branch) -> (x + dropout(branch), norm of it)
    "rmsnorm": (add_rmsnorm_forward, add_rmsnorm_backward),
    "layernorm": (add_layernorm_forward, add_layernorm_backward),
}
RMS_EACH = each_forward(rmsnorm_forward), each_backward(rmsnorm_backward)
L2_EACH = each_forward(l2norm_forward), each_backward(l2norm_backward)
ROPE = {"rope": [(ropes_forward, ropes_backward)], "learned": [], "none": []}
BEFORE_ROPE = {"rms": [RMS_EACH], "l2": [], None: []}
AFTER_ROPE = {"rms": [], "l2": [L2_EACH], None: []}


def head_stages(config: ModelConfig) -> list[tuple]:
    """What happens to queries and keys between their projection and attention."""
    return BEFORE_ROPE[config.qk_norm] + ROPE[config.positions] + AFTER_ROPE[config.qk_norm]


# ------------------------------------------------------------------------------------------------ attention


def attention_block_forward(
    x: Array | None, branch: Array, w: dict[str, Array], context: Context, layer: int
) -> tuple[tuple[Array, Array], tuple]:
    """(x, branch) -> (x + dropout(branch), wo · attention(norm of that)); each (B, T, C)."""
    c = context.config
    (x, n), norm_cache = ADD_NORM[c.norm][0](x, branch, w, "attn_norm", context, 2 * layer)
    branch, caches = attention_forward(n, w, context, layer)
    return (x[:, -branch.shape[1] :], branch), (c, norm_cache, caches)  # all, or n_last


def attention_forward(n: Array, w: dict[str, Array], context: Context, layer: int) -> tuple[Array, tuple]:
    """wo · attention(wq · n, wk · n, wv · n) of the normalised stream n (B, T, C)."""
    (q, k, v), projections = projections_forward(n, w, context)        # (B, T, H·D), (B, T, K·D) twice
    c = context.config
    q, k, v = split_heads(q, c.n_heads), split_heads(k, c.n_kv_heads), split_heads(v, c.n_kv_heads)    # (B, heads, T, D)
    if context.n_last is None:
        (q, k), stages = stages_forward((q, k), w, ("q_norm", "k_norm"), context)
    else:
        (k,), _ = stages_forward((k,), w, ("k_norm",), context)
        context = context.last_tokens()                                # from here on T is n_last
        (q,), stages = stages_forward((q,), w, ("q_norm",), context)
    if context.kv_cache is not None:
        k, v = context.kv_cache.append(layer, k, v)                    # (B, K, S, D): those before, and these
    mixed, attention_cache = ops.flash_attention_forward(q, k, v, context.first, context.last)
    out, out_cache = linear_forward(merge_heads(mixed), w, "wo", context)               # (B, T, C)
    return out, (projections, stages, attention_cache, out_cache)


def attention_block_backward(dx: Array | None, dbranch: Array, cache: tuple, g: dict[str, Array]) -> tuple[Array, Array]:
    """(dx, dbranch), each (B, T, C); adds the gradients of the block's parameters to `g`."""
    c, norm_cache, (projections, stages, attention_cache, out_cache) = cache
    dmixed = split_heads(linear_backward(dbranch, out_cache, g, "wo"), c.n_heads)       # (B, H, T, D)
    dq, dk, dv = ops.flash_attention_backward(dmixed, attention_cache)
    dq, dk = stages_backward((dq, dk), stages, g, ("q_norm", "k_norm"))
    dn = projections_backward((merge_heads(dq), merge_heads(dk), merge_heads(dv)), projections, g)
    return ADD_NORM[c.norm][1](dx, dn, norm_cache, g, "attn_norm")     # x went on as it was, too


def projections_forward(n: Array, w: dict[str, Array], context: Context) -> tuple[tuple[Array, Array, Array], list]:
    """Queries, keys and values of n (B, T, C); queries only of the last `n_last` tokens."""
    outs, caches = {}, []
    for names in projection_groups(context):
        fewer = context.n_last is not None and names == ("wq",)
        results, cache = linears_forward(n[:, -context.n_last :] if fewer else n, w, names, context)
        outs |= zip(names, results, strict=True)
        caches.append((names, cache))
    return (outs["wq"], outs["wk"], outs["wv"]), caches


def projections_backward(douts: tuple[Array, Array, Array], caches: list, g: dict[str, Array]) -> Array:
    """dn: it fed three maps, whose gradients add."""
    douts, dn = dict(zip(("wq", "wk", "wv"), douts, strict=True)), None
    for names, cache in caches:
        dn = linears_backward(tuple(douts[name] for name in names), cache, g, names, dx=dn)
    return dn


def projection_groups(context: Context) -> list[tuple[str, ...]]:
    """Which of wq, wk and wv are run together: all, but for a norm of the heads, which wants them apart, in rows of their own."""
    if context.n_last is not None:
        return [("wk", "wv"), ("wq",)]
    return [("wq", "wk", "wv")] if context.config.qk_norm is None else [("wq",), ("wk",), ("wv",)]


def stages_forward(
    xs: tuple[Array, ...], w: dict[str, Array], names: tuple[str, ...], context: Context
) -> tuple[tuple[Array, ...], list]:
    """Run the head stages one after another."""
    caches = []
    for forward, backward in head_stages(context.config):
        xs, cache = forward(xs, w, names, context)
        caches.append((backward, cache))
    return xs, caches


def stages_backward(
    douts: tuple[Array, ...], caches: Sequence, g: dict[str, Array], names: tuple[str, ...]
) -> tuple[Array, ...]:
    """And back, the last one first."""
    for backward, cache in reversed(caches):
        douts = backward(douts, cache, g, names)
    return douts


def split_heads(x: Array, n_heads: int) -> Array:
    """(B, T, H·D) -> (B, H, T, D), a view."""
    B, T, width = x.shape
    return x.reshape(B, T, n_heads, width // n_heads).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) -> (B, T, H·D)."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


# ------------------------------------------------------------------------------------------------ feed-forward


def swiglu_forward(n, w, context):
    (gate, up), linear_caches = linears_forward(n, w, ("w_gate", "w_up"), context)      # (B, T, F) both
    out, cache = ops.swiglu_forward(gate, up)
    return out, (linear_caches, cache)


def swiglu_backward(dout, caches, g):
    linear_caches, cache = caches
    return linears_backward(ops.swiglu_backward(dout, cache), linear_caches, g, ("w_gate", "w_up"))


def gelu_forward(n, w, context):
    up, up_cache = linear_forward(n, w, "w_up", context)               # (B, T, F)
    out, cache = ops.gelu_forward(up)
    return out, (up_cache, cache)


def gelu_backward(dout, caches, g):
    up_cache, cache = caches
    return linear_backward(ops.gelu_backward(dout, cache), up_cache, g, "w_up")


FFN = {"swiglu": (swiglu_forward, swiglu_backward), "gelu": (gelu_forward, gelu_backward)}


def ffn_block_forward(
    x: Array, branch: Array, w: dict[str, Array], context: Context, layer: int, cache_only: bool = False
) -> tuple[tuple[Array, Array] | None, tuple]:
    """(x, branch) -> (x + dropout(branch), w_down · activation(norm of that)); `cache_only` leaves out the outputs."""
    c = context.config
    (x, n), norm_cache = ADD_NORM[c.norm][0](x, branch, w, "ffn_norm", context, 2 * layer + 1)
    a, ffn_cache = FFN[c.ffn][0](n, w, context)                        # (B, T, F)
    if cache_only:                                                     # a fifth of the layer's products is saved
        return None, (c, norm_cache, ffn_cache, linear_cache(a, w, "w_down", context))
    out, down_cache = linear_forward(a, w, "w_down", context)          # (B, T, C)
    return (x, out), (c, norm_cache, ffn_cache, down_cache)


def ffn_block_backward(dx: Array | None, dbranch: Array, cache: tuple, g: dict[str, Array]) -> tuple[Array, Array]:
    """(dx, dbranch), each (B, T, C); adds the gradients of the block's parameters to `g`."""
    c, norm_cache, ffn_cache, down_cache = cache
    da = linear_backward(dbranch, down_cache, g, "w_down")             # (B, T, F)
    dn = FFN[c.ffn][1](da, ffn_cache, g)                               # (B, T, C)
    return ADD_NORM[c.norm][1](dx, dn, norm_cache, g, "ffn_norm")


# ------------------------------------------------------------------------------------------------ a layer


def layer_forward(
    x: Array | None, branch: Array, w: dict[str, Array], context: Context, layer: int
) -> tuple[tuple[Array, Array], tuple]:
    """Attention, then feed-forward. Dropout's site 0 is the embedding's, layer i drops its branches at 2i + 1 and 2i + 2."""
    (x, branch), attention_cache = attention_block_forward(x, branch, w, context, layer)
    (x, branch), ffn_cache = ffn_block_forward(x, branch, w, context, layer)
    return (x, branch), (attention_cache, ffn_cache)


def layer_entry(cache: tuple) -> tuple:
    """What of a layer's cache is enough to run it again: that of its first norm."""
    (_, norm_cache, _), _ = cache
    return norm_cache


def layer_again(entry: tuple, w: dict[str, Array], context: Context, layer: int) -> tuple:
    """The layer's cache, from :func:`layer_entry`."""
    c, x = context.config, entry[0][0]                                 # the stream in which the layer's first norm read
    n, _ = NORM[c.norm][0](x, w, "attn_norm", context)
    branch, caches = attention_forward(n, w, context, layer)
    _, ffn_cache = ffn_block_forward(x, branch, w, context, layer, cache_only=True)
    return (c, entry, caches), ffn_cache


def layer_backward(dx: Array | None, dbranch: Array, cache: tuple, g: dict[str, Array]) -> tuple[Array, Array]:
    """(dx, dbranch), from those of the layer's results."""
    attention_cache, ffn_cache = cache
    return attention_block_backward(*ffn_block_backward(dx, dbranch, ffn_cache, g), attention_cache, g)
