"""Kernels as somebody else may write them, in NumPy, in any precision: none calls the package. `fakes` makes mistakes in them."""

import math

import numpy as np


def rmsnorm_forward(x, weight, eps):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * r * weight, (x, weight, r)


def rmsnorm_backward(dout, cache):
    x, weight, r = cache
    n, dn = x * r, dout * weight
    return r * (dn - n * (dn * n).mean(-1, keepdims=True)), (dout * n).sum((0, 1))


def layernorm_forward(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * r * weight + bias, (centred * r, weight, r)


def layernorm_backward(dout, cache):
    n, weight, r = cache
    dn = dout * weight
    dx = r * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, (dout * n).sum((0, 1)), dout.sum((0, 1))


def linear_forward(x, weight, bias):
    return np.einsum("bti,oi->bto", x, weight) + bias, (x, weight)


def linear_backward(dout, cache):
    x, weight = cache
    return np.einsum("bto,oi->bti", dout, weight), np.einsum("bto,bti->oi", dout, x), dout.sum((0, 1))


def lora_forward(x, a, b, scale):
    return scale * np.einsum("btr,or->bto", np.einsum("bti,ri->btr", x, a), b), (x, a, b, scale)


def lora_backward(dout, cache):
    x, a, b, scale = cache
    dh, h = scale * np.einsum("bto,or->btr", dout, b), np.einsum("bti,ri->btr", x, a)
    return np.einsum("btr,ri->bti", dh, a), np.einsum("btr,bti->ri", dh, x), scale * np.einsum("bto,btr->or", dout, h)


def embedding_forward(tokens, weight):
    return weight[tokens], (tokens, weight)


def embedding_backward(dout, cache):
    tokens, weight = cache
    dweight = np.zeros_like(weight)
    np.add.at(dweight, tokens, dout)
    return dweight


def softmax_forward(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, p


def softmax_backward(dout, p):
    return p * (dout - (dout * p).sum(-1, keepdims=True))


def cross_entropy_forward(logits, targets):
    rows, counted = logits.reshape(-1, logits.shape[-1]), targets.ravel() >= 0
    shifted = rows - rows.max(-1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    picked = logp[np.arange(len(rows)), np.where(counted, targets.ravel(), 0)]
    return -(picked * counted).sum() / logits.dtype.type(counted.sum()), (logp, targets, counted)


def cross_entropy_backward(dout, cache):
    logp, targets, counted = cache
    d = np.exp(logp)
    d[np.arange(len(d)), np.where(counted, targets.ravel(), 0)] -= 1
    d *= counted[:, None] * (dout / logp.dtype.type(counted.sum()))
    return d.reshape(*targets.shape, -1)


def _seen(first, last, S):
    return ((first[..., None] <= np.arange(S)) & (np.arange(S) < last[..., None]))[:, None]


def attention_forward(q, k, v, first, last, *, seen=None, scale=None):
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    R, seen = q.shape[1] // k.shape[1], _seen(first, last, k.shape[2]) if seen is None else seen
    keys, values = (np.repeat(x, R, axis=1) for x in (k, v))
    scores = np.where(seen, np.einsum("bhtd,bhsd->bhts", q, keys) * scale, -np.inf)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = e.sum(-1, keepdims=True)
    p = e / np.where(total == 0, 1, total)
    return np.einsum("bhts,bhsd->bhtd", p, values), (q, keys, values, p, R, scale)


def attention_backward(dout, cache):
    q, keys, values, p, R, scale = cache
    dp = np.einsum("bhtd,bhsd->bhts", dout, values)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
    dk, dv = np.einsum("bhts,bhtd->bhsd", ds, q), np.einsum("bhts,bhtd->bhsd", p, dout)
    return np.einsum("bhts,bhsd->bhtd", ds, keys), *(_groups(x, R).sum(2) for x in (dk, dv))


def _groups(x, R):
    B, H, S, D = x.shape
    return x.reshape(B, H // R, R, S, D)


def causal_attention_forward(q, k, v):
    T = q.shape[2]
    return attention_forward(q, k, v, None, None, seen=np.tri(T, dtype=bool))


def rope_forward(x, cos, sin):
    x1, x2 = np.split(x, 2, axis=-1)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1), (cos, sin)


def rope_backward(dout, cache):
    cos, sin = cache
    return rope_forward(dout, cos, -sin)[0]


def rope_interleaved_forward(x, cos, sin):
    x1, x2 = x[..., ::2], x[..., 1::2]
    return np.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1).reshape(x.shape), (cos, sin)


def swiglu_forward(gate, up):
    return gate / (1 + np.exp(-gate)) * up, (gate, up)


def swiglu_backward(dout, cache):
    gate, up = cache
    s = 1 / (1 + np.exp(-gate))
    return dout * up * (s + gate * s * (1 - s)), dout * gate * s


def gelu_forward(x):
    return x / 2 * (1 + np.tanh(_u(x))), x


def gelu_backward(dout, x):
    t = np.tanh(_u(x))
    return dout * ((1 + t) / 2 + x / 2 * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x))


def _u(x):
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)


def softcap_forward(x, cap):
    return cap * np.tanh(x / cap), (x, cap)


def softcap_backward(dout, cache):
    x, cap = cache
    return dout * (1 - np.tanh(x / cap) ** 2)


def router_forward(logits, k):
    p = softmax_forward(logits)[0]
    chosen = np.argsort(-p, -1)[:, :k]
    v = np.take_along_axis(p, chosen, -1)
    return (v / v.sum(-1, keepdims=True), p), (p, chosen, v)


def router_backward(douts, cache):
    (dw, dp), (p, chosen, v) = douts, cache
    total = v.sum(-1, keepdims=True)
    dp = dp.copy()
    dv = (dw - (dw * v / total).sum(-1, keepdims=True)) / total
    np.put_along_axis(dp, chosen, np.take_along_axis(dp, chosen, -1) + dv, -1)
    return softmax_backward(dp, p)


OPS = ("rmsnorm", "layernorm", "linear_bias", "lora", "embedding", "softmax", "cross_entropy", "attention", "causal_attention",
       "rope", "swiglu", "gelu", "softcap", "router")  # fmt: skip
ELSEWHERE = {"linear_bias": "linear", "causal_attention": "attention"}


def pair(op):
    """Forward and backward of an op."""
    named = globals()
    forward, backward = (f"{each}_{way}" for each, way in ((op, "forward"), (op, "backward")))
    other = ELSEWHERE.get(op, op)
    return named.get(forward) or named[f"{other}_forward"], named.get(backward) or named[f"{other}_backward"]
