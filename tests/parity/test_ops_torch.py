"""Each op against PyTorch's autograd in float64, over plainly written formulas, and over PyTorch's own where there is one."""

import math

import numpy as np
import pytest
from helpers import SIZES, assert_close
from hypothesis import given
from hypothesis import strategies as st

from numllama import ops

torch = pytest.importorskip("torch")
F = torch.nn.functional
pytestmark = pytest.mark.parity

SHAPES = [(1, 3), (5, 8), (2, 3, 7), (2, 1, 3, 16)]
IGNORED = -100


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def assert_matches_torch(forward, backward, formula, arrays, floor=0.0):
    """The output of `formula(*tensors)` and its gradient for each of the arrays, up to 1e-12.

    A gradient below `floor` is rounding noise around zero, here and there, and is compared with it instead of itself.
    """
    out, cache = forward(*arrays)
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = formula(*tensors)
    assert_close(out, expected.detach().numpy())

    dout = np.random.default_rng(99).standard_normal(np.shape(out))
    gradients = backward(dout, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    expected_gradients = torch.autograd.grad(expected, tensors, torch.tensor(dout))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.shape == expected_gradient.shape
        error = np.linalg.norm(gradient - expected_gradient.numpy())
        assert error <= 1e-12 * max(float(expected_gradient.norm()), floor)


@pytest.mark.parametrize("formula", [lambda x, w: torch.einsum("...i,oi->...o", x, w), F.linear], ids=["plain", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_without_bias(shape, formula):
    assert_matches_torch(ops.linear_forward, ops.linear_backward, formula, draw(0, shape, (6, shape[-1])))


@pytest.mark.parametrize(
    "formula", [lambda x, w, b: torch.einsum("...i,oi->...o", x, w) + b, F.linear], ids=["plain", "torch"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_with_bias(shape, formula):
    assert_matches_torch(ops.linear_forward, ops.linear_backward, formula, draw(0, shape, (6, shape[-1]), (6,)))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_lora(shape, rank):
    assert_matches_torch(
        lambda x, a, b: ops.lora_forward(x, a, b, 1.5),
        ops.lora_backward,
        lambda x, a, b: 1.5 * F.linear(F.linear(x, a), b),
        draw(0, shape, (rank, shape[-1]), (6, rank)),
    )


@pytest.mark.parametrize("formula", [lambda tokens, w: w[tokens], F.embedding], ids=["plain", "torch"])
@pytest.mark.parametrize("shape", [(1,), (40,), (3, 7), (2, 3, 4)])
def test_embedding(shape, formula):
    tokens = np.random.default_rng(1).integers(0, 6, shape)
    assert_matches_torch(
        lambda weight: ops.embedding_forward(tokens, weight),
        ops.embedding_backward,
        lambda weight: formula(torch.tensor(tokens), weight),
        draw(0, (6, 5)),
    )


def rmsnorm(x, weight, eps):
    return weight * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def torch_rmsnorm(x, weight, eps):
    return F.rms_norm(x, weight.shape, weight, eps)


@pytest.mark.parametrize("formula", [rmsnorm, torch_rmsnorm], ids=["plain", "torch"])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm(shape, eps, formula):
    assert_matches_torch(
        lambda x, weight: ops.rmsnorm_forward(x, weight, eps),
        ops.rmsnorm_backward,
        lambda x, weight: formula(x, weight, eps),
        draw(0, shape, shape[-1:]),
    )


def layernorm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) + bias


def torch_layernorm(x, weight, bias, eps):
    return F.layer_norm(x, weight.shape, weight, bias, eps)


@pytest.mark.parametrize("formula", [layernorm, torch_layernorm], ids=["plain", "torch"])
@pytest.mark.parametrize("eps", [1e-6, 1e-5, 0.1])
@pytest.mark.parametrize("shape", SHAPES)
def test_layernorm(shape, eps, formula):
    assert_matches_torch(
        lambda x, weight, bias: ops.layernorm_forward(x, weight, bias, eps),
        ops.layernorm_backward,
        lambda x, weight, bias: formula(x, weight, bias, eps),
        draw(0, shape, shape[-1:], shape[-1:]),
    )


def rotate_half(x):
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


def rope_half(x, angles):
    """As Hugging Face writes it."""
    angles = torch.cat((angles, angles), dim=-1)
    return x * angles.cos() + rotate_half(x) * angles.sin()


def rope_interleaved(x, angles):
    """As Meta writes it: a product of complex numbers."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


@pytest.mark.parametrize(("layout", "formula"), [("half", rope_half), ("interleaved", rope_interleaved)])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(("B", "H", "T", "D"), [(1, 1, 1, 2), (2, 3, 5, 8), (1, 4, 7, 64)])
@pytest.mark.parametrize("per_sequence", [False, True])
def test_rope(B, H, T, D, theta, layout, formula, per_sequence):
    positions = np.random.default_rng(1).integers(0, 300, (B, T) if per_sequence else (T,))
    cos, sin = ops.rope_table(positions, D, theta, dtype="float64")
    inverse = 1.0 / theta ** (torch.arange(0, D, 2, dtype=torch.float64) / D)
    angles = torch.tensor(positions)[..., None] * inverse
    angles = angles[:, None] if per_sequence else angles
    assert_matches_torch(
        lambda x: ops.rope_forward(x, cos, sin, layout),
        ops.rope_backward,
        lambda x: formula(x, angles),
        draw(0, (B, H, T, D)),
    )


@st.composite
def attention_cases(draw):
    """q, k and v, and the other arguments; intervals may be empty."""
    B, K, R = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4, 8]))
    T, S, D = draw(SIZES), draw(SIZES), draw(st.sampled_from([1, 3, 8]))
    rng = np.random.default_rng([1, draw(st.integers(0, 2**32 - 1))])
    bound = st.sampled_from([None, (T,), (B, T)])
    first, last, mask = draw(bound), draw(bound), draw(st.sampled_from([None, (T, S), (B, 1, T, S), (B, K * R, T, S)]))
    return [rng.standard_normal(shape) for shape in [(B, K * R, T, D), (B, K, S, D), (B, K, S, D)]], {
        "first": None if first is None else rng.integers(0, S + 1, first),
        "last": None if last is None else rng.integers(0, S + 2, last),
        "mask": None if mask is None else rng.random(mask) < 0.7,
        "scale": draw(st.sampled_from([None, 0.3])),
    }


def visible(q, k, first, last, mask):
    """(B, H, T, S)"""
    (B, H, T, _), S = q.shape, k.shape[2]
    first = np.zeros(T) if first is None else first
    last = np.arange(T) + S - T + 1 if last is None else last
    first, last = (np.broadcast_to(bound, (B, T))[:, None, :, None] for bound in (first, last))
    s, mask = np.arange(S), True if mask is None else mask
    return torch.tensor(np.broadcast_to((first <= s) & (s < last) & mask, (B, H, T, S)))


def attention(q, k, v, seen, scale):
    """Softmax over the keys that are seen; rows without any are zero and have no gradient."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    weights = torch.where(seen, torch.exp(scores), 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total) @ v


def torch_attention(q, k, v, seen, scale):
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
    return torch.where(seen.any(-1, keepdim=True), out, 0.0)


@pytest.mark.parametrize("formula", [attention, torch_attention], ids=["plain", "torch"])
@given(attention_cases())
def test_attention(formula, case):
    arrays, settings = case
    seen = visible(*arrays[:2], settings["first"], settings["last"], settings["mask"])
    assert_matches_torch(
        lambda q, k, v: ops.attention_forward(q, k, v, **settings),
        ops.attention_backward,
        lambda q, k, v: formula(q, k, v, seen, settings["scale"]),
        arrays,
        floor=1.0,  # a query that sees one key has a dq of zero, up to rounding
    )


def test_causal_attention_at_the_size_of_a_small_model():
    arrays = draw(0, (2, 8, 48, 16), (2, 2, 64, 16), (2, 2, 64, 16))
    causal = torch.ones(48, 64, dtype=torch.bool).tril(16)
    assert_matches_torch(
        ops.attention_forward, ops.attention_backward, lambda q, k, v: attention(q, k, v, causal, None), arrays
    )


@pytest.mark.parametrize(
    "formula", [lambda gate, up: gate / (1 + torch.exp(-gate)) * up, lambda gate, up: F.silu(gate) * up], ids=["plain", "torch"]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(shape, formula):
    assert_matches_torch(ops.swiglu_forward, ops.swiglu_backward, formula, draw(0, shape, shape))


def gelu_tanh(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(
    ("approximate", "formula"),
    [
        ("tanh", gelu_tanh),
        ("tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("none", gelu_exact),
        ("none", lambda x: F.gelu(x)),
    ],
    ids=["tanh-plain", "tanh-torch", "exact-plain", "exact-torch"],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_gelu(shape, approximate, formula):
    assert_matches_torch(
        lambda x: ops.gelu_forward(x, approximate), ops.gelu_backward, formula, [3 * x for x in draw(0, shape)]
    )


def cross_entropy(logits, targets, count):
    kept = targets != IGNORED
    losses = -torch.log_softmax(logits, -1)[kept].gather(-1, targets[kept][:, None])
    return losses.sum() / (max(int(kept.sum()), 1) if count is None else count)


def torch_cross_entropy(logits, targets, count):
    rows, targets = logits.flatten(0, -2), targets.flatten()
    if count is None and (targets != IGNORED).any():
        return F.cross_entropy(rows, targets, ignore_index=IGNORED)
    return F.cross_entropy(rows, targets, ignore_index=IGNORED, reduction="sum") / (count or 1)


@pytest.mark.parametrize("formula", [cross_entropy, torch_cross_entropy], ids=["plain", "torch"])
@pytest.mark.parametrize("count", [None, 10])
@pytest.mark.parametrize("ignored", [0, 0.4, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy(shape, ignored, count, formula):
    rng = np.random.default_rng(1)
    targets = np.where(rng.random(shape[:-1]) < ignored, IGNORED, rng.integers(0, shape[-1], shape[:-1]))
    assert_matches_torch(
        lambda logits: ops.cross_entropy_forward(logits, targets, count=count),
        ops.cross_entropy_backward,
        lambda logits: formula(logits, torch.tensor(targets), count),
        [3 * x for x in draw(0, shape)],
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout(shape):
    """PyTorch draws other masks, so it is given ours."""
    mask = ops.dropout_forward(np.ones(shape), 0.3, (1, 2, 3))[0] > 0
    assert_matches_torch(
        lambda x: ops.dropout_forward(x, 0.3, (1, 2, 3)),
        ops.dropout_backward,
        lambda x: x * torch.tensor(mask) / (1 - 0.3),
        draw(0, shape),
    )


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_mixture_of_experts(k, score, normalise):
    """The outputs, the probabilities and the load-balancing loss as one vector, by PyTorch's topk and a dense sum of experts."""

    def forward(*args):
        (out, probs), cache = ops.mixture_of_experts_forward(*args, k, score, normalise)
        loss, balance = ops.load_balancing_forward(probs, cache.router.chosen)
        return np.concatenate([out.ravel(), [loss]]), (cache, balance, out.shape)

    def backward(dout, caches):
        cache, balance, shape = caches
        return ops.mixture_of_experts_backward(
            (dout[:-1].reshape(shape), ops.load_balancing_backward(dout[-1], balance)), cache
        )  # fmt: skip

    def formula(x, router, gate, up, down):
        z = x @ router.T
        p = F.softmax(z, -1) if score == "softmax" else torch.sigmoid(z)
        values, chosen = torch.topk(p, k)
        weights = torch.zeros_like(p).scatter(1, chosen, values / values.sum(-1, keepdim=True) if normalise else values)
        h = F.silu(torch.einsum("nc,efc->nef", x, gate)) * torch.einsum("nc,efc->nef", x, up)
        out = torch.einsum("nef,ecf,ne->nc", h, down, weights)
        shares = F.one_hot(chosen, len(router)).sum(1).double().mean(0)
        return torch.cat([out.ravel(), len(router) * (shares * p.mean(0)).sum().reshape(1)])

    assert_matches_torch(forward, backward, formula, draw(0, (7, 5), (4, 5), (4, 6, 5), (4, 6, 5), (4, 5, 6)))
