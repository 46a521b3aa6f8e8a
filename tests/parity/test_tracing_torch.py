"""Every traced intermediate and its gradient against PyTorch: the Llama written plainly once more, its gradients by autograd."""

import math

import numpy as np
import pytest
from helpers import assert_close

from numllama.learn.tracing import trace
from numllama.model import ModelConfig, Transformer

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
CONFIGS = {
    "plain": {},
    "grouped, wide heads": dict(n_kv_heads=2, head_dim=10, norm_eps=0.1),
    "interleaved": dict(rope_layout="interleaved", n_kv_heads=1, rope_theta=100.0),
    "llama3": dict(rope_scaling=LLAMA3, rope_theta=100.0, tie_embeddings=True),
    "linear": dict(rope_scaling=dict(rope_type="linear", factor=4.0)),
}


def frequencies(c):
    """How fast each pair turns; Llama 3 slows those whose wave is longer than the text that it was trained on."""
    f = c.rope_theta ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
    s = c.rope_scaling
    if s is None or s["rope_type"] == "linear":
        return f / (s["factor"] if s else 1)
    turns = s["original_max_position_embeddings"] * f / (2 * math.pi)
    smooth = ((turns - s["low_freq_factor"]) / (s["high_freq_factor"] - s["low_freq_factor"])).clamp(0, 1)
    return (1 - smooth) * f / s["factor"] + smooth * f


def plain_llama(p, c, ids):
    """All intermediates by the trace's names, with their gradients kept."""
    F, kept, T = torch.nn.functional, {}, len(ids) - 1
    angles = torch.arange(T, dtype=torch.float64)[:, None] * frequencies(c)                # (T, D/2)

    def keep(name, value):
        value.retain_grad()
        kept[name] = value
        return value

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * weight

    def heads(x):
        return x.unflatten(-1, (-1, c.head_dim)).transpose(1, 2)

    def rope(x):
        interleaved = c.rope_layout == "interleaved"
        a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
        turned = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
        return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)

    x = keep("embedding", p["embed"][ids[None, :-1]])
    for i in range(c.n_layers):
        at, w = f"layer {i}: ", {name: p[f"blocks.{i}.{name}"] for name in WEIGHTS}
        n = keep(at + "attn_norm", norm(x, w["attn_norm"]))
        q, k, v = (keep(at + name, n @ w[f"w{name}"].T) for name in "qkv")
        q, k = keep(at + "q_rotated", rope(heads(q))), keep(at + "k_rotated", rope(heads(k)))
        shared = c.n_heads // c.n_kv_heads
        scores = keep(at + "scores", q @ k.repeat_interleave(shared, 1).transpose(-1, -2) / math.sqrt(c.head_dim))
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
        attention = keep(at + "attention", scores.masked_fill(hidden, -math.inf).softmax(-1))
        mixed = keep(at + "head_outputs", attention @ heads(v).repeat_interleave(shared, 1))
        branch = keep(at + "attn_out", mixed.transpose(1, 2).flatten(-2) @ w["wo"].T)
        x = keep(at + "after_attention", x + branch)
        n = keep(at + "ffn_norm", norm(x, w["ffn_norm"]))
        gate, up = keep(at + "gate", n @ w["w_gate"].T), keep(at + "up", n @ w["w_up"].T)
        a = keep(at + "swiglu", gate * torch.sigmoid(gate) * up)
        x = keep(at + "after_ffn", x + keep(at + "ffn_out", a @ w["w_down"].T))
    n = keep("norm", norm(x, p["norm"]))
    logits = keep("logits", n @ p["embed" if c.tie_embeddings else "head"].T)
    keep("loss", F.cross_entropy(logits[0], ids[1:])).backward()
    return kept


WEIGHTS = ("attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w_gate", "w_up", "w_down")


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_every_intermediate_and_gradient_is_that_of_autograd(options):
    c = ModelConfig(**{"vocab_size": 31, "dim": 24, "n_layers": 2, "n_heads": 4, "ffn_dim": 40, "max_seq_len": 12, **options})
    model, rng = Transformer(c, dtype="float64"), np.random.default_rng(0)
    for value in model.params.values():
        value[...] = rng.normal(0, 0.3, value.shape) + (value.ndim == 1)
    ids = [3, 30, 3, 7, 7, 12, 0, 5, 22]
    p = {name: torch.tensor(value, requires_grad=True) for name, value in model.params.items()}
    kept, traced = plain_llama(p, c, torch.tensor(ids)), trace(model, None, ids)
    assert [t.name for t in traced.values if t.name not in kept] == [] and len(kept) == len(traced.values)
    hidden = np.triu(np.ones((len(ids) - 1,) * 2, dtype=bool), 1)
    for t in traced.values:
        value, gradient = kept[t.name].detach().numpy(), kept[t.name].grad.numpy()
        if t.name.endswith((": scores", ": attention")):  # the trace shows hidden keys as zeros
            value, gradient = np.where(hidden, 0, value), np.where(hidden, 0, gradient)
        assert t.gradient.shape == t.value.shape == value.shape, t.name
        assert_close(t.value, value, rtol=1e-10)
        assert_close(t.gradient, gradient, rtol=1e-10)
    for name, (_, gradient) in traced.parameters.items():
        assert_close(gradient, p[name].grad.numpy(), rtol=1e-10)
