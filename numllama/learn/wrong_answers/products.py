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
        ("out lacks the bias.", lambda x, weight: x @ weight.T),
        ("out subtracts the bias.", lambda x, weight, bias: x @ weight.T - bias),
        ("out adds the bias twice.", lambda x, weight, bias: x @ weight.T + 2 * bias),
        ("out is multiplied by the bias: add it.", lambda x, weight, bias: x @ weight.T * bias),
        ("out reshapes weight to (I, O) instead of transposing it: weight has one row for each output.",
         lambda x, weight, bias: x @ weight.reshape(weight.T.shape) + bias),
        ("out is computed as weight · xᵀ and reshaped until it fits: transpose the result instead.",
         lambda rows, weight, bias, out: (weight @ rows.T).reshape(out.shape) + bias),
        ("out has the bias only.", lambda bias, out: np.broadcast_to(bias, out.shape)),
    ],
    "dx": [
        ("dx is computed as weightᵀ · doutᵀ and reshaped until it fits: transpose the result instead.",
         lambda drows, weight, x: (weight.T @ drows.T).reshape(x.shape)),
        ("dx has weight.T reshaped to (O, I): no transpose is needed, for dx = dout · weight.",
         lambda dout, weight: dout @ reshaped(weight)),
        ("dx has out in the place of dout.", lambda out, weight: out @ weight),
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
        ("dweight has out in the place of dout.", lambda out, x: out.reshape(-1, out.shape[-1]).T @ x.reshape(-1, x.shape[-1])),
        ("dweight has dx in the place of x: x itself was multiplied by weight.",
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
        ("dweight adds the bias to dout.", lambda drows, bias, rows: (drows + bias).T @ rows),
    ],
    "dbias": [
        ("dbias is multiplied by bias: the bias is added, so its derivative is 1.", lambda dbias, bias: dbias * bias),
        ("dbias is the sum of dweight over the inputs: x has no place in it.", lambda dweight: dweight.sum(1)),
        ("dbias has out in the place of dout.", lambda out: out.reshape(-1, out.shape[-1]).sum(0)),
        ("dbias is the sum of dx over the rows: the bias is added to out, so it is dout that is summed.",
         lambda dx: dx.sum((0, 1))),
        ("dbias is multiplied by the sum of weight.", lambda dbias, weight: dbias * weight.sum(1)),
        ("dbias is the sum of |dout|.", lambda drows: abs(drows).sum(0)),
        ("dbias is the largest dout of all rows: sum them.", lambda drows: drows.max(0)),
    ],
})  # fmt: skip
TABLES = [LINEAR]
