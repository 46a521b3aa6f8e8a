"""Attention, flash attention and the mixture of experts, with a mistake in each."""

from learn.wrong_code import Code

REPEATED = """
q, k, v, p, scale, _ = cache
R = q.shape[1] // k.shape[1]
kr, vr = k.repeat(R, 1), v.repeat(R, 1)
group = lambda a: a.reshape(k.shape[0], k.shape[1], R, *k.shape[2:]).sum(2)
dp = np.einsum("bhtd,bhsd->bhts", dout, vr)
ds = p * (dp - np.sum(dp * p, -1, keepdims=True)) * scale
dq = np.einsum("bhts,bhsd->bhtd", ds, kr)
dk = group(np.einsum("bhts,bhtd->bhsd", ds, q))
dv = group(np.einsum("bhts,bhtd->bhsd", p, dout))
"""


def attention(says, changed, line="return dq, dk, dv"):
    """The backward with keys repeated for each query head, and one of its lines changed."""
    start = changed.split("=")[0]
    lines = [changed if each.startswith(start) else each for each in REPEATED.strip().split("\n")]
    assert changed in lines
    return Code("attention", says, "\n".join([*lines, line]))


ATTENTION = [
    attention({"dq": "lacks the sum in ds", "dk": "lacks the sum in ds"}, "ds = p * dp * scale"),
    attention({"dq": "diagonal", "dk": "diagonal"}, "ds = p * (1 - p) * dp * scale"),
    attention({"dq": "lacks the scale", "dk": "lacks the scale"},
              "ds = p * (dp - np.sum(dp * p, -1, keepdims=True))"),
    attention({"dq": "scale twice"}, 'dq = np.einsum("bhts,bhsd->bhtd", ds, kr) * scale'),
    attention({"dv": "ds in place of p"}, 'dv = group(np.einsum("bhts,bhtd->bhsd", ds / scale, dout))'),
    attention({"dq": "tiled keys and values", "dk": "tiled values"},
              "kr, vr = np.tile(k, (1, R, 1, 1)), np.tile(v, (1, R, 1, 1))"),
    attention({"dk": "tiled (0, 1, 0, 1)", "dv": "tiled (0, 1, 0, 1)"},
              "group = lambda a: a.reshape(k.shape[0], R, k.shape[1], *k.shape[2:]).sum(1)"),
    attention({"dk": "mean over the query heads", "dv": "mean over the query heads"},
              "group = lambda a: a.reshape(k.shape[0], k.shape[1], R, *k.shape[2:]).mean(2)"),
    attention({"dk": "for each query head", "dv": "for each query head"}, "group = lambda a: a"),
    attention({"dk": "first query head", "dv": "first query head"}, "group = lambda a: a[:, ::R]"),
    attention({"dk": "reshaped to (S, T)"}, "dk = group(ds.reshape(*ds.shape[:2], ds.shape[3], ds.shape[2]) @ q)"),
    attention({"dk": "numbers of dv", "dv": "numbers of dk"},
              "dp = np.einsum('bhtd,bhsd->bhts', dout, vr)", "return dq, dv, dk"),
    attention({"dq": "sum over queries", "dk": "sum over queries"},
              "ds = p * (dp - (dp * p).sum(2, keepdims=True)) * scale"),
    Code("attention", {"out": "queries at the start"}, """
        k, v = k.repeat(2, 1), v.repeat(2, 1)
        s = np.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1])
        s[:, :, np.triu(np.ones(s.shape[2:], bool), 1)] = -np.inf
        e = np.exp(s - s.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) @ v, None
    """, "forward"),
    Code("attention", {"out": "lacks the mask"}, """
        k, v = k.repeat(2, 1), v.repeat(2, 1)
        e = np.exp(np.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1]))
        return e / e.sum(-1, keepdims=True) @ v, None
    """, "forward"),
    Code("attention", {"out": "after the softmax"}, """
        k, v = k.repeat(2, 1), v.repeat(2, 1)
        T, S = q.shape[2], k.shape[2]
        e = np.exp(np.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1]))
        p = e / e.sum(-1, keepdims=True)
        return np.tril(p, S - T) @ v, None
    """, "forward"),
    Code("attention", {"out": "tiled key heads"}, """
        k, v = np.concatenate([k, k], 1), np.concatenate([v, v], 1)
        T, S = q.shape[2], k.shape[2]
        e = np.tril(np.exp(np.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1])), S - T)
        return e / e.sum(-1, keepdims=True) @ v, None
    """, "forward"),
    Code("attention", {"out": "lacks the scale"}, """
        k, v = k.repeat(2, 1), v.repeat(2, 1)
        e = np.tril(np.exp(q @ k.swapaxes(2, 3)), k.shape[2] - q.shape[2])
        return e / e.sum(-1, keepdims=True) @ v, None
    """, "forward"),
]

TILED = """
q, k, v, out, lse, first, last, scale = cache
B, H, T, D = q.shape
S, R = k.shape[2], H // k.shape[1]
kr, vr = k.repeat(R, 1), v.repeat(R, 1)
delta = np.einsum("bhtd,bhtd->bht", dout, out)
dq, dkr, dvr = np.zeros_like(q), np.zeros_like(kr), np.zeros_like(vr)
for i in range(0, T, 32):
    rows = slice(i, min(i + 32, T))
    for j in range(0, S, 50):
        keys = slice(j, j + 50)
        s = q[:, :, rows] @ kr[:, :, keys].swapaxes(2, 3) * scale
        ok = np.arange(j, j + 50) < last[0, rows, None]
        p = np.where(ok, np.exp(s - lse[:, :, rows, None]), 0)
        dp = dout[:, :, rows] @ vr[:, :, keys].swapaxes(2, 3)
        ds = p * (dp - delta[:, :, rows, None])
        dq[:, :, rows] += ds @ kr[:, :, keys] * scale
        dkr[:, :, keys] += ds.swapaxes(2, 3) @ q[:, :, rows] * scale
        dvr[:, :, keys] += p.swapaxes(2, 3) @ dout[:, :, rows]
dk, dv = (a.reshape(B, -1, R, S, D).sum(2) for a in (dkr, dvr))
return dq, dk, dv
"""


def flash(says, right, wrong):
    """The backward in tiles, with a part of it changed."""
    assert TILED.count(right) == 1
    return Code("flash_attention", says, TILED.replace(right, wrong))


FLASH_ATTENTION = [
    flash({"dq": "lacks delta", "dk": "lacks delta"}, "p * (dp - delta[:, :, rows, None])", "p * dp"),
    flash({"dq": "lse", "dk": "lse", "dv": "without lse"}, "np.exp(s - lse[:, :, rows, None])", "np.exp(s)"),
    flash({"dq": "without the mask", "dk": "without the mask", "dv": "without the mask"},
          "np.where(ok, np.exp(s - lse[:, :, rows, None]), 0)", "np.exp(s - lse[:, :, rows, None])"),
    flash({"dk": "lacks the scale"}, "@ q[:, :, rows] * scale", "@ q[:, :, rows]"),
    flash({"dq": "lacks the scale"}, "@ kr[:, :, keys] * scale", "@ kr[:, :, keys]"),
    flash({"dk": "scores without the scale", "dq": "scores without the scale", "dv": "scores without the scale"},
          "kr[:, :, keys].swapaxes(2, 3) * scale", "kr[:, :, keys].swapaxes(2, 3)"),
    flash({"dq": "Σ dout, without out", "dk": "Σ dout, without out"},
          '"bhtd,bhtd->bht", dout, out', '"bhtd->bht", dout'),
    flash({"dq": "one key too few", "dk": "one key too few", "dv": "one key too few"},
          "< last[0, rows, None]", "< last[0, rows, None] - 1"),
    flash({"dk": "every K-th query head", "dv": "every K-th query head"},
          "(a.reshape(B, -1, R, S, D).sum(2)", "(a.reshape(B, R, -1, S, D).sum(1)"),
    flash({"dv": "ds in place of p"}, "+= p.swapaxes(2, 3)", "+= ds.swapaxes(2, 3)"),
    Code("flash_attention", {"dk": "last tile of queries", "dv": "last tile of queries"}, """
        q, k, v, out, lse, first, last, scale = cache
        delta = (dout * out).sum(-1, keepdims=True)
        dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
        for t in tiles(q.shape[2]):
            for h in range(q.shape[1]):
                kh = h // (q.shape[1] // k.shape[1])
                if h % (q.shape[1] // k.shape[1]) == 0:
                    dk[:, kh], dv[:, kh] = 0, 0
                ok = np.arange(k.shape[2]) < last[0, t, None]
                p = ok * np.exp(q[:, h, t] @ k[:, kh].swapaxes(1, 2) * scale - lse[:, h, t, None])
                ds = p * (dout[:, h, t] @ v[:, kh].swapaxes(1, 2) - delta[:, h, t]) * scale
                dq[:, h, t] = ds @ k[:, kh]
                dk[:, kh] += ds.swapaxes(1, 2) @ q[:, h, t]
                dv[:, kh] += p.swapaxes(1, 2) @ dout[:, h, t]
        return dq, dk, dv
    """),
    Code("flash_attention", {"out": "does not rescale o"}, """
        R = q.shape[1] // k.shape[1]
        k, v = k.repeat(R, 1), v.repeat(R, 1)
        T, S = q.shape[2], k.shape[2]
        m, z, o = np.full((*q.shape[:3], 1), -np.inf), 0.0, 0.0
        for j in tiles(S):
            s = q @ k[:, :, j].swapaxes(2, 3) / np.sqrt(q.shape[-1])
            s = np.where(np.arange(j.start, j.stop) <= np.arange(T)[:, None] + S - T, s, -np.inf)
            new = np.maximum(m, s.max(-1, keepdims=True))
            p = np.exp(s - new)
            z = np.exp(m - new) * z + p.sum(-1, keepdims=True)
            o = o + p @ v[:, :, j]
            m = new
        return o / z, None
    """, "forward"),
    Code("flash_attention", {"out": "softmaxes of the tiles"}, """
        R = q.shape[1] // k.shape[1]
        k, v = k.repeat(R, 1), v.repeat(R, 1)
        T, S, out = q.shape[2], k.shape[2], 0.0
        for j in tiles(S):
            s = q @ k[:, :, j].swapaxes(2, 3) / np.sqrt(q.shape[-1])
            e = np.exp(s) * (np.arange(j.start, j.stop) <= np.arange(T)[:, None] + S - T)
            out = out + e / np.maximum(e.sum(-1, keepdims=True), 1e-300) @ v[:, :, j]
        return out, None
    """, "forward"),
]

EXPERTS = """
(dout, dprobs), (inputs, routed, experts) = douts, cache
x, router, gate, up, down = inputs
X, dO = x.reshape(-1, x.shape[-1]), dout.reshape(-1, x.shape[-1])
dx, dw, dgate, dup, ddown = (np.zeros_like(a) for a in (X, routed.weights, gate, up, down))
for c in experts:
    w = routed.weights[c.tokens, c.places][:, None]
    dy = w * dO[c.tokens]
    dw[c.tokens, c.places] = np.einsum("nc,nc->n", dO[c.tokens], c.y)
    ddown[c.e] = dy.T @ c.h
    dh = dy @ down[c.e]
    g, u = c.activation
    sg = 1 / (1 + np.exp(-g))
    dg, du = dh * u * sg * (1 + g * (1 - sg)), dh * g * sg
    dgate[c.e], dup[c.e] = dg.T @ c.x, du.T @ c.x
    dx[c.tokens] += dg @ gate[c.e] + du @ up[c.e]
P = routed.probs
dv = (dw - (dw * routed.weights).sum(1, keepdims=True)) / routed.total
dP = np.zeros_like(P)
np.put_along_axis(dP, routed.chosen, dv, 1)
dP = dP + dprobs
dz = P * (dP - (dP * P).sum(1, keepdims=True))
return (dx + dz @ router).reshape(x.shape), dz.T @ X, dgate, dup, ddown
"""


def experts(says, right, wrong):
    """The backward with a part of it changed."""
    assert EXPERTS.count(right) == 1
    return Code("mixture_of_experts", says, EXPERTS.replace(right, wrong))


MIXTURE = [
    experts({"dx": "one sum for all tokens", "drouter": "one sum for all tokens"},
            'np.einsum("nc,nc->n", dO[c.tokens], c.y)', "np.sum(dO[c.tokens] * c.y)"),
    experts({"dx": "lacks the router's part"}, "(dx + dz @ router)", "dx"),
    experts({"dx": "as a constant", "drouter": "as a constant"},
            "(dw - (dw * routed.weights).sum(1, keepdims=True)) / routed.total", "dw / routed.total"),
    experts({"dx": "division by the sum", "drouter": "division by the sum"},
            "(dw - (dw * routed.weights).sum(1, keepdims=True)) / routed.total", "dw"),
    experts({"dx": "lacks dprobs", "drouter": "lacks dprobs"}, "dP + dprobs", "dP"),
    experts(dict.fromkeys(("dx", "dgate", "dup", "ddown"),
            "lacks the weight of the expert"), "dy = w * dO", "dy = dO"),
    experts({"dx": "softmax's backward", "drouter": "softmax's backward"},
            "dz = P * (dP - (dP * P).sum(1, keepdims=True))", "dz = dP"),
    experts({"dx": "sum in softmax's backward", "drouter": "sum in softmax's backward"},
            "P * (dP - (dP * P).sum(1, keepdims=True))", "P * dP"),
    experts({"dx": "last expert of each token"}, "dx[c.tokens] +=", "dx[c.tokens] ="),
    experts({"dx": "second term", "dgate": "second term"}, "sg * (1 + g * (1 - sg))", "sg"),
    experts({"dx": "path through up"}, "dg @ gate[c.e] + du @ up[c.e]", "dg @ gate[c.e]"),
    experts({"dgate": "gradients of up", "dup": "numbers of dgate"},
            "dgate[c.e], dup[c.e] =", "dup[c.e], dgate[c.e] ="),
    experts({"drouter": "first k columns", "dx": "first k columns"},
            "np.put_along_axis(dP, routed.chosen, dv, 1)", "dP[:, :dv.shape[1]] = dv"),
    Code("mixture_of_experts", {"out": "divide the k chosen ones by their sum"}, """
        X = x.reshape(-1, x.shape[-1])
        e = np.exp(X @ router.T)
        probs = e / e.sum(1, keepdims=True)
        out = np.zeros_like(X)
        for n, row in enumerate(X):
            for i in np.argsort(probs[n])[::-1][:top_k]:
                g = gate[i] @ row
                out[n] += probs[n, i] * down[i] @ (g / (1 + np.exp(-g)) * (up[i] @ row))
        return (out.reshape(x.shape), probs), None
    """, "forward"),
    Code("mixture_of_experts", {"out": "mean of the chosen experts", "probs": "logits"}, """
        X = x.reshape(-1, x.shape[-1])
        z = X @ router.T
        out = np.zeros_like(X)
        for n, row in enumerate(X):
            for i in np.argsort(z[n])[-top_k:]:
                g = gate[i] @ row
                out[n] += down[i] @ (g / (1 + np.exp(-g)) * (up[i] @ row)) / top_k
        return (out.reshape(x.shape), z), None
    """, "forward"),
]
STUDENTS = [*ATTENTION, *FLASH_ATTENTION, *MIXTURE]
