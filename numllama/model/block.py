"""The two blocks of a layer, attention and feed-forward: forward, and backward read upwards.

    x -> x + dropout(wo · attention(wq · n, wk · n, wv · n))           n = norm(x)
    x -> x + dropout(w_down · activation(w_gate · n, w_up · n))        n = norm(x)
The residual stream x is only ever added to. So its gradient runs straight back through all layers, and each block adds
the part that came through itself:  dx = dout + (backward of the branch)(dout).

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
    asked : int
        Only so many tokens at the end are asked for: of those before, keys and values are all that is needed. None is all.
    """

    config: ModelConfig
    positions: Array
    cos: Array | None = None
    sin: Array | None = None
    first: Array | None = None
    last: Array | None = None
    key: tuple[int, ...] | None = None
    kv_cache: Any = None
    lora_scale: float = 1.0
    asked: int | None = None

    def tail(self) -> "Context":
        """What the tokens that are asked for share."""
        n = self.asked
        cos, sin = (None if table is None else table[..., -n:, :] for table in (self.cos, self.sin))
        first, last = (None if ends is None else ends[..., -n:] for ends in (self.first, self.last))
        return replace(self, positions=self.positions[..., -n:], cos=cos, sin=sin, first=first, last=last)


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


def linear_cache(x, w, name, context):
    """What linear_forward keeps for backward, without the product."""
    return (x, w[name], w.get(f"{name}_bias")), lora_forward(x, w, name, context)[1]


def lora_forward(x, w, name, context):
    """An adapter's update of a map's output, and its cache; both None where it has none."""
    if f"{name}_lora_a" not in w:
        return None, None
    return ops.lora_forward(x, w[f"{name}_lora_a"], w[f"{name}_lora_b"], context.lora_scale)


def linear_backward(dout, caches, g, name, dx=None):
    cache, lora_cache = caches
    if name in g:
        dx, _, *dbias = ops.linear_backward(dout, cache, into=g[name], dx=dx)
        if dbias:
            g[f"{name}_bias"] += dbias[0]
    else:
        dx = ops.linear_backward_input(dout, cache, dx=dx)
    if lora_cache is not None:
        dx, da, db = ops.lora_backward(dout, lora_cache, dx=dx)
        g[f"{name}_lora_a"] += da
        g[f"{name}_lora_b"] += db
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


def add_rmsnorm_forward(x, branch, w, name, context):
    return ops.add_rmsnorm_forward(x, branch, w[name], context.config.norm_eps)


def add_rmsnorm_backward(dx, dout, cache, g, name):
    dx, _, dweight = ops.add_rmsnorm_backward((dx, dout), cache)
    add_gradient(g, name, dweight)
    return dx


def add_layernorm_forward(x, branch, w, name, context):
    x = x + branch
    out, cache = layernorm_forward(x, w, name, context)
    return (x, out), cache


def add_layernorm_backward(dx, dout, cache, g, name):
    return dx + layernorm_backward(dout, cache, g, name)


def l2norm_forward(x, w, name, context):
    return ops.rmsnorm_forward(x, xp_of(x).ones(x.shape[-1], real_dtype(x.dtype)), context.config.norm_eps)


def l2norm_backward(dout, cache, g, name):
    dx, _ = ops.rmsnorm_backward(dout, cache)  # the gain is a constant
    return dx


def rope_forward(x, w, name, context):
    return ops.rope_forward(x, context.cos, context.sin, context.config.rope_layout)


def rope_backward(dout, cache, g, name):
    return ops.rope_backward(dout, cache)


def dropout_forward(x, site, context):
    """Dropout with a mask for each site; the identity, with no cache, outside training."""
    if context.key is None or context.config.dropout == 0:
        return x, None
    key = context.key[site] if hasattr(context.key, "dtype") else (*context.key, site)
    return ops.dropout_forward(x, context.config.dropout, key)


def dropout_backward(dout, cache):
    return dout if cache is None else ops.dropout_backward(dout, cache)


NORM = {
    "rmsnorm": (rmsnorm_forward, rmsnorm_backward),
    "layernorm": (layernorm_forward, layernorm_backward),
}
ADD_NORM = {  # a residual sum first: (x, branch) -> (x + branch, norm of it); both gradients of the sum are dx
    "rmsnorm": (add_rmsnorm_forward, add_rmsnorm_backward),
    "layernorm": (add_layernorm_forward, add_layernorm_backward),
}
ROPE = {"rope": [(rope_forward, rope_backward)], "learned": [], "none": []}
BEFORE_ROPE = {"rms": [(rmsnorm_forward, rmsnorm_backward)], "l2": [], None: []}
AFTER_ROPE = {"rms": [], "l2": [(l2norm_forward, l2norm_backward)], None: []}


def head_stages(config: ModelConfig) -> list[tuple]:
    """What happens to queries and keys between their projection and attention."""
    return BEFORE_ROPE[config.qk_norm] + ROPE[config.positions] + AFTER_ROPE[config.qk_norm]


# ------------------------------------------------------------------------------------------------ attention


def attention_block_forward(x: Array, w: dict[str, Array], context: Context, layer: int) -> tuple[Array, tuple]:
    """The branch dropout(wo · attention(...)), to be added to x (B, T, C)."""
    c = context.config
    n, norm_cache = NORM[c.norm][0](x, w, "attn_norm", context)        # (B, T, C)
    k, k_cache = linear_forward(n, w, "wk", context)                   # (B, T, K·D)
    v, v_cache = linear_forward(n, w, "wv", context)                   # (B, T, K·D)
    k, k_stages = stages_forward(split_heads(k, c.n_kv_heads), w, "k_norm", context)    # (B, K, T, D)
    if context.asked is not None:
        n, context = n[:, -context.asked :], context.tail()            # T is their number from here on
    q, q_cache = linear_forward(n, w, "wq", context)                   # (B, T, H·D)
    q, q_stages = stages_forward(split_heads(q, c.n_heads), w, "q_norm", context)       # (B, H, T, D)
    v = split_heads(v, c.n_kv_heads)                                   # (B, K, T, D)
    if context.kv_cache is not None:
        k, v = context.kv_cache.append(layer, k, v)                    # (B, K, S, D): those before, and these
    mixed, attention_cache = ops.flash_attention_forward(q, k, v, context.first, context.last)
    out, out_cache = linear_forward(merge_heads(mixed), w, "wo", context)               # (B, T, C)
    out, dropout_cache = dropout_forward(out, 2 * layer + 1, context)
    caches = norm_cache, q_cache, k_cache, v_cache, q_stages, k_stages, attention_cache, out_cache, dropout_cache
    return out, (c, caches)


def attention_block_backward(dout: Array, cache: tuple, g: dict[str, Array]) -> Array:
    """dx (B, T, C); adds the gradients of the block's parameters to `g`."""
    c, caches = cache
    norm_cache, q_cache, k_cache, v_cache, q_stages, k_stages, attention_cache, out_cache, dropout_cache = caches
    dbranch = dropout_backward(dout, dropout_cache)                    # (B, T, C)
    dmixed = split_heads(linear_backward(dbranch, out_cache, g, "wo"), c.n_heads)       # (B, H, T, D)
    dq, dk, dv = ops.flash_attention_backward(dmixed, attention_cache)
    dq = merge_heads(stages_backward(dq, q_stages, g, "q_norm"))       # (B, T, H·D)
    dk = merge_heads(stages_backward(dk, k_stages, g, "k_norm"))       # (B, T, K·D)
    dn = linear_backward(dq, q_cache, g, "wq")                         # n fed three maps: their gradients add
    linear_backward(dk, k_cache, g, "wk", dx=dn)
    linear_backward(merge_heads(dv), v_cache, g, "wv", dx=dn)
    return ADD_NORM[c.norm][1](dout, dn, norm_cache, g, "attn_norm")   # x went on as it was, too


def stages_forward(x: Array, w: dict[str, Array], name: str, context: Context) -> tuple[Array, list]:
    """Run the head stages one after another."""
    caches = []
    for forward, backward in head_stages(context.config):
        x, cache = forward(x, w, name, context)
        caches.append((backward, cache))
    return x, caches


def stages_backward(dout: Array, caches: Sequence, g: dict[str, Array], name: str) -> Array:
    """And back, the last one first."""
    for backward, cache in reversed(caches):
        dout = backward(dout, cache, g, name)
    return dout


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
    gate, gate_cache = linear_forward(n, w, "w_gate", context)         # (B, T, F)
    up, up_cache = linear_forward(n, w, "w_up", context)               # (B, T, F)
    out, cache = ops.swiglu_forward(gate, up)
    return out, (gate_cache, up_cache, cache)


def swiglu_backward(dout, caches, g):
    gate_cache, up_cache, cache = caches
    dgate, dup = ops.swiglu_backward(dout, cache)
    dn = linear_backward(dgate, gate_cache, g, "w_gate")
    return linear_backward(dup, up_cache, g, "w_up", dx=dn)


def gelu_forward(n, w, context):
    up, up_cache = linear_forward(n, w, "w_up", context)               # (B, T, F)
    out, cache = ops.gelu_forward(up)
    return out, (up_cache, cache)


def gelu_backward(dout, caches, g):
    up_cache, cache = caches
    return linear_backward(ops.gelu_backward(dout, cache), up_cache, g, "w_up")


FFN = {"swiglu": (swiglu_forward, swiglu_backward), "gelu": (gelu_forward, gelu_backward)}


def ffn_block_forward(
    x: Array, branch: Array, w: dict[str, Array], context: Context, site: int, again: bool = False
) -> tuple[Array | None, tuple]:
    """x + branch + dropout(w_down · activation(...)); x and branch (B, T, C). Run `again`, it gives the cache alone."""
    c = context.config
    (x, n), norm_cache = ADD_NORM[c.norm][0](x, branch, w, "ffn_norm", context)         # (B, T, C) both
    a, ffn_cache = FFN[c.ffn][0](n, w, context)                        # (B, T, F)
    if again:                                                          # a fifth of the layer's products is saved
        out, down_cache = x, linear_cache(a, w, "w_down", context)     # any array of that shape: dropout keeps no numbers
    else:
        out, down_cache = linear_forward(a, w, "w_down", context)      # (B, T, C)
    out, dropout_cache = dropout_forward(out, site, context)
    return None if again else x + out, (c, norm_cache, ffn_cache, down_cache, dropout_cache)


def ffn_block_backward(dout: Array, cache: tuple, g: dict[str, Array]) -> Array:
    """dx (B, T, C), which is dbranch too; adds the gradients of the block's parameters to `g`."""
    c, norm_cache, ffn_cache, down_cache, dropout_cache = cache
    dbranch = dropout_backward(dout, dropout_cache)                    # (B, T, C)
    da = linear_backward(dbranch, down_cache, g, "w_down")             # (B, T, F)
    dn = FFN[c.ffn][1](da, ffn_cache, g)                               # (B, T, C)
    return ADD_NORM[c.norm][1](dout, dn, norm_cache, g, "ffn_norm")


# ------------------------------------------------------------------------------------------------ a layer


def layer_forward(
    x: Array, w: dict[str, Array], context: Context, layer: int, again: bool = False
) -> tuple[Array | None, tuple]:
    """Attention, then feed-forward; `again` for the cache alone. Dropout's site 0 is the embedding."""
    branch, attention_cache = attention_block_forward(x, w, context, layer)
    x = x[:, -branch.shape[1] :]                                       # all, unless fewer were asked for
    x, ffn_cache = ffn_block_forward(x, branch, w, context, site=2 * layer + 2, again=again)
    return x, (attention_cache, ffn_cache)


def layer_backward(dout: Array, cache: tuple, g: dict[str, Array]) -> Array:
    attention_cache, ffn_cache = cache
    return attention_block_backward(ffn_block_backward(dout, ffn_cache, g), attention_cache, g)
