"""Norms with a mistake in each, many in the steps of a course: one line for each node of the graph."""

from learn.wrong_code import Code

RMSNORM = [
    Code("rmsnorm", {"dx": "rstd as a constant"}, """
        x, g, r = cache
        return dout * g * r, np.einsum("btc,btc->c", dout, x * r)
    """),
    Code("rmsnorm", {"dx": "sum of dn * n"}, """
        x, g, r = cache
        xhat = x * r
        dxhat = dout * g
        dot = np.sum(dxhat * xhat, axis=-1, keepdims=True)
        return r * (dxhat - xhat * dot), np.sum(dout * xhat, axis=(0, 1))
    """),
    Code("rmsnorm", {"dx": "half of its second term"}, """
        x, g, r = cache
        C = x.shape[-1]
        dr = (dout * g * x).sum(-1, keepdims=True)
        dms = -0.5 * r**3 * dr
        return dout * g * r + dms * x / C, (dout * x * r).sum((0, 1))
    """),
    Code("rmsnorm", {"dx": "twice its second term"}, """
        x, g, r = cache
        C = x.shape[-1]
        dr = (dout * g * x).sum(-1, keepdims=True)
        dms = -(r**3) * dr
        return dout * g * r + dms * 2 * x / C, (dout * x * r).sum((0, 1))
    """),
    Code("rmsnorm", {"dx": "lacks one rstd"}, """
        x, g, r = cache
        C = x.shape[-1]
        dr = (dout * g * x).sum(-1, keepdims=True)
        return dout * g * r - dr * r**2 * x / C, (dout * x * r).sum((0, 1))
    """),
    Code("rmsnorm", {"dx": "weight at the end"}, """
        x, g, r = cache
        n = x * r
        dx = g * r * (dout - n * np.mean(dout * n, axis=-1, keepdims=True))
        return dx, np.sum(np.sum(dout * n, axis=0), axis=0)
    """),
    Code("rmsnorm", {"dx": "as LayerNorm", "dweight": "not summed over the rows"}, """
        x, g, r = cache
        n, d = x * r, dout * g
        dx = r * (d - d.mean(-1)[..., None] - n * (d * n).mean(-1)[..., None])
        return dx, dout * n
    """),
    Code("rmsnorm", {"dweight": "x instead of n"}, """
        x, g, r = cache
        n, d = x * r, dout * g
        return r * d - r * n * np.mean(d * n, -1, keepdims=True), np.einsum("btc,btc->c", x, dout)
    """),
    Code("rmsnorm", {"dweight": "axis 0 only"}, """
        x, g, r = cache
        n, d = x * r, dout * g
        return r * d - r * n * np.mean(d * n, -1, keepdims=True), (n * dout).sum(axis=0)
    """),
    Code("rmsnorm", {"dx": "wrong sign"}, """
        x, g, r = cache
        n, d = x * r, dout * g
        return r * n * np.mean(d * n, -1, keepdims=True) - r * d, (n * dout).sum(axis=0).sum(axis=0)
    """),
    Code("rmsnorm", {"out": "eps outside"}, """
        return weight * x / (np.sqrt(np.mean(x**2, -1, keepdims=True)) + eps), None
    """, "forward"),
    Code("rmsnorm", {"out": "lacks eps"}, "return weight * x / np.sqrt(np.mean(x**2, -1, keepdims=True)), None", "forward"),
    Code("rmsnorm", {"out": "does not centre"}, """
        mu = np.mean(x, axis=-1, keepdims=True)
        var = np.mean((x - mu) ** 2, axis=-1, keepdims=True)
        return weight * (x - mu) / np.sqrt(var + eps), None
    """, "forward"),
]
LAYERNORM = [
    Code("layernorm", {"dx": "mean and rstd as constants"}, """
        x, g, mu, r = cache
        xhat = (x - mu) * r
        return dout * g * r, (dout * xhat).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dx": "rstd as a constant"}, """
        x, g, mu, r = cache
        xhat = (x - mu) * r
        dxhat = dout * g
        dxmu = dxhat * r
        dmu = -dxmu.sum(-1, keepdims=True)
        return dxmu + dmu / x.shape[-1], (dout * xhat).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dx": "mean as a constant"}, """
        x, g, mu, r = cache
        C, xmu = x.shape[-1], x - mu
        dxhat = dout * g
        dvar = (dxhat * xmu * -0.5 * r**3).sum(-1, keepdims=True)
        dx = dxhat * r + dvar * 2 * xmu / C
        return dx, (dout * xmu * r).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dx": "half of the term through the variance"}, """
        x, g, mu, r = cache
        C, xmu = x.shape[-1], x - mu
        dxhat = dout * g
        dvar = (dxhat * xmu * -0.5 * r**3).sum(-1, keepdims=True)
        dmu = (-dxhat * r).sum(-1, keepdims=True)
        return dxhat * r + dvar * xmu / C + dmu / C, (dout * xmu * r).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dx": "sum of dn instead of its mean"}, """
        x, g, mu, r = cache
        C, xmu = x.shape[-1], x - mu
        dxhat = dout * g
        dvar = (dxhat * xmu * -0.5 * r**3).sum(-1, keepdims=True)
        dmu = (-dxhat * r).sum(-1, keepdims=True)
        return dxhat * r + dvar * 2 * xmu / C + dmu, (dout * xmu * r).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dx": "batch norm"}, """
        x, g, mu, r = cache
        xhat, N = (x - mu) * r, x.shape[0] * x.shape[1]
        d = dout * g
        dx = r / N * (N * d - d.sum((0, 1)) - xhat * (d * xhat).sum((0, 1)))
        return dx, (dout * xhat).sum((0, 1)), dout.sum((0, 1))
    """),
    Code("layernorm", {"dweight": "subtract the mean first"}, """
        x, g, mu, r = cache
        xhat, d = (x - mu) * r, dout * g
        m = lambda a: a.mean(-1, keepdims=True)
        return r * (d - m(d) - xhat * m(d * xhat)), np.einsum("btc,btc,bto->c", dout, x, r), dout.sum((0, 1))
    """),
    Code("layernorm", {"dweight": "numbers of dbias", "dbias": "numbers of dweight"}, """
        x, g, mu, r = cache
        xhat, d = (x - mu) * r, dout * g
        m = lambda a: a.mean(-1, keepdims=True)
        return r * (d - m(d) - xhat * m(d * xhat)), dout.sum((0, 1)), (dout * xhat).sum((0, 1))
    """),
    Code("layernorm", {"dbias": "dn instead of dout"}, """
        x, g, mu, r = cache
        xhat = (x - mu) * r
        dweight = (dout * xhat).sum((0, 1))
        dout = dout * g
        dx = r * (dout - dout.mean(-1, keepdims=True) - xhat * (dout * xhat).mean(-1, keepdims=True))
        return dx, dweight, dout.sum((0, 1))
    """),
    Code("layernorm", {"out": "unbiased"}, """
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + eps) * weight + bias, None
    """, "forward"),
    Code("layernorm", {"out": "batch norm"}, """
        rows = x.reshape(-1, x.shape[-1])
        n = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + eps)
        return (n * weight + bias).reshape(x.shape), None
    """, "forward"),
]
ADD_RMSNORM = [
    Code("add_rmsnorm", {"dx": "lacks dtotal", "dbranch": "lacks dtotal"}, """
        dtotal, dout = douts
        dx, dw = rmsnorm_backward(dout, cache.norm)
        return dx, dropout_backward(dx, cache.dropout), dw
    """),
    Code("add_rmsnorm", {"dbranch": "the branch had dropout"}, """
        dtotal, dout = douts
        dx, dw = rmsnorm_backward(dout, cache.norm)
        dx = dx + dtotal
        return dx, dx.copy(), dw
    """),
    Code("add_rmsnorm", {"dbranch": "after the mask"}, """
        dtotal, dout = douts
        dn, dw = rmsnorm_backward(dout, cache.norm)
        return dn + dtotal, dropout_backward(dn, cache.dropout) + dtotal, dw
    """),
    Code("add_rmsnorm", {"dx": "before the norm's backward", "dbranch": "lacks dtotal", "dweight": "dtotal + dout"}, """
        dx, dw = rmsnorm_backward(douts[0] + douts[1], cache.norm)
        return dx, 2 * dropout_backward(rmsnorm_backward(douts[1], cache.norm)[0], cache.dropout), dw
    """),
    Code("add_rmsnorm", {"dx": "exchanges dtotal and dout", "dweight": "dtotal in place of dout", "dbranch": "exchanges"}, """
        dout, dtotal = douts
        dx, dw = rmsnorm_backward(dout, cache.norm)
        return dx + dtotal, dropout_backward(dx + dtotal, cache.dropout), dw
    """),
    Code("add_rmsnorm", {"dx": "x was not dropped"}, """
        dtotal, dout = douts
        dx, dw = rmsnorm_backward(dout, cache.norm)
        d = dropout_backward(dx + dtotal, cache.dropout)
        return d, d, dw
    """),
    Code("add_rmsnorm", {"dbranch": "1 / (1 - p)"}, """
        dtotal, dout = douts
        dx, dw = rmsnorm_backward(dout, cache.norm)
        dx = dx + dtotal
        return dx, dropout_backward(dx, cache.dropout) * (1 - cache.dropout.p), dw
    """),
    Code("add_rmsnorm", {"total": "lacks the dropout", "out": "without dropout"}, """
        total = x + branch
        return (total, rmsnorm_forward(total, weight, eps)[0]), None
    """, "forward"),
    Code("add_rmsnorm", {"total": "only the branch has dropout", "out": "only the branch has dropout"}, """
        total, _ = dropout_forward(x + branch, p, key)
        return (total, rmsnorm_forward(total, weight, eps)[0]), None
    """, "forward"),
]
STUDENTS = [*RMSNORM, *LAYERNORM, *ADD_RMSNORM]
