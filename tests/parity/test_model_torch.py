"""The whole model against PyTorch: its own ops and its autograd, in float64."""

from math import pi

import numpy as np
import pytest

from numllama import ops
from numllama.backend import to_numpy
from numllama.model import ModelConfig, Transformer
from numllama.optim import AdamW, clip_grad_norm, cosine_schedule

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SHAPE = dict(vocab_size=31, dim=24, n_layers=3, n_heads=4, ffn_dim=40, max_seq_len=12)
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
    "scaled_rope": dict(rope_scaling=SCALING, rope_theta=100.0, head_dim=8),
    "no_positions": dict(positions="none"),
    "learned": dict(positions="learned"),
    "layernorm": dict(norm="layernorm"),
    "gelu": dict(ffn="gelu"),
    "bias": dict(bias=True),
    "wide_heads": dict(head_dim=10, n_kv_heads=2),
    "norm_eps": dict(norm_eps=0.1, qk_norm="l2"),
}
SEGMENTS = np.array([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [5, 5, 5, 5, 5, 2, 2, 2, 5, 5]])


def build(switches) -> Transformer:
    """A small model in float64 whose parameters are all random, gains and biases too."""
    model = Transformer(ModelConfig(**SHAPE | switches), dtype="float64")
    rng = np.random.default_rng(0)
    for name, view in model.params.items():
        gain = view.ndim == 1 and not name.endswith("_bias")
        view[...] = rng.standard_normal(view.shape) * 0.3 + gain
    return model


def batch(seed=1):
    """Tokens and targets; about a quarter of the targets do not count."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, 31, (2, 2, 10))
    targets[rng.random((2, 10)) < 0.25] = -100
    return tokens, targets


# ------------------------------------------------------------------------------------------------ the same model in torch


def torch_params(model) -> dict:
    return {name: torch.tensor(to_numpy(view), requires_grad=True) for name, view in model.params.items()}


def torch_loss(p, c, tokens, targets, segments=None, key=None):
    tokens, targets, T = torch.as_tensor(tokens), torch.as_tensor(targets), tokens.shape[1]
    F = torch.nn.functional
    segments = torch.zeros_like(tokens) if segments is None else torch.as_tensor(segments)
    document = torch.cat([torch.zeros_like(segments[:, :1]), (segments.diff(dim=1) != 0).cumsum(1)], 1)
    same = document[:, :, None] == document[:, None, :]
    allowed = same & torch.ones(T, T, dtype=torch.bool).tril()
    positions = allowed.sum(-1) - 1

    def norm(x, name):
        if c.norm == "layernorm":
            return F.layer_norm(x, x.shape[-1:], p[name], p[f"{name}_bias"], c.norm_eps)
        return F.rms_norm(x, x.shape[-1:], p[name], c.norm_eps)

    def linear(x, name):
        return F.linear(x, p[name], p.get(f"{name}_bias"))

    def drop(x, site):
        """The masks are numllama's: a hash of the key, of the site and of the place."""
        if key is None:
            return x
        return x * torch.tensor(ops.dropout_forward(np.ones(tuple(x.shape)), c.dropout, (*key, site))[0])

    def rope(x):
        angles = positions[:, None, :, None] * frequencies(c)
        if c.rope_layout == "interleaved":
            z = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(z * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        angles = torch.cat([angles, angles], -1)
        x1, x2 = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-x2, x1], -1) * angles.sin()

    def heads(x, name):
        x = x.unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
        if c.qk_norm == "rms":
            x = F.rms_norm(x, x.shape[-1:], p[name], c.norm_eps)
        if c.positions == "rope":
            x = rope(x)
        return F.rms_norm(x, x.shape[-1:], None, c.norm_eps) if c.qk_norm == "l2" else x

    x = F.embedding(tokens, p["embed"])
    if c.positions == "learned":
        x = x + F.embedding(positions, p["pos_embed"])
    x = drop(x, 0)
    for i in range(c.n_layers):
        b = f"blocks.{i}."
        n = norm(x, b + "attn_norm")
        q, k = heads(linear(n, b + "wq"), b + "q_norm"), heads(linear(n, b + "wk"), b + "k_norm")
        v = linear(n, b + "wv").unflatten(-1, (-1, c.head_dim)).transpose(1, 2)
        k, v = (part.repeat_interleave(c.n_heads // c.n_kv_heads, dim=1) for part in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None])
        x = x + drop(linear(mixed.transpose(1, 2).flatten(-2), b + "wo"), 2 * i + 1)
        n = norm(x, b + "ffn_norm")
        if c.ffn == "swiglu":
            a = F.silu(linear(n, b + "w_gate")) * linear(n, b + "w_up")
        else:
            a = F.gelu(linear(n, b + "w_up"), approximate="tanh")
        x = x + drop(linear(a, b + "w_down"), 2 * i + 2)
    logits = F.linear(norm(x, "norm"), p["embed" if c.tie_embeddings else "head"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def frequencies(c):
    """As in Hugging Face's `_compute_llama3_parameters`."""
    frequency = 1.0 / c.rope_theta ** (torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    if c.rope_scaling is None:
        return frequency
    s, wavelength = c.rope_scaling, 2 * pi / frequency
    low, high, old = s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
    smooth = (old / wavelength - low) / (high - low)
    blended = (1 - smooth) * frequency / s["factor"] + smooth * frequency
    slowed = torch.where(wavelength > old / low, frequency / s["factor"], frequency)
    return torch.where((wavelength >= old / high) & (wavelength <= old / low), blended, slowed)


def check(model, tokens, targets, vanishing=(), **arguments):
    """Loss and every gradient to 1e-10, each relative to itself (or to the whole where it vanishes)."""
    p = torch_params(model)
    expected = torch_loss(p, model.config, tokens, targets, **arguments)
    expected.backward()
    loss, grads = model.loss_and_grads(tokens, targets, **arguments)
    assert float(loss) == pytest.approx(expected.item(), rel=1e-12)
    assert set(p) == set(grads)
    whole = np.linalg.norm(grads.flat)
    for name, view in grads.items():
        true = p[name].grad.numpy()
        norm, error = np.linalg.norm(true), np.linalg.norm(view - true)
        assert (norm < 1e-14 * whole) == (name in vanishing), name
        assert error <= 1e-10 * norm or name in vanishing, f"{name}: relative error {error / norm:.1e}"
        assert error <= 1e-10 * whole


# Softmax does not see a bias that all keys share, unless RoPE turns it on the way.
NO_EFFECT = [f"blocks.{i}.wk_bias" for i in range(3)]


@pytest.mark.parametrize("name", SWITCHES)
def test_loss_and_gradients_equal_autograds(name):
    check(build(SWITCHES[name]), *batch(), vanishing=NO_EFFECT if name == "gpt2" else ())


@pytest.mark.parametrize("name", ["llama", "gpt2", "interleaved", "qk_rms", "scaled_rope"])
def test_packed_documents_equal_autograds_with_a_mask(name):
    check(build(SWITCHES[name]), *batch(), vanishing=NO_EFFECT if name == "gpt2" else (), segments=SEGMENTS)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gqa"])
def test_dropout_equals_autograds_with_the_same_masks(name):
    model = build(SWITCHES[name] | dict(dropout=0.3))
    check(model, *batch(), vanishing=NO_EFFECT if name == "gpt2" else (), key=(7, 3))


def test_thirty_steps_of_training_stay_together():
    """Gradients, clipping, schedule and AdamW at once; rounding grows on the way."""
    model = build(dict(n_kv_heads=2))
    p = torch_params(model)
    matrices, vectors = ([w for w in p.values() if (w.ndim == 2) == flag] for flag in (True, False))
    groups = [dict(params=matrices, weight_decay=0.1), dict(params=vectors, weight_decay=0.0)]
    theirs, ours = torch.optim.AdamW(groups, betas=(0.9, 0.95)), AdamW(model.params)
    for step in range(1, 31):
        lr = cosine_schedule(step, 1e-2, 1e-3, 5, 30)
        tokens, targets = batch(seed=step)
        loss, grads = model.loss_and_grads(tokens, targets)
        clip_grad_norm(grads, 1.0)
        ours.step(grads, lr)
        theirs.zero_grad()
        expected = torch_loss(p, model.config, tokens, targets)
        expected.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
        assert float(loss) == pytest.approx(expected.item(), rel=1e-9)
    for name, w in p.items():
        assert np.linalg.norm(model.params[name] - w.detach().numpy()) <= 1e-9 * np.linalg.norm(model.params[name]), name
