"""Small random models for the tests of generation, drawn by hypothesis, and a comparison of their logits."""

import numpy as np
from hypothesis import strategies as st

from numllama.backend import to_numpy
from numllama.model import ModelConfig, Transformer

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
DTYPES = st.sampled_from(list(TOLERANCE))
SCALING = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8)
# What the decoder's own pass knows, and what it leaves to the model's.
LLAMAS = [
    {}, dict(rope_layout="interleaved"), dict(tie_embeddings=True), dict(norm_eps=0.1),
    dict(rope_scaling=SCALING, rope_theta=100.0),
]  # fmt: skip
RELATIVES = [
    dict(positions="learned", norm="layernorm", ffn="gelu", bias=True), dict(positions="none"),
    dict(qk_norm="rms"), dict(qk_norm="l2", rope_layout="interleaved"), dict(bias=True), dict(bias="qkv"), dict(rotary_dim=2),
    dict(sliding_window=3), dict(sliding_window=2, window_layers=(0,), local_rope_theta=50.0), dict(rope_layers=(0,)),
    dict(norm_placement="after", qk_norm="rms_width"),
    dict(norm="rmsnorm1p", norm_placement="both", attn_scale=0.3, embed_scale=2.0), dict(attn_softcap=2.0, logit_softcap=3.0),
]  # fmt: skip
HEADS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (6, 2), (6, 3)]  # query heads, key heads


def random_model(dtype="float64", seed=0, **changes) -> Transformer:
    """A model whose parameters are all random, gains and biases too: nothing stands at a special value."""
    shape = dict(vocab_size=19, dim=12, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=14, max_seq_len=32, head_dim=4)
    model = Transformer(ModelConfig(**shape | changes), dtype=dtype)
    rng = np.random.default_rng(seed)
    for view in model.params.values():
        view[...] = rng.standard_normal(view.shape) * 0.3 + (view.ndim == 1)
    return model


def saying(*ids, vocab_size=320, prompt=b"?"):
    """A model that says these ids one after another, whatever else happens, and then the last one for ever."""
    model = Transformer(ModelConfig(vocab_size, dim=vocab_size, n_layers=1, n_heads=1, ffn_dim=1, max_seq_len=64))
    for name, view in model.params.items():
        view[...] = np.eye(vocab_size) if name == "embed" else 1 if "norm" in name else 0
    for before, after in zip([prompt[-1], *ids], [*ids, ids[-1]], strict=True):
        model.params["head"][:, before] = 0
        model.params["head"][after, before] = 9
    return model


@st.composite
def models(draw, kinds=tuple(LLAMAS + RELATIVES), **changes) -> Transformer:
    """A model of any shape. A stream of fewer than 4 may nearly vanish, and what is left of it is rounding."""
    n_heads, n_kv_heads = draw(st.sampled_from(HEADS))
    sizes = dict(
        dim=draw(st.integers(4, 20)), ffn_dim=draw(st.integers(1, 19)), n_layers=draw(st.integers(1, 3)),
        vocab_size=draw(st.integers(2, 40)), head_dim=2 * draw(st.integers(1, 4)), n_heads=n_heads, n_kv_heads=n_kv_heads,
    )  # fmt: skip
    kind, dtype, seed = draw(st.sampled_from(kinds)), draw(DTYPES), draw(st.integers(0, 2**32 - 1))
    return random_model(dtype, seed, **sizes | dict(kind) | changes)


def random_tokens(model, B, T, seed=0) -> np.ndarray:
    return np.random.default_rng([2, seed]).integers(0, model.config.vocab_size, (B, T))


def assert_same_logits(actual, expected):
    """Each logit equal up to the dtype's tolerance, relative to the largest."""
    actual, expected = to_numpy(actual), to_numpy(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= TOLERANCE[expected.dtype.name], f"relative error {error:.1e} in {expected.dtype}"


def cuts(T, places) -> list[slice]:
    """T tokens cut at some places."""
    bounds = [0, *sorted({place % T for place in places} - {0}), T]
    return [slice(*bounds[i : i + 2]) for i in range(len(bounds) - 1)]
