"""A student's file: a Llama in NumPy, forward and backward, for all configurations of golden vectors."""

import math
from functools import partial

import numpy as np


def rms(x, gain, eps):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    return x * r * gain


def rms_backward(d, x, gain, eps):
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n, dn = x * r, d * gain
    return r * (dn - n * (dn * n).mean(-1, keepdims=True)), (d * n).reshape(-1, x.shape[-1]).sum(0)


def linear_backward(d, x, w):
    return d @ w, d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def stored(g, i, name, d):
    g[f"d_layer.{i}.{name}"] = d
    return d


def linear_stored(w, g, i, name, d, x):
    d, g[f"d_blocks.{i}.{name}"] = linear_backward(d, x, w[f"blocks.{i}.{name}"])
    return d


def layer_weights(w, i):
    return {name.rpartition(".")[2]: value for name, value in w.items() if name.startswith(f"blocks.{i}.")}


def split(x, D):
    return x.reshape(*x.shape[:2], -1, D).swapaxes(1, 2)


def merge(x):
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rope_table(positions, c):
    D = c.head_dim
    f = c.rope_theta ** (-np.arange(0, D, 2) / D)
    if c.rope_scaling:
        s = c.rope_scaling
        old, low, high = s["original_max_position_embeddings"], s["low_freq_factor"], s["high_freq_factor"]
        smooth = np.clip((old * f / (2 * math.pi) - low) / (high - low), 0, 1)
        f = (1 - smooth) * f / s["factor"] + smooth * f
    angles = positions[..., None] * f
    if angles.ndim == 3:
        angles = angles[:, None]
    return np.cos(angles), np.sin(angles)


def turn(x, cos, sin, layout):
    out = np.empty_like(x)
    D = x.shape[-1]
    a, b = (slice(0, D, 2), slice(1, D, 2)) if layout == "interleaved" else (slice(0, D // 2), slice(D // 2, D))
    out[..., a], out[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., b] * cos + x[..., a] * sin
    return out


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def llama(weights, config, tokens, targets, segments):
    c, w, v, g = config, weights, {}, {}
    B, T = tokens.shape
    D, H, K, eps = c.head_dim, c.n_heads, c.n_kv_heads, c.norm_eps
    see = np.tri(T, dtype=bool)
    positions = np.arange(T)
    if segments is not None:
        same = segments[:, :, None] == segments[:, None, :]
        see = (see & same)[:, None]
        positions = positions - same.argmax(-1)
    cos, sin = rope_table(positions, c)

    # forward
    x = v["embedding"] = w["embed"][tokens]
    for i in range(c.n_layers):
        at, wt = partial("layer.{}.{}".format, i), layer_weights(w, i).__getitem__
        h = v[at("attn_norm")] = rms(x, wt("attn_norm"), eps)
        for n in "qkv":
            v[at(n)] = h @ wt(f"w{n}").T
        q, k, val = (split(v[at(n)], D) for n in "qkv")
        if c.qk_norm:
            q = v[at("q_norm")] = rms(q, wt("q_norm"), eps)
            k = v[at("k_norm")] = rms(k, wt("k_norm"), eps)
        q = v[at("q_rotated")] = turn(q, cos, sin, c.rope_layout)
        k = v[at("k_rotated")] = turn(k, cos, sin, c.rope_layout)
        k, val = np.repeat(k, H // K, 1), np.repeat(val, H // K, 1)
        s = np.where(see, q @ k.swapaxes(-1, -2) / math.sqrt(D), -np.inf)
        v[at("scores")] = s
        a = v[at("attention")] = softmax(s)
        o = v[at("head_outputs")] = a @ val
        out = v[at("attn_out")] = merge(o) @ wt("wo").T
        x = v[at("after_attention")] = x + out
        h = v[at("ffn_norm")] = rms(x, wt("ffn_norm"), eps)
        gate, up = v[at("gate")], v[at("up")] = h @ wt("w_gate").T, h @ wt("w_up").T
        act = v[at("swiglu")] = gate * sigmoid(gate) * up
        out = v[at("ffn_out")] = act @ wt("w_down").T
        x = v[at("after_ffn")] = x + out
    h = v["norm"] = rms(x, w["norm"], eps)
    head = w["embed" if c.tie_embeddings else "head"]
    logits = v["logits"] = h @ head.T
    p = softmax(logits)
    counted = targets != -100
    right = np.where(counted, targets, 0)[..., None]
    v["loss"] = -(np.log(np.take_along_axis(p, right, -1))[..., 0] * counted).sum() / counted.sum()

    # backward
    hot = np.zeros_like(p)
    np.put_along_axis(hot, right, 1.0, -1)
    d = g["d_logits"] = (p - hot) * counted[..., None] / counted.sum()
    d, dhead = linear_backward(d, h, head)
    g["d_norm"] = d
    d, g["d_weights/norm"] = rms_backward(d, x, w["norm"], eps)
    for i in reversed(range(c.n_layers)):
        at, wt = partial("layer.{}.{}".format, i), layer_weights(w, i).__getitem__
        keep, back = partial(stored, g, i), partial(linear_stored, w, g, i)
        keep("after_ffn", d)
        keep("ffn_out", d)
        ds = keep("swiglu", back("w_down", d, v[at("swiglu")]))
        gate, up = v[at("gate")], v[at("up")]
        sg = sigmoid(gate)
        dgate = keep("gate", ds * up * (sg + gate * sg * (1 - sg)))
        dup = keep("up", ds * gate * sg)
        dh = keep("ffn_norm", back("w_gate", dgate, v[at("ffn_norm")]) + back("w_up", dup, v[at("ffn_norm")]))
        more, g[f"d_weights/blocks.{i}.ffn_norm"] = rms_backward(dh, v[at("after_attention")], wt("ffn_norm"), eps)
        d = keep("after_attention", d + more)
        keep("attn_out", d)
        do = keep("head_outputs", split(back("wo", d, merge(v[at("head_outputs")])), D))
        k, val = np.repeat(v[at("k_rotated")], H // K, 1), np.repeat(split(v[at("v")], D), H // K, 1)
        a = v[at("attention")]
        da = keep("attention", do @ val.swapaxes(-1, -2))
        dv = a.swapaxes(-1, -2) @ do
        ds = keep("scores", a * (da - (a * da).sum(-1, keepdims=True)))
        dq = keep("q_rotated", ds @ k / math.sqrt(D))
        dk = ds.swapaxes(-1, -2) @ v[at("q_rotated")] / math.sqrt(D)
        dk, dv = (each.reshape(B, K, H // K, T, D).sum(2) for each in (dk, dv))
        keep("k_rotated", dk)
        dq, dk = turn(dq, cos, -sin, c.rope_layout), turn(dk, cos, -sin, c.rope_layout)
        if c.qk_norm:
            keep("q_norm", dq)
            keep("k_norm", dk)
            dq, g[f"d_weights/blocks.{i}.q_norm"] = rms_backward(dq, split(v[at("q")], D), wt("q_norm"), eps)
            dk, g[f"d_weights/blocks.{i}.k_norm"] = rms_backward(dk, split(v[at("k")], D), wt("k_norm"), eps)
        h = v[at("attn_norm")]
        dh = back("wq", keep("q", merge(dq)), h) + back("wk", keep("k", merge(dk)), h) + back("wv", keep("v", merge(dv)), h)
        keep("attn_norm", dh)
        below = v[f"layer.{i - 1}.after_ffn"] if i else v["embedding"]
        more, g[f"d_weights/blocks.{i}.attn_norm"] = rms_backward(dh, below, wt("attn_norm"), eps)
        d = d + more
    g["d_embedding"] = d
    dembed = np.zeros_like(w["embed"])
    np.add.at(dembed, tokens, d)
    if c.tie_embeddings:
        dembed = dembed + dhead
    else:
        g["d_weights/head"] = dhead
    g["d_weights/embed"] = dembed
    return v | g
