"""The file that a student begins with."""

TEMPLATE = '''\
"""A whole Llama, forward and backward, in NumPy.

    numllama grade FILE

says which values and which gradients are right. You get a point for each, in whatever order you write them.
"""

import numpy as np


def llama(weights, config, tokens, targets, segments):
    """The values of a Llama and the gradients of its loss, by name.

    Parameters
    ----------
    weights : dict of str to array
        A row for each output, as in PyTorch: embed (V, C), norm (C,), head (V, C); and for each layer i
        blocks.i.attn_norm (C,), blocks.i.wq (H*D, C), blocks.i.wk and blocks.i.wv (K*D, C), blocks.i.wo (C, H*D),
        blocks.i.ffn_norm (C,), blocks.i.w_gate and blocks.i.w_up (F, C), blocks.i.w_down (C, F).
    config : dict, whose entries are attributes too
        vocab_size V, dim C, n_layers, n_heads H, n_kv_heads K, head_dim D, ffn_dim F, norm_eps, rope_theta;
        and, if you want more configurations, rope_layout, rope_scaling, tie_embeddings, qk_norm.
    tokens, targets : integer arrays, shape (B, T)
        A target of -100 does not count.
    segments : integer array, shape (B, T), or None
        The number of each token's document, where several are packed into a sequence (configurations padded and packed).

    Returns
    -------
    dict of str to array
        As many values and gradients as are done. Store a copy of what you change in place later.
    """
    values = {}

    # Forward. Each layer adds two terms to the stream x.
    x = values["embedding"] = weights["embed"][tokens]                 # (B, T, C)
    for i in range(config.n_layers):
        pass
        # values[f"layer.{i}.attn_norm"]        (B, T, C)      RMSNorm of x
        # values[f"layer.{i}.q"]                (B, T, H*D)    products with wq, wk, wv
        # values[f"layer.{i}.k"]                (B, T, K*D)
        # values[f"layer.{i}.v"]                (B, T, K*D)
        # values[f"layer.{i}.q_rotated"]        (B, H, T, D)   q split into heads, and turned by RoPE
        # values[f"layer.{i}.k_rotated"]        (B, K, T, D)
        # values[f"layer.{i}.scores"]           (B, H, T, T)   each key head serves H/K neighbouring query heads
        # values[f"layer.{i}.attention"]        (B, H, T, T)   softmax over the visible keys
        # values[f"layer.{i}.head_outputs"]     (B, H, T, D)
        # values[f"layer.{i}.attn_out"]         (B, T, C)      product with wo
        # values[f"layer.{i}.after_attention"]  (B, T, C)      x + attn_out
        # values[f"layer.{i}.ffn_norm"]         (B, T, C)
        # values[f"layer.{i}.gate"]             (B, T, F)
        # values[f"layer.{i}.up"]               (B, T, F)
        # values[f"layer.{i}.swiglu"]           (B, T, F)      silu(gate) * up
        # values[f"layer.{i}.ffn_out"]          (B, T, C)
        # values[f"layer.{i}.after_ffn"]        (B, T, C)      the next layer's x
    # values["norm"]                            (B, T, C)
    # values["logits"]                          (B, T, V)
    # values["loss"]                            ()             mean cross-entropy over the targets that count

    # Backward. The gradient of a value has its shape and its name with "d_" before it, that of a weight with "d_weights/":
    # values["d_logits"]                        (B, T, V)
    # values["d_weights/head"]                  (V, C)
    # values["d_norm"]                          (B, T, C)
    # values["d_weights/norm"]                  (C,)
    # for i in reversed(range(config.n_layers)):
    #     values[f"d_layer.{i}.after_ffn"]      (B, T, C)
    #     values[f"d_weights/blocks.{i}.w_down"]    and so on, up to
    # values["d_embedding"]                     (B, T, C)
    # values["d_weights/embed"]                 (V, C)         a token that occurs twice gets the sum
    return values
'''
