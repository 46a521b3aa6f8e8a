"""Small models of every family, with random weights."""

import numpy as np

from numllama.model import ModelConfig, Transformer

FAMILIES = {  # as configurations of numllama.interop make them
    "mistral": dict(n_kv_heads=2, sliding_window=3),
    "qwen2": dict(n_kv_heads=2, bias="qkv", tie_embeddings=True),
    "qwen3-moe": dict(n_kv_heads=2, qk_norm="rms", ffn="moe", n_experts=4, n_experts_per_token=2),
    "mixtral": dict(ffn="moe", n_experts=3, n_experts_per_token=2, router_aux_loss=True, router_aux_loss_coef=0.1),
    "smollm3": dict(rope_layers=(0,)),
    "phi3": dict(rotary_dim=2, sliding_window=4),
    "olmo2": dict(norm_placement="after", qk_norm="rms_width"),
    "gemma": dict(norm="rmsnorm1p", ffn="geglu", embed_scale=4.0, tie_embeddings=True),
    "gemma2": dict(norm="rmsnorm1p", ffn="geglu", embed_scale=4.0, norm_placement="both", attn_softcap=2.0, logit_softcap=3.0,
                   attn_scale=0.3, sliding_window=3, window_layers=(0,)),
    "gemma3": dict(norm="rmsnorm1p", ffn="geglu", embed_scale=4.0, norm_placement="both", qk_norm="rms", sliding_window=3,
                   window_layers=(0,), local_rope_theta=100.0),
    "gpt2": dict(norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True),
    "layernorm after": dict(norm="layernorm", norm_placement="after", qk_norm="l2", rotary_dim=2, n_kv_heads=1),
}  # fmt: skip


def a_model(**options):
    """Random weights without symmetries: the gains of the norms are random too."""
    model = Transformer(
        ModelConfig(**{"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 4, "init_std": 0.3, **options}), dtype="float64"
    )
    rng = np.random.default_rng(0)
    for value in model.params.values():
        value += rng.normal(0, 0.1, value.shape)
    return model
