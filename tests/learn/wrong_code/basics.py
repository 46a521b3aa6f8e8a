"""Matrix products, lookups, probabilities, masks and rotations, with a mistake in each."""

from learn.wrong_code import Code

LINEAR = [
    Code("linear", {"dx": "until it fits"}, """
        x, w, b = cache
        g = dout.reshape(-1, w.shape[0])
        return (w.T @ g.T).reshape(x.shape), np.einsum("no,ni->oi", g, x.reshape(-1, w.shape[1])), g.sum(axis=0)
    """),
    Code("linear", {"dweight": "transposed"}, """
        x, w, b = cache
        dw = np.tensordot(x, dout, axes=([0, 1], [0, 1]))
        return np.matmul(dout, w), dw, np.sum(dout, axis=(0, 1))
    """),
    Code("linear", {"dweight": "axis 0 only"}, """
        x, w, b = cache
        return dout.dot(w), np.einsum("bto,bti->toi", dout, x), np.einsum("bto->o", dout)
    """),
    Code("linear", {"dweight": "axis 1 only", "dbias": "axis 0 only"}, """
        x, w, b = cache
        dw = dout.transpose(0, 2, 1) @ x
        db = dout.sum(0)
        return dout @ w, dw, db
    """),
    Code("linear", {"dbias": "last axis instead of the rows"}, """
        x, w, b = cache
        d2 = dout.reshape(-1, dout.shape[-1])
        return (d2 @ w).reshape(*x.shape), d2.T @ x.reshape(len(d2), -1), dout.sum(-1)
    """),
    Code("linear", {"dbias": "divided by 6 (N, the number of rows)"}, """
        x, w, b = cache
        d2 = dout.reshape(-1, dout.shape[-1])
        return dout @ w, d2.T @ x.reshape(len(d2), -1), d2.mean(axis=0)
    """),
    Code("linear", {"dweight": "last row only", "dbias": "last row only"}, """
        x, w, b = cache
        dw, db = np.zeros_like(w), np.zeros_like(b)
        for g, row in zip(dout.reshape(-1, len(w)), x.reshape(-1, w.shape[1])):
            dw = np.outer(g, row)
            db = g.copy()
        return dout @ w, dw, db
    """),
    Code("linear", {"dweight": "dx in place of x"}, """
        x, w, b = cache
        n = len(w)
        x = dout @ w
        dw = dout.reshape(-1, n).T @ x.reshape(-1, w.shape[1])
        return x, dw, dout.reshape(-1, n).sum(0)
    """),
    Code("linear", {"dx": "numbers in the shape"}, """
        x, w, b = cache
        g = dout.reshape(-1, len(w))
        return g @ w, g.T @ x.reshape(len(g), -1), g.sum(0)
    """),
    Code("linear", {"out": "lacks the bias"}, "return np.einsum('bti,oi->bto', x, weight), None", "forward"),
    Code("linear", {"out": "instead of transposing"}, """
        O, I = weight.shape
        return x @ weight.reshape(I, O) + bias, None
    """, "forward"),
]
LORA = [
    Code("lora", {"da": "lacks the scale", "dx": "lacks the scale"}, """
        x, a, b, h, s = cache
        d = dout.reshape(-1, b.shape[0])
        dh = d @ b
        return (dh @ a).reshape(x.shape), dh.T @ x.reshape(-1, a.shape[1]), s * (d.T @ h)
    """),
    Code("lora", {"db": "dh in place of h"}, """
        x, a, b, h, s = cache
        d = dout.reshape(-1, b.shape[0])
        dh = s * np.dot(d, b)
        return np.dot(dh, a).reshape(x.shape), np.dot(dh.T, x.reshape(len(d), -1)), np.dot(d.T, dh)
    """),
    Code("lora", {"db": "lacks the scale"}, """
        x, a, b, h, s = cache
        db = np.einsum("no,nr->or", dout.reshape(len(h), -1), h)
        dh = np.einsum("bto,or->btr", dout, b) * s
        return dh @ a, np.einsum("btr,bti->ri", dh, x), db
    """),
    Code("lora", {"dx": "scale twice", "da": "scale twice"}, """
        x, a, b, h, s = cache
        dscaled = s * dout
        dh = dscaled @ b * s
        return dh @ a, np.einsum("btr,bti->ri", dh, x), np.einsum("bto,btr->or", dscaled, h.reshape(dh.shape))
    """),
    Code("lora", {"da": "h in place of dh"}, """
        x, a, b, h, s = cache
        d = dout.reshape(len(h), -1)
        return (s * d @ b @ a).reshape(x.shape), h.T @ x.reshape(len(h), -1), s * d.T @ h
    """),
    Code("lora", {"out": "lacks the scale"}, "return (x @ a.T) @ b.T, None", "forward"),
]
EMBEDDING = [
    Code("embedding", {"dweight": "np.add.at"}, """
        ids, table = cache
        grad = np.zeros_like(table)
        grad[ids] += dout
        return grad
    """),
    Code("embedding", {"dweight": "a copy"}, """
        ids, table = cache
        grad = np.zeros(table.shape)
        np.add(grad[ids], dout)
        return grad
    """),
    Code("embedding", {"dweight": "mean of the gradients"}, """
        ids, table = cache
        grad = np.zeros_like(table)
        for v in range(len(table)):
            if (ids == v).any():
                grad[v] = dout[ids == v].mean(0)
        return grad
    """),
    Code("embedding", {"dweight": "first gradient"}, """
        ids, table = cache
        grad, first = np.zeros_like(table), np.unique(ids, return_index=True)
        grad[first[0]] = dout.reshape(-1, dout.shape[-1])[first[1]]
        return grad
    """),
    Code("embedding", {"dweight": "one sequence"}, """
        ids, table = cache
        grad = np.zeros_like(table)
        for row, d in zip(ids, dout):
            grad[row] += d
        return grad
    """),
    Code("embedding", {"dweight": "start from zeros"}, """
        ids, table = cache
        grad = table.copy()
        np.add.at(grad, ids, dout)
        return grad
    """),
    Code("embedding", {"dweight": "counts how often"}, """
        ids, table = cache
        onehot = np.eye(len(table))[ids.ravel()]
        return np.repeat(onehot.sum(0)[:, None], table.shape[1], axis=1)
    """),
    Code("embedding", {"out": "whatever the tokens are"}, """
        n = tokens.size
        return np.concatenate([weight, weight])[:n].reshape(*tokens.shape, -1), None
    """, "forward"),
]
SOFTMAX = [
    Code("softmax", {"dx": "diagonal"}, "p = cache[0]\nreturn dout * p * (1 - p)"),
    Code("softmax", {"dx": "Σ dout * p"}, "p = cache.p\nreturn np.multiply(p, dout)"),
    Code("softmax", {"dx": "lacks the outer p"}, """
        p = cache.p
        s = np.einsum("btn,btn->bt", dout, p)
        return dout - s[:, :, None]
    """),
    Code("softmax", {"dx": "takes p out of the sum"}, """
        p = cache.p
        return p * (dout - p * dout.sum(-1, keepdims=True))
    """),
    Code("softmax", {"dx": "whole array"}, "p = cache.p\nreturn p * (dout - np.sum(p * dout))"),
    Code("softmax", {"dx": "log-softmax"}, "p = cache.p\nreturn dout - p * dout.sum(axis=2, keepdims=True)"),
    Code("softmax", {"dx": "dout must enter"}, """
        p = cache.p
        jac = np.einsum("bti,ij->btij", p, np.eye(p.shape[-1])) - np.einsum("bti,btj->btij", p, p)
        return jac.sum(-1)
    """),
    Code("softmax", {"dx": "off-diagonal"}, """
        p = cache.p
        dx = np.zeros_like(p)
        for i in range(p.shape[-1]):
            for j in range(p.shape[-1]):
                if i != j:
                    dx[..., j] -= dout[..., i] * p[..., i] * p[..., j]
        return dx
    """),
    Code("softmax", {"dx": "mean of dout * p"}, """
        p = cache.p
        return p * (dout - np.mean(p * dout, axis=-1, keepdims=True))
    """),
    Code("softmax", {"out": "axis 0"}, "e = np.exp(x)\nreturn e / e.sum(0), None", "forward"),
    Code("softmax", {"out": "whole array"}, """
        z = np.exp(x - np.max(x))
        return z / np.sum(z), None
    """, "forward"),
]
CROSS_ENTROPY = [
    Code("cross_entropy", {"dlogits": "ignored rows"}, """
        logits, targets, lse, count = cache
        p = np.exp(logits - lse[:, :, None])
        hot = np.zeros_like(p)
        hot[targets >= 0, targets[targets >= 0]] = 1
        return dout * (p - hot) / count
    """),
    Code("cross_entropy", {"dlogits": "index -1"}, """
        logits, targets, lse, count = cache
        grad = np.exp(logits - lse[:, :, None])
        b, t = np.indices(targets.shape)
        grad[b, t, targets] -= 1
        return grad * dout / count
    """),
    Code("cross_entropy", {"dlogits": "not divided by count"}, """
        logits, targets, lse, count = cache
        grad = np.exp(logits - lse[..., None])
        for b in range(len(grad)):
            for t in range(grad.shape[1]):
                if targets[b, t] < 0:
                    grad[b, t] = 0
                else:
                    grad[b, t, targets[b, t]] -= 1
        return grad * dout
    """),
    Code("cross_entropy", {"dlogits": "number of all targets"}, """
        logits, targets, lse, count = cache
        V = logits.shape[-1]
        grad = np.exp(logits - lse[..., None]) - np.eye(V + 1)[targets][..., :V]
        grad[targets < 0] = 0.0
        return dout * grad / targets.size
    """),
    Code("cross_entropy", {"dlogits": "lacks dout"}, """
        logits, targets, lse, count = cache
        V = logits.shape[-1]
        grad = np.exp(logits - lse[..., None]) - np.eye(V + 1)[targets][..., :V]
        grad[targets < 0] = 0.0
        return grad / count
    """),
    Code("cross_entropy", {"dlogits": "lacks the 1"}, """
        logits, targets, lse, count = cache
        grad = np.exp(logits - lse[..., None]) * dout / count
        grad[targets == -1] = 0
        return grad
    """),
    Code("cross_entropy", {"dlogits": "after the division"}, """
        logits, targets, lse, count = cache
        keep = targets >= 0
        grad = np.exp(logits - lse[..., None]) / count
        grad[~keep] = 0
        grad[keep, targets[keep]] -= 1
        return grad * dout
    """),
    Code("cross_entropy", {"dlogits": "goes through softmax's backward again"}, """
        logits, targets, lse, count = cache
        p = np.exp(logits - lse[..., None])
        d = (p - (targets[..., None] == np.arange(p.shape[-1]))) * (targets >= 0)[..., None] * dout / count
        return p * (d - np.sum(d * p, axis=-1, keepdims=True))
    """),
    Code("cross_entropy", {"out": "sum of the losses"}, """
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        loss = 0.0
        for row, t in zip(p.reshape(-1, p.shape[-1]), targets.ravel()):
            if t != ignore_index:
                loss -= np.log(row[t])
        return np.asarray(loss), None
    """, "forward"),
    Code("cross_entropy", {"out": "number of all targets"}, """
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        t = np.where(targets == ignore_index, 0, targets)
        losses = -np.log(np.take_along_axis(p, t[..., None], -1))[..., 0] * (targets != ignore_index)
        return losses.mean(), None
    """, "forward"),
    Code("cross_entropy", {"out": "add the maximum again"}, """
        m = logits.max(-1)
        lse = np.log(np.exp(logits - m[..., None]).sum(-1))
        ok = targets != ignore_index
        return (lse[ok] - logits[ok, targets[ok]]).mean(), None
    """, "forward"),
]
DROPOUT = [
    Code("dropout", {"dx": "1 / (1 - p)"}, """
        p, key, shape = cache
        keep = dropout_mask(dout, p, key) != 0
        return np.where(keep, dout, 0.0)
    """),
    Code("dropout", {"dx": "another mask"}, """
        keep = np.random.default_rng(3).random(dout.shape) >= cache.p
        return dout * keep / (1 - cache.p)
    """),
    Code("dropout", {"dx": "mask and its factor are missing"}, "return dout.copy()"),
    Code("dropout", {"dx": "twice"}, "return dout * dropout_mask(dout, *cache[:2]) / (1 - cache.p)"),
    Code("dropout", {"dx": "keeps what is dropped"}, """
        mask = dropout_mask(dout, cache.p, cache.key)
        return dout * (mask == 0) / (1 - cache.p)
    """),
    Code("dropout", {"dx": "mask is missing"}, "return dout / (1 - cache.p)"),
    Code("dropout", {"out": "1 / (1 - p)"}, "return np.where(dropout_mask(x, p, key) > 0, x, 0), None", "forward"),
    Code("dropout", {"out": "another mask"}, """
        return x * (np.random.default_rng(key[0]).random(x.shape) > p) / (1 - p), None
    """, "forward"),
    Code("dropout", {"out": "probability of keeping"}, "return x * dropout_mask(x, 1 - p, key), None", "forward"),
]
ROPE = [
    Code("rope", {"dx": "forward again"}, "cos, sin, layout = cache\nreturn rope_forward(dout, cos, sin, layout)[0]"),
    Code("rope", {"dx": "neighbours"}, """
        cos, sin, _ = cache
        dx = np.empty_like(dout)
        even, odd = dout[..., 0::2], dout[..., 1::2]
        dx[..., 0::2] = even * cos + odd * sin
        dx[..., 1::2] = odd * cos - even * sin
        return dx
    """),
    Code("rope", {"dx": "in place"}, """
        cos, sin, _ = cache
        half = dout.shape[-1] // 2
        g = dout.copy()
        a, b = g[..., :half], g[..., half:]
        a[:] = a * cos + b * sin
        b[:] = b * cos - a * sin
        return g
    """),
    Code("rope", {"dx": "plus before both sines"}, """
        cos, sin, _ = cache
        c, s = np.concatenate((cos, cos), -1), np.concatenate((sin, sin), -1)
        h = dout.shape[-1] // 2
        return dout * c + np.roll(dout, h, -1) * s
    """),
    Code("rope", {"dx": "cos(-a) is cos a"}, "return rope_forward(dout, -cache.cos, -cache.sin, cache.layout)[0]"),
    Code("rope", {"dx": "not turned back"}, "return dout"),
    Code("rope", {"out": "neighbours"}, """
        z = (x[..., ::2] + 1j * x[..., 1::2]) * (cos + 1j * sin)
        return np.stack([z.real, z.imag], -1).reshape(x.shape), None
    """, "forward"),
    Code("rope", {"out": "turned the other way"}, """
        z = (x[..., :3] + 1j * x[..., 3:]) * (cos - 1j * sin)
        return np.concatenate([z.real, z.imag], -1), None
    """, "forward"),
]
STUDENTS = [*LINEAR, *LORA, *EMBEDDING, *SOFTMAX, *CROSS_ENTROPY, *DROPOUT, *ROPE]
