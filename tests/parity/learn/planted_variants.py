"""Right Llamas that are written in other ways: whatever is compared with the vectors must not complain about these."""

import math

import torch
from parity.learn.planted import ALL, Mistake
from torch.nn import functional as F


def variant(key, sentence, **methods):
    """A row without a wrong number."""
    return Mistake(key, "", sentence, ALL, methods)


def masked_product(self, scores, hidden):
    e = (scores - scores.amax()).exp() * ~hidden
    return e / e.sum(-1, keepdim=True)


def complex_rotation(self, x, cos, sin):
    x1, x2 = self.pairs(x)
    y = torch.complex(x1, x2) * torch.complex(cos, sin)
    return self.joined(y.real, y.imag)


def rotate_half(self, x, cos, sin):
    x1, x2 = self.pairs(x)
    return x * self.joined(cos, cos) + self.joined(-x2, x1) * self.joined(sin, sin)


def expanded(self, x):
    B, K, T, D = x.shape
    return x[:, :, None].expand(B, K, self.c.n_heads // K, T, D).reshape(B, -1, T, D)


def rmsnorm_dx(self, dout, x, weight):
    """With x and powers of rstd in place of the normalised x."""
    rstd = self.rstd(x)
    return dout * weight * rstd - x * rstd**3 * (dout * weight * x).sum(-1, keepdim=True) / x.shape[-1]


def jacobian(self, dp, p, scores):
    """The softmax's whole Jacobian of each row: diag(p) - p·pᵀ."""
    rows = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    return (rows @ dp[..., None])[..., 0]


def one_hot_embedding(self, dout):
    rows = F.one_hot(self.tokens, self.c.vocab_size).to(self.dtype)
    return torch.einsum("btv,btc->vc", rows, dout)


def cumulative_positions(self):
    if self.segments is None:
        return torch.arange(self.T)
    same = self.segments[:, :, None] == self.segments[:, None, :]
    return same.tril().sum(-1) - 1


def efficient_adam(self, name, t):
    """Kingma & Ba, section 2: one step size, and eps multiplied by the root of the correction."""
    c = math.sqrt(self.correction2(t))
    return c / self.correction1(t) * self.mean[name] / (self.square[name].sqrt() + c * self.settings["eps"])


def shrink_first(self, grads, t):
    """PyTorch's order: the weight shrinks, then it moves."""
    for name, g in grads.items():
        self.moments(name, g)
        self.w[name] = self.w[name] * (1 - self.lr(t) * self.settings["weight_decay"] * self.decays(name))
        self.w[name] = self.w[name] - self.lr(t) * self.direction(name, t)


VARIANTS = [
    variant("softmax-without-maximum", "the softmax does not subtract the maximum",
            softmax=lambda self, x: x.exp() / x.exp().sum(-1, keepdim=True)),
    variant("mask-large-number", "hidden scores are -1e9 in place of minus infinity",
            attention=lambda self, scores, hidden: self.softmax(scores.masked_fill(hidden, -1e9))),
    variant("mask-renormalised", "hidden exponentials are multiplied by 0 before they are summed", attention=masked_product),
    variant("scaled-queries", "queries are scaled before the product",
            scores=lambda self, q, k: (q * self.scale()) @ k.transpose(-2, -1)),
    variant("complex-rope", "RoPE multiplies complex numbers, as Meta's", rotate=complex_rotation),
    variant("rotate-half", "RoPE is x·cos + rotate_half(x)·sin", rotate=rotate_half),
    variant("expanded-heads", "key heads are expanded, not copied", repeat=expanded),
    variant("position-counts", "positions count the tokens of the same document", positions=cumulative_positions),
    variant("torch-rmsnorm", "PyTorch's rms_norm", rmsnorm=lambda self, x, w: F.rms_norm(x, w.shape, w, self.eps())),
    variant("torch-silu", "PyTorch's silu", activation=lambda self, x: F.silu(x)),
    variant("torch-cross-entropy", "PyTorch's cross_entropy, which ignores -100",
            loss=lambda self, logits: F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())),
    variant("einsum", "products as einsum", linear=lambda self, x, w: torch.einsum("bti,oi->bto", x, w),
            linear_dw=lambda self, dout, x, name: torch.einsum("bto,bti->oi", dout, x)),
    variant("rmsnorm-powers", "RMSNorm's gradient with powers of rstd", rmsnorm_dx=rmsnorm_dx),
    variant("softmax-jacobian", "the softmax's gradient by its Jacobian", softmax_backward=jacobian),
    variant("silu-other-form", "SiLU's derivative as σ + silu·(1 - σ)",
            activation_backward=lambda self, x: (s := torch.sigmoid(x)) + F.silu(x) * (1 - s)),
    variant("one-hot-embedding", "the embedding's gradient as a product with one-hot tokens",
            embed_backward=one_hot_embedding),
    variant("norm-of-norms", "the gradient norm as the norm of the parameters' norms",
            grad_norm=lambda self, grads: torch.stack([g.norm() for g in grads.values()]).norm().item()),
    variant("efficient-adam", "Adam with one step size for both corrections", direction=efficient_adam),
    variant("decay-first", "weights shrink before they move", step=shrink_first),
]  # fmt: skip
