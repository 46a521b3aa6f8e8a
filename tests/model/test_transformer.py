"""The whole model: against plain einsums, against differences, and the promises that training builds on."""

import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import log, sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, leaves, unmodified

from numllama import ops
from numllama.backend import to_numpy
from numllama.model import ModelConfig, Transformer, block, stages, transformer
from numllama.optim import AdamW, adamw, clip_grad_norm

SHAPE = dict(vocab_size=23, dim=16, n_layers=2, n_heads=4, ffn_dim=20, max_seq_len=9)
SCALING = dict(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
GPT2 = dict(norm="layernorm", positions="learned", ffn="gelu", bias=True, tie_embeddings=True)
SWITCHES = {
    "llama": {},
    "gpt2": GPT2,
    "gqa": dict(n_kv_heads=2),
    "mqa": dict(n_kv_heads=1),
    "tied": dict(tie_embeddings=True),
    "qk_rms": dict(qk_norm="rms", n_kv_heads=2),
    "qk_l2": dict(qk_norm="l2", n_kv_heads=2),
    "interleaved": dict(rope_layout="interleaved", n_kv_heads=2),
    "scaled_rope": dict(rope_scaling=SCALING, rope_theta=100.0, head_dim=8),  # one frequency kept, two blended, one slowed
    "no_positions": dict(positions="none"),
    "learned": dict(positions="learned"),
    "layernorm": dict(norm="layernorm"),
    "gelu": dict(ffn="gelu"),
    "bias": dict(bias=True),
    "wide_heads": dict(head_dim=6),
    "narrow_heads": dict(head_dim=2, n_kv_heads=2),
    "bias_of_qkv": dict(bias="qkv", n_kv_heads=2),
    "window": dict(sliding_window=3, n_kv_heads=2),
    "a_window_with_its_own_rope": dict(sliding_window=2, window_layers=(1,), local_rope_theta=50.0, rope_scaling=SCALING),
    "a_layer_without_rope": dict(rope_layers=(1,), sliding_window=4, window_layers=(0,)),
    "partial_rope": dict(head_dim=6, rotary_dim=4, rope_layout="interleaved"),
    "norms_after": dict(norm_placement="after", qk_norm="rms_width", n_kv_heads=2),
    "norms_on_both_sides": dict(norm="rmsnorm1p", norm_placement="both", qk_norm="rms", embed_scale=4.0, attn_scale=0.3),
    "geglu": dict(ffn="geglu"),
    "soft_caps": dict(attn_softcap=0.5, logit_softcap=1.5, attn_scale=2.0, n_kv_heads=2, sliding_window=4, tie_embeddings=True),
}
every_switch = pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
MIXED = {"llama": dict(n_kv_heads=2, qk_norm="rms"), "gpt2": GPT2 | dict(qk_norm="rms", n_kv_heads=2)}
both_families = pytest.mark.parametrize("switches", MIXED.values(), ids=MIXED)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 1, 1], [5, 5, 5, 5, 5, 2, 2], [0, 1, 1, 2, 2, 2, 0]])


def build(switches, device="cpu", dtype="float64", seed=0) -> Transformer:
    """A small model whose parameters are all random, gains and biases too: nothing stands at a special value."""
    model = Transformer(ModelConfig(**SHAPE | switches), device=device, dtype=dtype)
    rng = np.random.default_rng(seed)
    for name, view in model.params.items():
        values = rng.standard_normal(view.shape) * 0.3
        gain = view.ndim == 1 and not name.endswith("_bias")
        view[...] = model.xp.asarray(values + 1 if gain else values, dtype=dtype)
    return model


def batch(B=3, T=7, seed=1) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and targets; about a quarter of the targets do not count."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, 23, (2, B, T))
    targets[rng.random((B, T)) < 0.25] = -100
    return tokens, targets


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def assert_same_grads(actual, expected, rtol=1e-12):
    """Each tensor by itself, relative to its own norm."""
    for name in expected:
        error = np.linalg.norm(to_numpy(actual[name] - expected[name]))
        norm = np.linalg.norm(to_numpy(expected[name]))
        assert error <= rtol * norm, f"{name}: relative error {error / max(norm, 1e-300):.1e}, but {rtol:.0e} is allowed"


# ------------------------------------------------------------------------------------------------ the forward


def plain_logits(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    """The model once more, from its papers: heads by einsum, keys repeated, RoPE by complex numbers, a mask."""
    c, (_, T) = model.config, tokens.shape
    H, K, D = c.n_heads, c.n_kv_heads, c.head_dim
    p = {name: to_numpy(view) for name, view in model.params.items()}

    def norm(x, name):
        if c.norm == "layernorm":
            centred = x - x.mean(-1, keepdims=True)
            return centred / np.sqrt(centred.var(-1, keepdims=True) + c.norm_eps) * p[name] + p[f"{name}_bias"]
        return rms(x) * (p[name] + (c.norm == "rmsnorm1p"))

    def rms(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)

    def linear(x, name):
        return np.einsum("...i,oi->...o", x, p[name]) + p.get(f"{name}_bias", 0)

    def turn(x, is_local):  # (B, T, heads, D)
        R = c.rotary_dim or D
        parts = (slice(0, R // 2), slice(R // 2, R)) if c.rope_layout == "half" else (slice(0, R, 2), slice(1, R, 2))
        angles = np.array([[t * frequency(c, j, is_local) for j in range(R // 2)] for t in range(T)])
        z = (x[..., parts[0]] + 1j * x[..., parts[1]]) * np.exp(1j * angles)[:, None]
        out = x.copy()
        out[..., parts[0]], out[..., parts[1]] = z.real, z.imag
        return out

    def heads(x, n, i, name):  # queries and keys of layer i on their way to the scores
        x = rms(x) * p[f"blocks.{i}.{name}"] if c.qk_norm == "rms_width" else x
        x = x.reshape(*x.shape[:2], n, D)
        x = rms(x) * (p[f"blocks.{i}.{name}"] + (c.norm == "rmsnorm1p")) if c.qk_norm == "rms" else x
        x = turn(x, has_window(i)) if c.positions == "rope" and (c.rope_layers is None or i in c.rope_layers) else x
        return rms(x) if c.qk_norm == "l2" else x

    def has_window(i):
        return c.sliding_window is not None and (c.window_layers is None or i in c.window_layers)

    def capped(x, cap):
        return x if cap is None else cap * np.tanh(x / cap)

    def first_norm(x, name):
        return x if c.norm_placement == "after" else norm(x, name)

    def last_norm(x, name):
        return x if c.norm_placement == "before" else norm(x, name)

    age = np.arange(T)[:, None] - np.arange(T)  # of each key, for each query
    x = p["embed"][tokens] * c.embed_scale
    x = x + p["pos_embed"][:T] if c.positions == "learned" else x
    for i in range(c.n_layers):
        b = f"blocks.{i}."
        n = first_norm(x, b + "attn_norm")
        q = heads(linear(n, b + "wq"), H, i, "q_norm")
        k = np.repeat(heads(linear(n, b + "wk"), K, i, "k_norm"), H // K, axis=2)
        v = np.repeat(linear(n, b + "wv").reshape(*x.shape[:2], K, D), H // K, axis=2)
        seen = (age >= 0) & (age < (c.sliding_window if has_window(i) else T))
        scores = capped(np.einsum("bthd,bshd->bhts", q, k) * (c.attn_scale or 1 / sqrt(D)), c.attn_softcap)
        scores = np.where(seen, scores, -np.inf)
        mixed = np.einsum("bhts,bshd->bthd", np.exp(log_softmax(scores)), v)
        x = x + last_norm(linear(mixed.reshape(*x.shape[:2], H * D), b + "wo"), b + "attn_post_norm")
        n = first_norm(x, b + "ffn_norm")
        up = linear(n, b + "w_up")
        gate = up if c.ffn == "gelu" else linear(n, b + "w_gate")
        if c.ffn == "swiglu":
            a = gate / (1 + np.exp(-gate)) * up
        else:
            a = gate / 2 * (1 + np.tanh(sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * (up if c.ffn == "geglu" else 1)
        x = x + last_norm(linear(a, b + "w_down"), b + "ffn_post_norm")
    logits = np.einsum("btc,vc->btv", norm(x, "norm"), p["embed" if c.tie_embeddings else "head"])
    return capped(logits, c.logit_softcap)


def frequency(c: ModelConfig, j: int, is_local: bool) -> float:
    """Of RoPE's pair j; the scaling as Llama 3.1's reference code states it, by wavelengths."""
    is_local = is_local and c.local_rope_theta is not None
    f = (c.local_rope_theta if is_local else c.rope_theta) ** (-2 * j / (c.rotary_dim or c.head_dim))
    if c.rope_scaling is None or is_local:
        return f
    s, wavelength = c.rope_scaling, 2 * np.pi / f
    old = s["original_max_position_embeddings"]
    if wavelength < old / s["high_freq_factor"]:
        return f
    if wavelength > old / s["low_freq_factor"]:
        return f / s["factor"]
    smooth = (old / wavelength - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])
    return (1 - smooth) * f / s["factor"] + smooth * f


@every_switch
def test_forward_equals_plain_einsums(device, switches):
    model, (tokens, _) = build(switches, device), batch()
    assert_close(model.forward(tokens), plain_logits(model, tokens))


@both_families
def test_forward_in_float32_is_as_close_as_float32_can_be(device, switches):
    single, double, (tokens, _) = build(switches, device, "float32"), build(switches, device), batch()
    logits = single.forward(tokens)
    assert logits.dtype == "float32"
    assert_close(logits, double.forward(tokens), rtol=3e-6)


def test_logits_have_a_row_for_each_token(device):
    assert build({}, device).forward(batch()[0]).shape == (3, 7, 23)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "uint8"])
def test_any_integer_is_a_token(device, dtype):
    model, (tokens, targets) = build({}, device), batch()
    targets = abs(targets) % 23
    assert_same_bits(model.forward(tokens.astype(dtype)), model.forward(tokens))
    assert float(model.loss(tokens.astype(dtype), targets.astype(dtype))) == float(model.loss(tokens, targets))


def test_tokens_and_targets_may_be_lists(device):
    model, (tokens, targets) = build({}, device), batch()
    assert_same_bits(model.forward(tokens.tolist()), model.forward(tokens))
    assert float(model.loss(tokens.tolist(), targets.tolist())) == float(model.loss(tokens, targets))


@both_families
def test_changing_a_later_token_leaves_earlier_logits_bitwise_alone(device, switches):
    model, (tokens, _) = build(switches, device), batch()
    logits = model.forward(tokens)
    for t in range(1, 7):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % 23
        after = model.forward(changed)
        assert_same_bits(after[:, :t], logits[:, :t])
        assert (abs(after[:, t] - logits[:, t]).max(-1) > 1e-6).all()


@both_families
def test_sequences_of_a_batch_do_not_see_each_other(device, switches):
    model, (tokens, _) = build(switches, device), batch()
    alone = np.concatenate([to_numpy(model.forward(tokens[b : b + 1])) for b in range(3)])
    assert_close(model.forward(tokens), alone)


# ------------------------------------------------------------------------------------------------ positions and documents


@pytest.mark.parametrize("name", ["llama", "interleaved", "scaled_rope", "qk_rms", "qk_l2"])
def test_rope_sees_only_differences_of_positions(device, name):
    model, (tokens, _) = build(SWITCHES[name], device), batch()
    logits, t = model.forward(tokens), np.arange(7)
    assert_close(model.forward(tokens, positions=t + 2), logits)
    assert_close(model.forward(tokens, positions=t + np.array([[0], [1], [2]])), logits)
    assert abs(model.forward(tokens, positions=t[::-1]) - logits).max() > 1e-3


def test_learned_positions_are_absolute(device):
    model, (tokens, _), t = build(GPT2, device), batch(), np.arange(7)
    logits = model.forward(tokens, positions=t + 2)
    assert abs(logits - model.forward(tokens)).max() > 1e-3
    model.params["pos_embed"][:7] = model.params["pos_embed"][2:].copy()
    assert_close(model.forward(tokens), logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "no_positions"])
def test_given_positions_may_be_the_default_ones(device, name):
    model, (tokens, _), t = build(SWITCHES[name], device), batch(), np.arange(7)
    logits = model.forward(tokens)
    assert_same_bits(model.forward(tokens, positions=t), logits)
    assert_same_bits(model.forward(tokens, positions=np.tile(t, (3, 1))), logits)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_table_that_depends_on_the_length_is_not_that_of_a_longer_sequence(device, kind):
    lists = dict(short_factor=[1.0], long_factor=[3.0]) if kind == "longrope" else {}
    scaling = dict(rope_type=kind, factor=4.0, original_max_position_embeddings=4, **lists)
    config = ModelConfig(11, dim=8, n_layers=1, n_heads=4, max_seq_len=16, rope_scaling=scaling)
    tokens = np.arange(16)[None] % 11
    fresh, used = Transformer(config, device=device), Transformer(config, device=device)
    long = to_numpy(used.forward(tokens))
    assert_same_bits(used.forward(tokens[:, :6]), fresh.forward(tokens[:, :6]))
    assert_same_bits(used.forward(tokens), long)


def test_lengths_may_come_in_any_order(device):
    model, (tokens, _) = build({}, device), batch()
    for T in (4, 7, 1, 5):  # RoPE's table is kept from one call to the next
        assert_same_bits(model.forward(tokens[:, :T]), build({}, device).forward(tokens[:, :T]))


def documents() -> list[tuple[int, slice]]:
    """Row and place of each document of SEGMENTS."""
    found = []
    for b, row in enumerate(SEGMENTS):
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), 7]
        found += [(b, slice(start, stop)) for start, stop in pairwise(cuts)]
    assert len(found) == 8
    return found


@both_families
def test_a_packed_document_is_predicted_as_if_it_were_alone(device, switches):
    model, (tokens, targets) = build(switches, device), batch()
    targets = abs(targets) % 23
    for b, place in documents():
        for t in range(place.start, place.stop):
            only = np.full((3, 7), -100)
            only[b, t] = targets[b, t]
            alone = model.loss(tokens[b : b + 1, place], only[b : b + 1, place])
            assert_close(model.loss(tokens, only, segments=SEGMENTS), alone)


@both_families
def test_packed_documents_give_the_sum_of_their_own_gradients(device, switches):
    model, (tokens, targets) = build(switches, device), batch()
    loss, grads = model.loss_and_grads(tokens, targets, segments=SEGMENTS)
    total, alone = 0, model.params.zeros_like()
    for b, place in documents():
        row, row_targets = tokens[b : b + 1, place], targets[b : b + 1, place]
        total += model.loss_and_grads(row, row_targets, grads=alone, count=int((targets >= 0).sum()))[0]
    assert_close(total, loss)
    assert_same_grads(grads, alone)


def test_one_document_per_row_changes_nothing(device):
    model, (tokens, targets) = build({}, device), batch()
    same = np.tile([[3], [0], [7]], (1, 7))
    assert_close(model.loss(tokens, targets, segments=same), model.loss(tokens, targets))


# ------------------------------------------------------------------------------------------------ the gradient


def check_every_gradient(model, tokens, targets, rtol=1e-8, may_vanish=(), **arguments):
    """Fourth-order differences along a random direction of every tensor, relative to the whole gradient's norm."""
    xp, rng = model.xp, np.random.default_rng(5)
    _, grads = model.loss_and_grads(tokens, targets, **arguments)
    whole = float(xp.linalg.norm(grads.flat))

    def loss(weight, value):
        weight[...] = value
        return float(model.loss_and_grads(tokens, targets, **arguments)[0])

    for name, weight in model.trainable.items():
        assert name in may_vanish or float(xp.linalg.norm(grads[name])) > 1e-3 * whole, f"{name} is hardly checked"
        u = xp.asarray(rng.standard_normal(weight.shape))
        u /= xp.linalg.norm(u)
        w, analytic, errors = weight.copy(), float((grads[name] * u).sum()), []
        for h in (3e-3, 1e-3, 3e-4):
            near = loss(weight, w + h * u) - loss(weight, w - h * u)
            far = loss(weight, w + 2 * h * u) - loss(weight, w - 2 * h * u)
            errors.append(abs((8 * near - far) / (12 * h) - analytic))
        weight[...] = w
        assert min(errors) <= rtol * whole, f"{name}: error {min(errors) / whole:.1e} of the whole gradient"


# A key's bias shifts all scores of a query alike, and softmax does not see it (unless RoPE turns it on the way).
NO_EFFECT = ("blocks.0.wk_bias", "blocks.1.wk_bias")


@every_switch
def test_every_gradient_against_differences(device, switches):
    check_every_gradient(build(switches, device), *batch(), may_vanish=NO_EFFECT if switches == GPT2 else ())


@both_families
def test_every_gradient_against_differences_with_dropout(device, switches):
    check_every_gradient(build(switches | dict(dropout=0.3), device), *batch(), key=(3, 4))


@both_families
def test_every_gradient_against_differences_with_packed_documents(device, switches):
    check_every_gradient(build(switches, device), *batch(), segments=SEGMENTS)


def test_without_rope_a_bias_of_keys_has_no_gradient(device):
    grads = build(GPT2, device).loss_and_grads(*batch())[1]
    assert abs(grads["blocks.0.wk_bias"]).max() < 1e-15 < 1e-3 < abs(grads["blocks.0.wq_bias"]).max()


@every_switch
def test_gradients_have_the_layout_of_the_parameters(device, switches):
    model = build(switches, device)
    _, grads = model.loss_and_grads(*batch())
    assert {name: g.shape for name, g in grads.items()} == {name: w.shape for name, w in model.params.items()}
    assert grads.flat.dtype == model.params.flat.dtype
    assert not model.xp.shares_memory(grads.flat, model.params.flat)


# ------------------------------------------------------------------------------------------------ the loss


def test_loss_is_the_mean_of_the_logits_own_log_softmax(device):
    model, (tokens, targets) = build({}, device), batch()
    logp = log_softmax(to_numpy(model.forward(tokens)))
    picked = [-logp[b, t, targets[b, t]] for b, t in np.ndindex(3, 7) if targets[b, t] != -100]
    assert 0 < len(picked) < 21
    assert_close(model.loss(tokens, targets), np.mean(picked))
    assert_close(model.loss(tokens, targets, count=50), np.sum(picked) / 50)


@both_families
def test_loss_and_grads_gives_the_loss(device, switches):
    model, (tokens, targets) = build(switches, device), batch()
    for arguments in ({}, dict(count=50), dict(segments=SEGMENTS)):
        assert float(model.loss_and_grads(tokens, targets, **arguments)[0]) == float(model.loss(tokens, targets, **arguments))


@both_families
def test_targets_that_are_all_ignored_give_no_loss_and_no_gradient(device, switches):
    model, (tokens, _) = build(switches, device), batch()
    ignored = np.full((3, 7), -100)
    loss, grads = model.loss_and_grads(tokens, ignored)
    assert float(loss) == float(model.loss(tokens, ignored)) == 0
    assert not grads.flat.any()


def test_a_model_with_tiny_weights_finds_all_tokens_equally_likely(device):
    model = Transformer(ModelConfig(**SHAPE, init_std=1e-5), device=device)
    assert abs(float(model.loss(*batch())) - log(23)) < 1e-3


def test_the_seed_makes_the_model(device):
    one, same, other = (Transformer(ModelConfig(**SHAPE), seed=seed, device=device) for seed in (1, 1, 2))
    assert_same_bits(one.params.flat, same.params.flat)
    assert (one.params.matrices != other.params.matrices).mean() > 0.99


def test_a_model_learns_a_batch_by_heart(device):
    model, (tokens, targets) = Transformer(ModelConfig(**SHAPE, n_kv_heads=2), device=device), batch()
    optimizer = AdamW(model.params, lr=0.02, weight_decay=0.0)
    for _ in range(60):
        _, grads = model.loss_and_grads(tokens, targets)
        clip_grad_norm(grads, 1.0)
        optimizer.step(grads)
    assert float(model.loss(tokens, targets)) < 0.05


# ------------------------------------------------------------------------------------------------ dropout and recompute


@both_families
def test_without_dropout_a_key_has_no_effect(device, switches):
    model, (tokens, targets) = build(switches, device), batch()
    for (loss, grads), (keyed_loss, keyed_grads) in [
        (model.loss_and_grads(tokens, targets), model.loss_and_grads(tokens, targets, key=key)) for key in ((1, 2), (3,))
    ]:
        assert float(loss) == float(keyed_loss)
        assert_same_bits(grads.flat, keyed_grads.flat)


def test_without_a_key_nothing_is_dropped(device):
    dropping, plain, (tokens, targets) = build(dict(dropout=0.5), device), build({}, device), batch()
    assert_same_bits(dropping.forward(tokens), plain.forward(tokens))
    assert float(dropping.loss_and_grads(tokens, targets)[0]) == float(plain.loss(tokens, targets))


def test_a_key_names_what_is_dropped(device):
    model, (tokens, targets) = build(dict(dropout=0.5), device), batch()
    losses = [float(model.loss_and_grads(tokens, targets, key=key)[0]) for key in ((0, 1), (0, 2), (1, 1), (0, 1))]
    assert losses[0] == losses[3]
    assert len({*losses, float(model.loss(tokens, targets))}) == 4


def test_each_place_that_drops_has_a_mask_of_its_own(device, monkeypatch):
    """The embedding, and both blocks of each layer; backward drops the same ones, the last one first."""
    forwards, backwards = [], []

    def forward(x, branch, weight, eps, p, key):
        forwards.append((p, key))
        return ops.add_rmsnorm_forward(x, branch, weight, eps, p, key)

    def backward(douts, cache, into):
        backwards.append(cache[1][:2])
        return ops.add_rmsnorm_backward(douts, cache, into)

    spy = SimpleNamespace(**vars(ops) | dict(add_rmsnorm_forward=forward, add_rmsnorm_backward=backward))
    monkeypatch.setattr(stages, "ops", spy)
    build(dict(dropout=0.3), device).loss_and_grads(*batch(), key=(3, 4))
    assert forwards == [(0.3, (3, 4, site)) for site in range(5)]
    assert backwards == forwards[::-1]


@both_families
@pytest.mark.parametrize("arguments", [{}, dict(key=(3, 4)), dict(segments=SEGMENTS)], ids=["plain", "dropout", "segments"])
def test_recompute_gives_the_same_bits(device, switches, arguments):
    model, (tokens, targets) = build(switches | dict(dropout=0.3), device, "float32"), batch()
    loss, grads = model.loss_and_grads(tokens, targets, **arguments)
    again, grads_again = model.loss_and_grads(tokens, targets, recompute=True, **arguments)
    assert float(again) == float(loss)
    assert_same_bits(grads_again.flat, grads.flat)


def test_recompute_leaves_out_the_product_that_only_the_output_needs(monkeypatch):
    done = []

    def one(x, weight, bias=None, dtype=None):
        done.append(weight.shape)
        return ops.linear_forward(x, weight, bias, dtype)

    def several(x, weights, biases=None, dtype=None):
        done.extend(weight.shape for weight in weights)
        return ops.linears_forward(x, weights, biases, dtype)

    monkeypatch.setattr(stages, "ops", SimpleNamespace(**vars(ops) | dict(linear_forward=one, linears_forward=several)))
    model = Transformer(ModelConfig(23, 64, n_layers=3, n_heads=4, ffn_dim=96))
    model.loss_and_grads(*batch(), recompute=True)
    assert done.count((96, 64)) == 2 * 3 * 2                           # w_gate and w_up of three layers, twice
    assert done.count((64, 96)) == 3                                   # w_down, once


def peak_memory(function, *args, **kwargs) -> int:
    """Bytes that a call takes at most, beyond what stays from the first one: RoPE's table, the texts of compiled kernels."""
    function(*args, **kwargs)
    tracemalloc.start()
    try:
        function(*args, **kwargs)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_recompute_keeps_one_array_per_layer():
    tokens, targets = batch(B=8, T=64)
    stream = 8 * 64 * 64 * 4  # bytes of (B, T, C)

    def kept(recompute):
        peaks = []
        for n_layers in (6, 14):
            model = Transformer(ModelConfig(23, 64, n_layers, 4))
            peaks.append(peak_memory(model.loss_and_grads, tokens, targets, recompute=recompute) - model.params.flat.nbytes)
        return (peaks[1] - peaks[0]) / 8 / stream

    statistics = 1 / 64                                                # the norm's, one for each row of 64
    assert 0.95 < kept(recompute=True) - statistics < 1.05
    assert kept(recompute=False) > 10


def test_recompute_lets_the_activations_of_twelve_layers_fall_to_a_quarter():
    model, (tokens, targets) = Transformer(ModelConfig(23, 64, 12, 4)), batch(B=8, T=64)
    grads = model.params.zeros_like()
    plain, less = (peak_memory(model.loss_and_grads, tokens, targets, grads=grads, recompute=r) for r in (False, True))
    assert plain >= 4 * less


def test_forward_and_loss_keep_nothing_for_backward():
    deep, shallow = (Transformer(ModelConfig(23, 64, n_layers, 4)) for n_layers in (9, 2))
    tokens, targets = batch(B=8, T=64)
    for name, arguments in (("forward", (tokens,)), ("loss", (tokens, targets))):
        peaks = [peak_memory(getattr(model, name), *arguments) for model in (deep, shallow)]
        assert peaks[0] < 1.02 * peaks[1]


# ------------------------------------------------------------------------------------------------ parts of a batch


@every_switch
def test_one_buffer_filled_from_two_batches_is_the_sum_of_their_gradients_bit_for_bit(device, switches):
    model = build(switches, device, "float32")
    both, parts = model.params.zeros_like(), []
    for seed in (1, 2):
        assert model.loss_and_grads(*batch(seed=seed), grads=both)[1] is both
        parts.append(model.loss_and_grads(*batch(seed=seed))[1].flat)
    assert_same_bits(both.flat, parts[0] + parts[1])


def sum_over_shards(model, tokens, targets):
    """Loss and gradients of a batch of six, in shards of one, two and three rows."""
    shards = [slice(0, 1), slice(1, 3), slice(3, 6)]
    counts = [int((targets[rows] != -100).sum()) for rows in shards]
    assert len(set(counts)) == 3  # a mean of means would be wrong
    loss, grads = 0, model.params.zeros_like()
    for rows in shards:
        loss += model.loss_and_grads(tokens[rows], targets[rows], grads=grads, count=sum(counts))[0]
    return loss, grads


def unequal_batch():
    tokens, targets = batch(B=6)
    targets[1:3] = -100
    targets[2, 3] = 5
    return tokens, targets


@both_families
def test_unequal_shards_that_share_a_count_add_up_to_the_batch(device, switches):
    model, (tokens, targets) = build(switches, device), unequal_batch()
    loss, grads = model.loss_and_grads(tokens, targets)
    summed_loss, summed = sum_over_shards(model, tokens, targets)
    assert_close(summed_loss, loss)
    assert_same_grads(summed, grads)


@both_families
def test_in_float32_shards_are_as_exact_as_the_batch(device, switches):
    """Both round, each in its own way: the measure is float64, and at most twice the batch's own error."""
    model, exact, (tokens, targets) = build(switches, device, "float32"), build(switches, device), unequal_batch()
    exact.params.flat[...] = model.params.flat
    loss, grads = model.loss_and_grads(tokens, targets)
    _, true = exact.loss_and_grads(tokens, targets)
    summed_loss, summed = sum_over_shards(model, tokens, targets)
    assert_close(summed_loss, loss, rtol=1e-6)
    assert_close(summed.flat, grads.flat, rtol=1e-6)
    for name in true:
        arrays = true[name], grads[name] - true[name], summed[name] - true[name]
        norm, own, error = (float(model.xp.linalg.norm(array)) for array in arrays)
        assert error <= 2 * own + 1e-6 * norm, f"{name}: relative error {error / norm:.1e}, the batch's own {own / norm:.1e}"


@pytest.mark.parametrize("chunk_logits", [1, 3 * 23, 20 * 23])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_head_in_chunks_of_rows_gives_the_same(device, monkeypatch, name, chunk_logits):
    model, (tokens, targets) = build(SWITCHES[name], device), batch()
    loss, grads = model.loss_and_grads(tokens, targets)
    monkeypatch.setattr(transformer, "CHUNK_LOGITS", chunk_logits)
    chunked_loss, chunked_grads = model.loss_and_grads(tokens, targets)
    assert_close(chunked_loss, loss)
    assert_close(model.loss(tokens, targets), loss)
    assert_close(chunked_grads.flat, grads.flat)


def test_no_more_logits_exist_at_once_than_a_chunk_holds(device, monkeypatch):
    sizes = []

    def linear_forward(x, weight, bias=None):
        out, cache = ops.linear_forward(x, weight, bias)
        sizes.append(out.size)
        return out, cache

    monkeypatch.setattr(transformer, "ops", SimpleNamespace(**vars(ops) | dict(linear_forward=linear_forward)))
    monkeypatch.setattr(transformer, "CHUNK_LOGITS", 100)  # four rows of 23
    model = build({}, device)
    for run in (model.loss, model.loss_and_grads):
        sizes.clear()
        run(*batch())
        assert sizes == [4 * 23] * 5 + [23]


def test_the_head_and_loss_of_a_large_vocabulary_need_less_than_a_quarter_of_its_logits():
    V, rows = 128_256, 4096
    model = Transformer(ModelConfig(V, 4, 1, 1, max_seq_len=64), seed=0)
    tokens = np.random.default_rng(0).integers(0, V, (rows // 64, 65))
    tracemalloc.start()
    try:
        model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
        assert tracemalloc.get_traced_memory()[1] < 4 * V * rows / 4
    finally:
        tracemalloc.stop()


def test_threads_may_share_a_model():
    model = build(MIXED["llama"], dtype="float32")
    batches = [batch(seed=seed) for seed in range(8)]
    expected = [build(MIXED["llama"], dtype="float32").loss_and_grads(*one)[1].flat for one in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: model.loss_and_grads(*one)[1].flat, batches))
    for actual, wanted in zip(found, expected, strict=True):
        assert_same_bits(actual, wanted)


@both_families
def test_inputs_stay_as_they_are(device, switches):
    model, (tokens, targets) = build(switches | dict(dropout=0.3), device), batch()
    segments, positions = SEGMENTS.copy(), np.arange(7)
    with unmodified(tokens, targets, segments, positions, model.params.flat):
        model.forward(tokens, positions=positions)
        model.loss(tokens, targets, segments=segments)
        model.loss_and_grads(tokens, targets, segments=segments, key=(1, 2))


# ------------------------------------------------------------------------------------------------ float32


def spy_on_dtypes(monkeypatch) -> dict[str, set[str]]:
    """For each op that the model calls, the dtypes of all floats in its arguments, outputs and caches."""
    seen = {}

    def spy(name, function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            floats = [leaf for leaf in leaves((args, tuple(kwargs.values()), result)) if leaf.dtype.kind == "f"]
            seen.setdefault(name, set()).update(leaf.dtype.name for leaf in floats)
            return result

        return call

    pairs = {name: spy(name, function) for name, function in vars(ops).items() if name in ops.__all__ and callable(function)}
    for module in (block, stages, transformer):
        monkeypatch.setattr(module, "ops", SimpleNamespace(**vars(ops) | pairs))
    monkeypatch.setattr(adamw, "adamw_update", spy("adamw_update", adamw.adamw_update))
    return seen


@pytest.mark.parametrize("arguments", [{}, dict(key=(3, 4), segments=SEGMENTS, recompute=True)], ids=["plain", "all"])
@pytest.mark.parametrize("switches", [*SWITCHES.values(), *MIXED.values()], ids=[*SWITCHES, "mixed_llama", "mixed_gpt2"])
def test_a_float32_step_meets_no_float64(device, monkeypatch, switches, arguments):
    seen = spy_on_dtypes(monkeypatch)
    model = build(switches | dict(dropout=0.3), device, "float32")
    optimizer = AdamW(model.params)
    loss, grads = model.loss_and_grads(*batch(), **arguments)
    clip_grad_norm(grads, 0.1)
    optimizer.step(grads, lr=1e-3)
    attention = "attention_backward" if "attn_softcap" in switches else "flash_attention_backward"
    assert {"linear_backward", attention, "cross_entropy_backward", "adamw_update"} <= set(seen)
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {"float32"}} == {}
    buffers = [loss, model.params.flat, grads.flat, optimizer.state["m"].flat, optimizer.state["v"].flat]
    assert {buffer.dtype.name for buffer in buffers} == {"float32"}


def test_a_count_from_numpy_does_not_widen_float32(device, monkeypatch):
    seen, (tokens, targets) = spy_on_dtypes(monkeypatch), batch()
    model = build({}, device, "float32")
    count = (targets != -100).sum()  # a numpy.int64, as everybody writes it
    loss, grads = model.loss_and_grads(tokens, targets, count=count)
    assert {name: dtypes for name, dtypes in seen.items() if dtypes - {"float32"}} == {}
    plain_loss, plain_grads = model.loss_and_grads(tokens, targets)
    assert_same_bits(loss, plain_loss)
    assert_same_bits(grads.flat, plain_grads.flat)


# ------------------------------------------------------------------------------------------------ what is refused

TOKENS, TARGETS = batch(B=2)


def with_value(array, value):
    array = array.copy()
    array[1, 3] = value
    return array


@pytest.mark.parametrize("method", ["forward", "loss", "loss_and_grads"])
@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        (with_value(TOKENS, 23), ValueError, "tokens holds 23, but must lie in 0..22"),
        (with_value(TOKENS, -1), ValueError, "tokens holds -1, but must lie in 0..22"),
        (with_value(TOKENS, -100), ValueError, "tokens holds -100, but must lie in 0..22"),
        (TOKENS.astype(float), TypeError, "tokens must be integers, not float64"),
        (TOKENS > 0, TypeError, "tokens must be integers, not bool"),
        (TOKENS[0], ValueError, "tokens has shape (7,), but (any, any) is needed"),
        ([1, 2, 3], ValueError, "tokens has shape (3,), but (any, any) is needed"),
        (TOKENS[None], ValueError, "tokens has shape (1, 2, 7), but (any, any) is needed"),
        (np.zeros((2, 10), int), ValueError, "tokens are 10 long, but max_seq_len is 9"),
    ],
    ids=["too_large", "negative", "ignored", "float", "bool", "one_axis", "flat_list", "three_axes", "too_long"],
)
def test_tokens_that_cannot_be_are_refused(method, tokens, error, message):
    arguments = (tokens,) if method == "forward" else (tokens, tokens)
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        getattr(build({}), method)(*arguments)


def test_an_empty_sequence_is_refused():
    with pytest.raises(ValueError, match=r"^tokens has shape \(\d, 0\), but at least one row and one column are needed$"):
        build({}).forward(TOKENS[:, :0])


@pytest.mark.parametrize("method", ["loss", "loss_and_grads"])
@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (with_value(TARGETS, 23), ValueError, "targets holds 23, but must lie in 0..22 or -100, which is ignored"),
        (with_value(TARGETS, -1), ValueError, "targets holds -1, but must lie in 0..22 or -100, which is ignored"),
        (TARGETS.astype("float32"), TypeError, "targets must be integers, not float32"),
        (TARGETS[:, :6], ValueError, "targets has shape (2, 6), but (2, 7) is needed"),
        (TARGETS[:1], ValueError, "targets has shape (1, 7), but (2, 7) is needed"),
        (TARGETS.T, ValueError, "targets has shape (7, 2), but (2, 7) is needed"),
    ],
    ids=["too_large", "negative", "float", "too_short", "too_few", "transposed"],
)
def test_targets_that_cannot_be_are_refused(method, targets, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        getattr(build({}), method)(TOKENS, targets)


@pytest.mark.parametrize("name", ["llama", "gpt2", "no_positions"])
@pytest.mark.parametrize(
    ("positions", "error", "message"),
    [
        (np.arange(3, 10), ValueError, "positions holds 9, but must lie in 0..8"),
        (np.arange(-1, 6), ValueError, "positions holds -1, but must lie in 0..8"),
        (np.arange(7.0), TypeError, "positions must be integers, not float64"),
        (np.arange(6), ValueError, "positions has shape (6,), but (7,) is needed"),
        (np.zeros((3, 7), int), ValueError, "positions has shape (3, 7), but (2, 7) is needed"),
    ],
    ids=["too_large", "negative", "float", "too_short", "too_many"],
)
def test_positions_that_cannot_be_are_refused(name, positions, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        build(SWITCHES[name]).forward(TOKENS, positions=positions)


def test_segments_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"^segments has shape \(3, 7\), but \(2, 7\) is needed$"):
        build({}).loss(TOKENS, TARGETS, segments=SEGMENTS)


def test_refused_input_leaves_the_buffer_of_gradients_alone():
    model = build({})
    grads = model.params.zeros_like()
    with pytest.raises(ValueError, match=r"^targets holds 23"):
        model.loss_and_grads(TOKENS, with_value(TARGETS, 23), grads=grads)
    assert not grads.flat.any()


@pytest.mark.parametrize("dtype", ["float8", "int32"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=f"^dtype is '{dtype}', but must be one of float32, float64, bfloat16, float16$"):
        Transformer(ModelConfig(**SHAPE), dtype=dtype)
