"""Wrong answers to matrix products: the linear map, LoRA and the embedding."""

import numpy as np

from numllama.learn.wrong_answers.table import Table


def reshaped(a):
    """The transpose, reshaped until it has the shape of `a` again."""
    return np.ascontiguousarray(a.T).reshape(a.shape)


# ------------------------------------------------------------------------------------------------ linear


def linear_values(dout, x, weight, bias):
    (B, T, I), O = x.shape, len(weight)  # noqa: E741
    N, rows, drows = B * T, x.reshape(-1, I), dout.reshape(-1, O)
    return locals()


LINEAR = Table("linear", linear_values, {
    "out": [
        ("out lacks the bias, which is added to every row.", lambda x, weight: x @ weight.T),
        ("out subtracts the bias.", lambda x, weight, bias: x @ weight.T - bias),
        ("out adds the bias twice.", lambda x, weight, bias: x @ weight.T + 2 * bias),
        ("out is multiplied by the bias: add it.", lambda x, weight, bias: x @ weight.T * bias),
        ("out reshapes weight to (I, O) instead of transposing it: weight has one row for each output.",
         lambda x, weight, bias: x @ weight.reshape(weight.T.shape) + bias),
        ("out is computed as weight · xᵀ and reshaped until it fits: transpose the result instead.",
         lambda rows, weight, bias, out: (weight @ rows.T).reshape(out.shape) + bias),
        ("out is the bias alone: x · weightᵀ is missing.", lambda bias, out: np.broadcast_to(bias, out.shape)),
    ],
    "dx": [
        ("dx is computed as weightᵀ · doutᵀ and reshaped until it fits: transpose the result instead.",
         lambda drows, weight, x: (weight.T @ drows.T).reshape(x.shape)),
        ("dx has weight.T reshaped to (O, I): no transpose is needed, for dx = dout · weight.",
         lambda dout, weight: dout @ reshaped(weight)),
        ("dx uses out in place of dout, its gradient.", lambda out, weight: out @ weight),
        ("dx adds the bias to dout: a constant that is added does not change dx.",
         lambda dout, bias, weight: (dout + bias) @ weight),
        ("dx multiplies dout by the bias: a bias that is added has no place in dx.",
         lambda dout, bias, weight: dout * bias @ weight),
        ("dx sums dout and weight over the outputs before it multiplies them: multiply first, then sum.",
         lambda dout, weight: dout.sum(-1, keepdims=True) * weight.sum(0)),
        ("dx is multiplied by x again: the derivative of x · weightᵀ by x is weight alone.", lambda dx, x: dx * x),
        ("dx is dout · dweight: multiply by weight.", lambda dout, dweight: dout @ dweight),
        ("dx is the same for all rows: dout is summed over the rows first.",
         lambda dbias, weight, x: np.broadcast_to(dbias @ weight, x.shape)),
    ],
    "dweight": [
        ("dweight uses out in place of dout, its gradient.",
         lambda out, x: out.reshape(-1, out.shape[-1]).T @ x.reshape(-1, x.shape[-1])),
        ("dweight uses dx in place of x: x itself was multiplied by weight.",
         lambda drows, dx: drows.T @ dx.reshape(len(drows), -1)),
        ("dweight sums dout and x over the rows before it multiplies them: multiply first, then sum.",
         lambda drows, rows: np.outer(drows.sum(0), rows.sum(0))),
        ("dweight is computed as xᵀ · dout and reshaped until it fits: it is doutᵀ · x.",
         lambda drows, rows, weight: (rows.T @ drows).reshape(weight.shape)),
        ("dweight pairs dout with x reshaped to (I, N): transpose it.",
         lambda drows, rows, weight: (rows.reshape(rows.T.shape) @ drows).T),
        ("dweight pairs dout reshaped to (O, N) with x: transpose it.", lambda drows, rows: drows.reshape(drows.T.shape) @ rows),
        ("dweight pairs each row of dout with the x of the row before.", lambda drows, rows: drows.T @ np.roll(rows, 1, 0)),
        ("dweight pairs each row of dout with the x of the row after.", lambda drows, rows: drows.T @ np.roll(rows, -1, 0)),
        ("dweight is multiplied by weight: the derivative of x · weightᵀ by weight is x alone.",
         lambda dweight, weight: dweight * weight),
        ("dweight repeats dbias: multiply dout by x before the sum over rows.",
         lambda dbias, weight: np.broadcast_to(dbias[:, None], weight.shape)),
        ("dweight repeats the sum of x over the rows: multiply it by dout before the sum.",
         lambda rows, weight: np.broadcast_to(rows.sum(0), weight.shape)),
        ("dweight adds the bias to dout: a constant that is added does not change dweight.",
         lambda drows, bias, rows: (drows + bias).T @ rows),
    ],
    "dbias": [
        ("dbias is multiplied by bias: the bias is added, so its derivative is 1.", lambda dbias, bias: dbias * bias),
        ("dbias is the sum of dweight over the inputs: x has no place in it.", lambda dweight: dweight.sum(1)),
        ("dbias uses out in place of dout, its gradient.", lambda out: out.reshape(-1, out.shape[-1]).sum(0)),
        ("dbias is the sum of dx over the rows: the bias is added to out, so it is dout that is summed.",
         lambda dx: dx.sum((0, 1))),
        ("dbias is multiplied by the sum of weight: weight does not touch the bias.",
         lambda dbias, weight: dbias * weight.sum(1)),
        ("dbias is the sum of |dout|: sum dout itself.", lambda drows: abs(drows).sum(0)),
        ("dbias is the largest dout of all rows: sum them.", lambda drows: drows.max(0)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ LoRA


def lora_values(dout, x, a, b, scale):
    (B, T, I), (O, R) = x.shape, b.shape  # noqa: E741
    N, rows, drows = B * T, x.reshape(-1, I), dout.reshape(-1, O)
    h = rows @ a.T
    dh = scale * (drows @ b)
    return locals()


LORA = Table("lora", lora_values, {
    "out": [
        ("out lacks the scale: it is scale * h · bᵀ.", lambda out, scale: out / scale),
        ("out has the scale twice, or divides it by the rank: scale is alpha / R already.", lambda out, scale: out * scale),
        ("out is divided by the scale instead of multiplied.", lambda out, scale: out / scale**2),
        ("out uses b reshaped to (R, O) instead of transposed.", lambda x, a, b, scale: scale * (x @ a.T) @ b.reshape(b.T.shape)),
        ("out uses a reshaped to (I, R) instead of transposed.", lambda x, a, b, scale: scale * (x @ a.reshape(a.T.shape)) @ b.T),
        ("out adds the scale instead of multiplying by it.", lambda x, a, b, scale: x @ a.T @ b.T + scale),
    ],
    "dx": [
        ("dx lacks the scale: it multiplies out, so it multiplies every gradient.", lambda dx, scale: dx / scale),
        ("dx has the scale twice: it is in dh already.", lambda dx, scale: dx * scale),
        ("dx is divided by the scale instead of multiplied.", lambda dx, scale: dx / scale**2),
        ("dx uses h in place of dh, its gradient.", lambda h, a, x: (h @ a).reshape(x.shape)),
        ("dx uses the scaled h in place of dh, its gradient.", lambda h, a, x, scale: (scale * h @ a).reshape(x.shape)),
        ("dx multiplies dh by h: h is linear in x, so only a multiplies dh.", lambda dh, h, a, x: (dh * h @ a).reshape(x.shape)),
        ("dx has a.T reshaped to (R, I): no transpose is needed, for dx = dh · a.",
         lambda dh, a, x: (dh @ reshaped(a)).reshape(x.shape)),
        ("dx has b.T reshaped to (O, R): no transpose is needed, for dh = scale * dout · b.",
         lambda dout, a, b, scale: scale * (dout @ reshaped(b)) @ a),
        ("dx is computed as aᵀ · dhᵀ and reshaped until it fits: transpose the result instead.",
         lambda dh, a, x: (a.T @ dh.T).reshape(x.shape)),
        ("dx uses da, the gradient of a, in place of a.", lambda dh, da, x: (dh @ da).reshape(x.shape)),
        ("dx uses out in place of dout, its gradient.", lambda out, a, b, scale: scale * (out @ b) @ a),
        ("dx is multiplied by x: out is linear in x, so x itself is not in dx.", lambda dx, x: dx * x),
    ],
    "da": [
        ("da lacks the scale: dh = scale * dout · b has it.", lambda da, scale: da / scale),
        ("da has the scale twice: it is in dh already.", lambda da, scale: da * scale),
        ("da is divided by the scale instead of multiplied.", lambda da, scale: da / scale**2),
        ("da uses h in place of dh, its gradient.", lambda h, rows: h.T @ rows),
        ("da uses the scaled h in place of dh, its gradient.", lambda h, rows, scale: scale * h.T @ rows),
        ("da uses dx, the gradient of x, in place of x.", lambda dh, dx: dh.T @ dx.reshape(len(dh), -1)),
        ("da sums dh and x over the rows before it multiplies them: multiply first, then sum.",
         lambda dh, rows: np.outer(dh.sum(0), rows.sum(0))),
        ("da has b.T reshaped to (O, R): no transpose is needed, for dh = scale * dout · b.",
         lambda drows, b, rows, scale: (scale * drows @ reshaped(b)).T @ rows),
        ("da uses db, the gradient of b, in place of b.", lambda drows, db, rows, scale: (scale * drows @ db).T @ rows),
        ("da is multiplied by a: h is linear in a, so a itself is not in da.", lambda da, a: da * a),
        ("da uses out in place of dout, its gradient.",
         lambda out, b, rows, scale: (scale * out.reshape(len(rows), -1) @ b).T @ rows),
    ],
    "db": [
        ("db lacks the scale: it multiplies out, so it multiplies every gradient.", lambda db, scale: db / scale),
        ("db has the scale twice: out has it once.", lambda db, scale: db * scale),
        ("db is divided by the scale instead of multiplied.", lambda db, scale: db / scale**2),
        ("db uses dh in place of h: like dweight in linear, it takes the input of b.", lambda drows, dh: drows.T @ dh),
        ("db uses dh in place of h, and the scale twice.", lambda drows, dh, scale: scale * drows.T @ dh),
        ("db uses dh / scale in place of h: like dweight in linear, it takes the input of b.",
         lambda drows, dh, scale: drows.T @ dh / scale),
        ("db uses out in place of dout, its gradient.", lambda out, h, scale: out.reshape(len(h), -1).T @ h * scale),
        ("db sums dout and h over the rows before it multiplies them: multiply first, then sum.",
         lambda drows, h, scale: np.outer(drows.sum(0), scale * h.sum(0))),
        ("db is multiplied by b: out is linear in b, so b itself is not in db.", lambda db, b: db * b),
        ("db repeats the sum of dout: multiply by h before the sum over rows.",
         lambda drows, b: np.broadcast_to(drows.sum(0)[:, None], b.shape)),
        ("db repeats the scaled sum of dout: multiply by h before the sum over rows.",
         lambda drows, b, scale: np.broadcast_to(scale * drows.sum(0)[:, None], b.shape)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ embedding


def embedding_values(dout, tokens, weight):
    (B, T), (V, C) = tokens.shape, weight.shape
    N, ids, drows = B * T, tokens.ravel(), dout.reshape(-1, C)
    counts = np.bincount(ids, minlength=V)[:, None]
    return locals()


def added(ids, rows, V):
    """The sum over the occurrences of each id."""
    total = np.zeros((V, rows.shape[-1]))
    np.add.at(total, ids, rows)
    return total


def overwritten(ids, rows, V):
    """The last occurrence of each id."""
    kept = np.zeros((V, rows.shape[-1]))
    for token, row in zip(ids, rows, strict=True):
        kept[token] = row
    return kept


EMBEDDING = Table("embedding", embedding_values, {
    "out": [
        ("out has the rows of the next larger ids: ids start at 0.", lambda tokens, weight: weight[(tokens + 1) % len(weight)]),
        ("out has the rows of the next smaller ids: ids start at 0.", lambda tokens, weight: weight[tokens - 1]),
        ("out is multiplied by √C, as in the first Transformer: the rows are taken as they are.",
         lambda out, C: out * C**0.5),
        ("out is the first rows of weight, whatever the tokens are: index weight with tokens.",
         lambda weight, out: np.resize(weight, out.shape)),
        ("out has the rows in the order of sorted ids: index weight with tokens as they are.",
         lambda weight, ids, out: weight[np.sort(ids)].reshape(out.shape)),
        ("out mixes the axes of tokens: weight[tokens] has the shape of tokens, and needs no reshape.",
         lambda weight, tokens, out: weight[tokens.T].reshape(out.shape)),
        ("out multiplies each row by its token id: an id only chooses a row.", lambda out, tokens: out * tokens[..., None]),
        ("out has the columns of weight reshaped to rows: a token's vector is weight[token].",
         lambda weight, tokens: weight.T.reshape(weight.shape)[tokens]),
    ],
    "dweight": [
        ("dweight is all zeros: dweight[tokens] with an array of ids is a copy, and what is added to the copy is lost.",
         lambda weight: np.zeros_like(weight)),
        ("dweight keeps the last gradient of a token that occurs several times, as dweight[tokens] += dout does: use np.add.at.",
         lambda ids, drows, V: overwritten(ids, drows, V)),
        ("dweight keeps the first gradient of a token that occurs several times: it must add them all.",
         lambda ids, drows, V: overwritten(ids[::-1], drows[::-1], V)),
        ("dweight has the mean of the gradients of a token that occurs several times: it is their sum.",
         lambda dweight, counts: dweight / np.maximum(counts, 1)),
        ("dweight has the last gradient of a token times the number of its occurrences: add the gradients themselves.",
         lambda ids, drows, V, counts: overwritten(ids, drows, V) * counts),
        ("dweight multiplies the sum of a token's gradients by the number of its occurrences: it is in the sum already.",
         lambda dweight, counts: dweight * counts),
        ("dweight keeps one gradient of a token that occurs several times in one sequence: it must add them all.",
         lambda tokens, dout, V: sum(overwritten(ids, rows, V) for ids, rows in zip(tokens, dout, strict=True))),
        ("dweight counts how often each token occurs: add its gradients, not ones.",
         lambda counts, weight: np.broadcast_to(counts, weight.shape)),
        ("dweight is in the rows of the next larger ids: ids start at 0.", lambda dweight: np.roll(dweight, 1, 0)),
        ("dweight is in the rows of the next smaller ids: ids start at 0.", lambda dweight: np.roll(dweight, -1, 0)),
        ("dweight lacks the gradients of token 0, as if it were padding: here 0 is a token like any other.",
         lambda dweight, V: dweight * (np.arange(V) > 0)[:, None]),
        ("dweight is multiplied by weight: out = weight[token] has the derivative 1.", lambda dweight, weight: dweight * weight),
        ("dweight is multiplied by √C: the rows were taken as they are.", lambda dweight, C: dweight * C**0.5),
        ("dweight adds up out in place of dout, its gradient.", lambda ids, out, V, C: added(ids, out.reshape(-1, C), V)),
        ("dweight is multiplied by the token id: an id only chooses a row.", lambda dweight, V: dweight * np.arange(V)[:, None]),
        ("dweight pairs each token with the gradient of the one before it.",
         lambda ids, drows, V: added(ids, np.roll(drows, 1, 0), V)),
        ("dweight pairs each token with the gradient of the one after it.",
         lambda ids, drows, V: added(ids, np.roll(drows, -1, 0), V)),
        ("dweight adds the gradients of all tokens to each row that occurs.",
         lambda drows, counts: np.where(counts > 0, drows.sum(0), 0)),
        ("dweight is reshaped from (C, V) instead of transposed: onehot.T @ dout needs no reshape.",
         lambda dweight: reshaped(dweight)),
    ],
})  # fmt: skip
TABLES = [LINEAR, LORA, EMBEDDING]
