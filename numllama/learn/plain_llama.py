"""A whole Llama, written out: forward from top to bottom, backward from bottom to top.

Start reading here. `model/` computes the same numbers for any configuration, and faster; a test compares the two in float64.
Everything has one name. The value of q is ``a.q``, the cache of the op that computed it ``cache.q``, and the gradient of the loss
with respect to it ``d.q``. Weights are ``w.wq`` and so on, and their gradients ``g.wq``. A gradient has the shape of its value.

Shapes: B batch, T tokens, C width, H query heads, K key/value heads, D head size, F feed-forward width, V vocabulary.
"""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from numllama import ops
from numllama.model.config import ModelConfig
from numllama.ops.intervals import segment_starts


class Forward(NamedTuple):
    """Values by name and the caches of the ops that made them, of one block or of the parts outside of the blocks."""

    values: SimpleNamespace
    caches: SimpleNamespace


class Backward(NamedTuple):
    """The gradient with respect to a block's input, and the gradients of its values and weights by name."""

    dx: np.ndarray
    values: SimpleNamespace
    weights: SimpleNamespace


class Pass(NamedTuple):
    """A text's way through the model and back.

    Attributes
    ----------
    loss : float
        Mean cross-entropy in nats.
    outer : Forward
        ``embedding``, ``norm``, ``logits`` and ``loss``.
    blocks : list of Forward
    d_outer : SimpleNamespace
        Gradients of the values in `outer`.
    d_blocks : list of SimpleNamespace
        Gradients of the values in `blocks`.
    grads : dict of str to array
        Gradients of the parameters, by their names in the model.
    """

    loss: float
    outer: Forward
    blocks: list[Forward]
    d_outer: SimpleNamespace
    d_blocks: list[SimpleNamespace]
    grads: dict[str, np.ndarray]


# ------------------------------------------------------------------------------------------------ the model


def loss_and_grads(
    params: Mapping[str, np.ndarray],
    c: ModelConfig,
    tokens: np.ndarray,
    targets: np.ndarray,
    segments: np.ndarray | None = None,
) -> Pass:
    """Loss and gradients of a plain Llama.

    Parameters
    ----------
    params : mapping of str to array
        Weights by their names in :class:`numllama.Transformer`.
    c : ModelConfig
        RMSNorm, RoPE, SwiGLU, no biases; queries and keys with a norm as in Qwen3, or without.
    tokens, targets : integer array, shape (B, T)
        A target of -100 does not count.
    segments : integer array, shape (B, T), optional
        Documents packed into one sequence: a token sees only its own, whose positions begin at 0.
    """
    outer, blocks = forward(params, c, tokens, segments)
    a, cache = outer
    a.loss, cache.loss = ops.cross_entropy_forward(a.logits, targets)                            # (): mean over the targets
    dlogits = ops.cross_entropy_backward(1.0, cache.loss)                                        # (B, T, V)
    d, d_blocks, grads = backward(dlogits, c, outer, blocks)
    d.loss = np.ones(())
    return Pass(float(a.loss), outer, blocks, d, d_blocks, grads)


def forward(
    params: Mapping[str, np.ndarray], c: ModelConfig, tokens: np.ndarray, segments: np.ndarray | None = None
) -> tuple[Forward, list[Forward]]:
    """From tokens (B, T) to ``logits`` (B, T, V): embed them, apply the blocks, normalise, and score the whole vocabulary."""
    a, cache, blocks = SimpleNamespace(), SimpleNamespace(), []
    positions, visible = positions_and_mask(tokens.shape[1], segments)
    cos, sin = ops.rope_table(positions, c.head_dim, c.rope_theta, c.rope_scaling, params["embed"].dtype)
    a.embedding, cache.embedding = ops.embedding_forward(tokens, params["embed"])                # (B, T, C)
    x = a.embedding
    for i in range(c.n_layers):
        block = block_forward(x, block_weights(params, i), c, cos, sin, visible)
        blocks.append(block)
        x = block.values.after_ffn                                                               # (B, T, C)
    a.norm, cache.norm = ops.rmsnorm_forward(x, params["norm"], c.norm_eps)                      # (B, T, C)
    a.logits, cache.logits = ops.linear_forward(a.norm, params[head_name(c)])                    # (B, T, V)
    return Forward(a, cache), blocks


def backward(
    dlogits: np.ndarray, c: ModelConfig, outer: Forward, blocks: list[Forward]
) -> tuple[SimpleNamespace, list[SimpleNamespace], dict[str, np.ndarray]]:
    """Forward read upwards: gradients of the outer values, of each block's values, and of the parameters."""
    cache, d, d_blocks, grads = outer.caches, SimpleNamespace(logits=dlogits), [], {}
    d.norm, grads[head_name(c)] = ops.linear_backward(d.logits, cache.logits)
    dx, grads["norm"] = ops.rmsnorm_backward(d.norm, cache.norm)
    for i in reversed(range(c.n_layers)):
        dx, d_block, g_block = block_backward(dx, c, blocks[i])
        d_blocks.insert(0, d_block)
        grads |= {f"blocks.{i}.{name}": gradient for name, gradient in vars(g_block).items()}
    d.embedding = dx
    dembed = ops.embedding_backward(d.embedding, cache.embedding)                                # (V, C)
    grads["embed"] = grads["embed"] + dembed if c.tie_embeddings else dembed                     # tied: used twice, so two terms
    return d, d_blocks, grads


# ------------------------------------------------------------------------------------------------ one block


def block_forward(
    x: np.ndarray,
    w: SimpleNamespace,
    c: ModelConfig,
    cos: np.ndarray,
    sin: np.ndarray,
    visible: np.ndarray,
) -> Forward:
    """Add attention to the stream x (B, T, C), then add the feed-forward."""
    a, cache = SimpleNamespace(), SimpleNamespace()
    D, eps, layout = w.wq.shape[0] // c.n_heads, c.norm_eps, c.rope_layout

    a.attn_norm, cache.attn_norm = ops.rmsnorm_forward(x, w.attn_norm, eps)  # (B, T, C)
    a.q, cache.q = ops.linear_forward(a.attn_norm, w.wq)                  # (B, T, H·D)
    a.k, cache.k = ops.linear_forward(a.attn_norm, w.wk)                  # (B, T, K·D)
    a.v, cache.v = ops.linear_forward(a.attn_norm, w.wv)                  # (B, T, K·D)
    q, k = split_heads(a.q, D), split_heads(a.k, D)  # (B, H, T, D), (B, K, T, D)
    if c.qk_norm:
        a.q_norm, cache.q_norm = ops.rmsnorm_forward(q, w.q_norm, eps)    # (B, H, T, D)
        a.k_norm, cache.k_norm = ops.rmsnorm_forward(k, w.k_norm, eps)    # (B, K, T, D)
        q, k = a.q_norm, a.k_norm
    a.q_rotated, cache.q_rotated = ops.rope_forward(q, cos, sin, layout)  # (B, H, T, D)
    a.k_rotated, cache.k_rotated = ops.rope_forward(k, cos, sin, layout)  # (B, K, T, D)
    k, v = repeat(a.k_rotated, c), repeat(split_heads(a.v, D), c)         # (B, H, T, D)
    # (B, H, T, T): a score for each query and key
    a.scores = np.where(visible, a.q_rotated @ k.mT / math.sqrt(D), -math.inf)
    a.attention, cache.attention = ops.softmax_forward(a.scores)          # (B, H, T, T)
    a.head_outputs = a.attention @ v                                      # (B, H, T, D)
    mixed = merge_heads(a.head_outputs)                                   # (B, T, H·D)
    a.attn_out, cache.attn_out = ops.linear_forward(mixed, w.wo)          # (B, T, C)
    a.after_attention = x + a.attn_out                                    # (B, T, C)

    a.ffn_norm, cache.ffn_norm = ops.rmsnorm_forward(a.after_attention, w.ffn_norm, eps)
    a.gate, cache.gate = ops.linear_forward(a.ffn_norm, w.w_gate)         # (B, T, F)
    a.up, cache.up = ops.linear_forward(a.ffn_norm, w.w_up)               # (B, T, F)
    a.swiglu, cache.swiglu = ops.swiglu_forward(a.gate, a.up)             # (B, T, F)
    a.ffn_out, cache.ffn_out = ops.linear_forward(a.swiglu, w.w_down)     # (B, T, C)
    a.after_ffn = a.after_attention + a.ffn_out                           # (B, T, C)
    return Forward(a, cache)


def block_backward(dout: np.ndarray, c: ModelConfig, block: Forward) -> Backward:
    """The lines of block_forward in reverse, each by its gradient.

    A value that is used twice gets the sum of both gradients.
    """
    a, cache = block
    d, g = SimpleNamespace(), SimpleNamespace()
    _, K, _, D = a.k_rotated.shape

    d.after_ffn = d.ffn_out = dout  # an addition copies
    d.swiglu, g.w_down = ops.linear_backward(d.ffn_out, cache.ffn_out)
    d.gate, d.up = ops.swiglu_backward(d.swiglu, cache.swiglu)
    from_up, g.w_up = ops.linear_backward(d.up, cache.up)
    from_gate, g.w_gate = ops.linear_backward(d.gate, cache.gate)
    d.ffn_norm = from_gate + from_up
    from_norm, g.ffn_norm = ops.rmsnorm_backward(d.ffn_norm, cache.ffn_norm)

    d.after_attention = d.attn_out = d.after_ffn + from_norm
    dheads, g.wo = ops.linear_backward(d.attn_out, cache.attn_out)        # (B, T, H·D)
    d.head_outputs = split_heads(dheads, D)
    k, v = repeat(a.k_rotated, c), repeat(split_heads(a.v, D), c)
    d.attention = d.head_outputs @ v.swapaxes(-1, -2)
    dv = a.attention.swapaxes(-1, -2) @ d.head_outputs                    # (B, H, T, D)
    d.scores = ops.softmax_backward(d.attention, cache.attention)  # 0 for hidden keys
    d.q_rotated = d.scores @ k / math.sqrt(D)
    dk = d.scores.swapaxes(-1, -2) @ a.q_rotated / math.sqrt(D)           # (B, H, T, D)
    d.k_rotated = sum_repeated(dk, K)
    d.v = merge_heads(sum_repeated(dv, K))
    dk = ops.rope_backward(d.k_rotated, cache.k_rotated)
    dq = ops.rope_backward(d.q_rotated, cache.q_rotated)
    if c.qk_norm:
        d.q_norm, d.k_norm = dq, dk
        dk, g.k_norm = ops.rmsnorm_backward(d.k_norm, cache.k_norm)
        dq, g.q_norm = ops.rmsnorm_backward(d.q_norm, cache.q_norm)
    d.q, d.k = merge_heads(dq), merge_heads(dk)
    from_v, g.wv = ops.linear_backward(d.v, cache.v)
    from_k, g.wk = ops.linear_backward(d.k, cache.k)
    from_q, g.wq = ops.linear_backward(d.q, cache.q)
    d.attn_norm = from_q + from_k + from_v
    from_norm, g.attn_norm = ops.rmsnorm_backward(d.attn_norm, cache.attn_norm)
    return Backward(d.after_attention + from_norm, d, g)


# ------------------------------------------------------------------------------------------------ heads and names


def positions_and_mask(T: int, segments: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Each token's position in its document, and which keys each query sees: all up to its own place, of the same document."""
    causal = np.tri(T, dtype=bool)                                                               # query t sees keys 0..t
    if segments is None:
        return np.arange(T), causal                                                              # (T,), (T, T)
    first = segment_starts(segments)                                                             # (B, T)
    return np.arange(T) - first, causal & (np.arange(T) >= first[..., None])[:, None]            # (B, T), (B, 1, T, T)


def split_heads(x: np.ndarray, D: int) -> np.ndarray:
    """(B, T, H·D) -> (B, H, T, D)."""
    B, T, width = x.shape
    return x.reshape(B, T, width // D, D).swapaxes(1, 2)


def merge_heads(x: np.ndarray) -> np.ndarray:
    """(B, H, T, D) -> (B, T, H·D)."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)


def repeat(x: np.ndarray, c: ModelConfig) -> np.ndarray:
    """Grouped queries: each key/value head serves H/K query heads, (B, K, T, D) -> (B, H, T, D)."""
    return np.repeat(x, c.n_heads // x.shape[1], axis=1)


def sum_repeated(dx: np.ndarray, K: int) -> np.ndarray:
    """Backward of repeat: sum over the query heads that one head served, (B, H, T, D) -> (B, K, T, D)."""
    B, H, T, D = dx.shape
    return dx.reshape(B, K, H // K, T, D).sum(2)


def block_weights(params: Mapping[str, np.ndarray], i: int) -> SimpleNamespace:
    """The weights of block i by their short names: ``attn_norm``, ``wq``, ``wk``, ``wv``, ``wo``, ``ffn_norm``, ..."""
    prefix = f"blocks.{i}."
    return SimpleNamespace(**{name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)})


def head_name(c: ModelConfig) -> str:
    """The matrix that turns the last values into logits."""
    return "embed" if c.tie_embeddings else "head"
