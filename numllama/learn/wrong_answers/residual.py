"""Wrong answers to dropout, and to the residual sum with dropout and a norm."""

from inspect import Parameter, Signature

import numpy as np

from numllama.learn.wrong_answers.norms import mean, over_rows, total
from numllama.learn.wrong_answers.table import Rows, Table, parameters
from numllama.ops.dropout import dropout_mask
from numllama.ops.rmsnorm import rmsnorm_backward, rmsnorm_forward

# ------------------------------------------------------------------------------------------------ dropout


def dropout_values(dout, x, p, key):
    m = (dropout_mask(x, p, key) > 0) * 1.0
    return locals()


def drawn(array, actual, factor):
    """`array` with the mask of `actual`: zero in the same places, else times the factor. NaN if none or all are zero."""
    zeros = actual == 0 if actual.shape == array.shape else np.zeros(array.shape, bool)
    return np.where(zeros, 0, array * factor) if zeros.any() and not zeros.all() else np.full(array.shape, np.nan)


def dropout_rows(result, name, source) -> Rows:
    """Rows for `name`, which the mask multiplies: `source` takes it out of x and dout."""
    own = "compute it from the same key" if name == "dout" else "use dropout_mask(x, p, key)"
    return [
        (f"{result} lacks the factor 1 / (1 - p): what is kept is scaled up, which preserves the mean.",
         lambda x, dout, m: source(x, dout) * m),
        (f"{result} is {name} / (1 - p) everywhere: the mask is missing.", lambda x, dout, p: source(x, dout) / (1 - p)),
        (f"{result} is {name} everywhere: the mask and its factor are missing.", lambda x, dout: source(x, dout)),
        (f"{result} is multiplied by 1 - p everywhere: the mask is missing, and what is kept is scaled by 1 / (1 - p).",
         lambda x, dout, p: source(x, dout) * (1 - p)),
        (f"{result} is divided by p: the probability of keeping is 1 - p.", lambda x, dout, m, p: source(x, dout) * m / p),
        (f"{result} is multiplied by p: divide by 1 - p, the probability of keeping.",
         lambda x, dout, m, p: source(x, dout) * m * p),
        (f"{result} is multiplied by 1 - p instead of divided by it.", lambda x, dout, m, p: source(x, dout) * m * (1 - p)),
        (f"{result} is divided by 1 - p twice: the mask of dropout_mask has the factor already.",
         lambda x, dout, m, p: source(x, dout) * m / (1 - p) ** 2),
        (f"{result} keeps what is dropped and drops what is kept.", lambda x, dout, m, p: source(x, dout) * (1 - m) / (1 - p)),
        (f"{result} keeps what is dropped and drops what is kept, and lacks 1 / (1 - p).",
         lambda x, dout, m: source(x, dout) * (1 - m)),
        (f"{result} takes p as the probability of keeping: p is that of dropping.",
         lambda x, dout, p, key: source(x, dout) * dropout_mask(x, 1 - p, key)),
        (f"{result} takes p as the probability of keeping, and lacks the factor.",
         lambda x, dout, p, key: source(x, dout) * (dropout_mask(x, 1 - p, key) > 0)),
        (f"{result} has the mask of the next key: {own}.",
         lambda x, dout, p, key: source(x, dout) * dropout_mask(x, p, (*key[:-1], key[-1] + 1))),
        (f"{result} has one mask for all sequences: each element of the batch is dropped on its own.",
         lambda x, dout, p, key: source(x, dout) * dropout_mask(x[0], p, key)),
        (f"{result} has another mask: {own}.", lambda x, dout, p, actual: drawn(source(x, dout), actual, 1 / (1 - p))),
        (f"{result} has another mask, and lacks the factor 1 / (1 - p): {own}.",
         lambda x, dout, actual: drawn(source(x, dout), actual, 1)),
    ]  # fmt: skip


DROPOUT = Table("dropout", dropout_values, {
    "out": dropout_rows("out", "x", lambda x, dout: x),
    "dx": [
        *dropout_rows("dx", "dout", lambda x, dout: dout),
        ("dx is the dropout of x: multiply dout by the mask.", lambda out: out),
        ("dx multiplies dout by out: the derivative is the mask alone, 0 or 1 / (1 - p).", lambda dout, out: dout * out),
        ("dx multiplies dout by x: the derivative is the mask alone, 0 or 1 / (1 - p).", lambda dout, x: dout * x),
        ("dx is the mask, with 1 / (1 - p), without dout.", lambda m, p: m / (1 - p)),
        ("dx is the mask without dout and without 1 / (1 - p).", lambda m: m),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ add_rmsnorm


def add_rmsnorm_values(douts, x, branch, weight, eps, p, key):
    (B, T, C), (dtotal, dout) = x.shape, douts
    N, mask = B * T, dropout_mask(branch, p, key)
    m, stream = (mask > 0) * 1.0, x + branch * mask
    rstd = 1 / np.sqrt(mean(stream * stream) + eps)
    n, dn = stream * rstd, dout * weight
    through = rstd * (dn - n * mean(dn * n))
    return locals()


def norm(x, weight, eps):
    return rmsnorm_forward(x, weight, eps)[0]


def through_norm(dout, x, weight, eps):
    """Gradients of the norm of x: dx and dweight."""
    return rmsnorm_backward(dout, rmsnorm_forward(x, weight, eps)[1])


def masked(function):
    """What the mask makes of a wrong dx."""
    def through_mask(mask, **values):
        return function(**values) * mask

    names = ["mask", *parameters(function)]
    through_mask.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in names])
    return through_mask


DX: Rows = [
    ("dx lacks dtotal: total continues along the stream, and its gradient is added to that through the norm.",
     lambda through: through),
    ("dx is dtotal: the gradient through the norm is missing.", lambda dtotal: dtotal),
    ("dx is multiplied by dropout's mask: the mask belongs to the branch, and x was not dropped.", lambda dbranch: dbranch),
    ("dx multiplies the gradient through the norm by dropout's mask: x was not dropped.",
     lambda through, mask, dtotal: through * mask + dtotal),
    ("dx multiplies dtotal by dropout's mask: x was not dropped.", lambda through, mask, dtotal: through + dtotal * mask),
    ("dx subtracts dtotal instead of adding it.", lambda through, dtotal: through - dtotal),
    ("dx adds dtotal twice.", lambda through, dtotal: through + 2 * dtotal),
    ("dx uses the mean of both gradients instead of their sum.", lambda through, dtotal: (through + dtotal) / 2),
    ("dx adds dtotal before the norm's backward: dtotal does not pass the norm.",
     lambda dout, dtotal, stream, weight, eps: through_norm(dout + dtotal, stream, weight, eps)[0]),
    ("dx exchanges dtotal and dout: douts is (dtotal, dout), and dout passes the norm.",
     lambda dout, dtotal, stream, weight, eps: through_norm(dtotal, stream, weight, eps)[0] + dout),
    ("dx sends dtotal through the norm and lacks dout: dout passes the norm, and dtotal is added.",
     lambda dtotal, stream, weight, eps: through_norm(dtotal, stream, weight, eps)[0]),
    ("dx is dtotal + dout: dout passes the norm first.", lambda dout, dtotal: dtotal + dout),
    ("dx adds dout as well: it has passed the norm already.", lambda through, dtotal, dout: through + dtotal + dout),
    ("dx takes the norm's backward at x instead of total.",
     lambda dout, dtotal, x, weight, eps: through_norm(dout, x, weight, eps)[0] + dtotal),
    ("dx takes the norm's backward at the branch instead of total.",
     lambda dout, dtotal, branch, weight, eps: through_norm(dout, branch, weight, eps)[0] + dtotal),
    ("dx takes the norm's backward at x + branch: total has the branch after dropout.",
     lambda dout, dtotal, x, branch, weight, eps: through_norm(dout, x + branch, weight, eps)[0] + dtotal),
    ("dx treats rstd as a constant: the norm's gradient has a second term.", lambda rstd, dn, dtotal: rstd * dn + dtotal),
    ("dx adds the second term of the norm's gradient instead of subtracting it.",
     lambda rstd, n, dn, dtotal: rstd * (dn + n * mean(dn * n)) + dtotal),
    ("dx has the sum of dn * n in the norm's second term: it is the mean.",
     lambda rstd, n, dn, dtotal: rstd * (dn - n * total(dn * n)) + dtotal),
    ("dx lacks weight in the norm's gradient.", lambda rstd, n, dout, dtotal: rstd * (dout - n * mean(dout * n)) + dtotal),
    ("dx multiplies by dtotal instead of adding it: gradients of two paths add up.",
     lambda through, dtotal: through * dtotal),
]  # fmt: skip
DX_UNMASKED = [row for row in DX if not {"mask", "dbranch"} & set(parameters(row[1]))]
BRANCH = "dbranch, which is dx through the mask,"


ADD_RMSNORM = Table("add_rmsnorm", add_rmsnorm_values, {
    "total": [
        ("total lacks the dropout of the branch: total = x + dropout(branch).", lambda x, branch: x + branch),
        ("total lacks the factor 1 / (1 - p) of the branch's dropout.", lambda x, branch, m: x + branch * m),
        ("total drops elements of the sum: only the branch has dropout.", lambda x, branch, mask: (x + branch) * mask),
        ("total drops elements of x instead of the branch.", lambda x, branch, mask: x * mask + branch),
        ("total drops elements of x and of the branch with one mask and scales only the branch.",
         lambda x, branch, m, p: (x + branch / (1 - p)) * m),
        ("total subtracts the branch: total = x + dropout(branch).", lambda x, branch, mask: x - branch * mask),
        ("total is the branch after dropout: x is missing.", lambda branch, mask: branch * mask),
        ("total is multiplied by weight: the sum stays as it is, and only out is normalised.",
         lambda stream, weight: stream * weight),
        ("total keeps what is dropped of the branch, and drops what is kept.",
         lambda x, branch, m, p: x + branch * (1 - m) / (1 - p)),
        ("total adds the norm of the branch: it is the sum that is normalised.",
         lambda x, branch, mask, weight, eps: x + norm(branch * mask, weight, eps)),
        ("total adds the branch to the norm of x.", lambda x, branch, mask, weight, eps: norm(x, weight, eps) + branch * mask),
    ],
    "out": [
        ("out is the norm of x: the branch is added first.", lambda x, weight, eps: norm(x, weight, eps)),
        ("out is the norm of the branch: x is added first.", lambda branch, weight, eps: norm(branch, weight, eps)),
        ("out is the norm of the branch after dropout: x is added first.",
         lambda branch, mask, weight, eps: norm(branch * mask, weight, eps)),
        ("out is the norm of x + branch, without dropout of the branch.",
         lambda x, branch, weight, eps: norm(x + branch, weight, eps)),
        ("out is the norm of a sum whose branch lacks 1 / (1 - p).",
         lambda x, branch, m, weight, eps: norm(x + branch * m, weight, eps)),
        ("out is the norm of a sum whose elements are dropped: only the branch has dropout.",
         lambda x, branch, mask, weight, eps: norm((x + branch) * mask, weight, eps)),
        ("out is the norm of a sum in which elements of x are dropped: only the branch has dropout.",
         lambda x, branch, mask, weight, eps: norm(x * mask + branch, weight, eps)),
        ("out lacks weight.", lambda n: n),
        ("out has the dropout after the norm: it is that of the branch alone.",
         lambda x, branch, weight, eps, mask: norm(x + branch, weight, eps) * mask),
        ("out adds total to the norm: out is the norm alone.", lambda out, stream: out + stream),
        ("out adds x to the norm of the branch: out is the norm of total.",
         lambda x, branch, mask, weight, eps: x + norm(branch * mask, weight, eps)),
    ],
    "dx": DX,
    "dbranch": [
        ("dbranch is dx: the branch had dropout, so the same mask multiplies its gradient.", lambda dx: dx),
        ("dbranch lacks the factor 1 / (1 - p) of the mask.", lambda dx, m: dx * m),
        ("dbranch is divided by p: what is kept is divided by 1 - p.", lambda dx, m, p: dx * m / p),
        ("dbranch is multiplied by 1 - p instead of divided by it.", lambda dx, m, p: dx * m * (1 - p)),
        ("dbranch is multiplied by the mask twice: dx has no mask.", lambda dx, mask: dx * mask * mask),
        ("dbranch keeps what is dropped and drops what is kept.", lambda dx, m, p: dx * (1 - m) / (1 - p)),
        ("dbranch is dx / (1 - p): the mask is missing.", lambda dx, p: dx / (1 - p)),
        ("dbranch lacks dtotal and the mask: it is dx, through dropout's backward.", lambda through: through),
        ("dbranch adds dtotal after the mask: the mask multiplies the whole of dx.",
         lambda through, mask, dtotal: through * mask + dtotal),
        ("dbranch multiplies dtotal alone by the mask: the gradient through the norm needs it too.",
         lambda through, mask, dtotal: through + dtotal * mask),
        ("dbranch drops before the norm's backward: the mask comes last on the way back.",
         lambda dout, dtotal, stream, weight, eps, mask: through_norm(dout * mask, stream, weight, eps)[0] + dtotal),
        ("dbranch is dout through the mask: it passes the norm first.", lambda dout, mask: dout * mask),
        *[(sentence.replace("dx", BRANCH, 1), masked(function)) for sentence, function in DX_UNMASKED],
        ("dbranch has another mask: the same key gives the same mask.", lambda dx, p, actual: drawn(dx, actual, 1 / (1 - p))),
        ("dbranch has another mask, and lacks the factor 1 / (1 - p): the same key gives the same mask.",
         lambda dx, actual: drawn(dx, actual, 1)),
    ],
    "dweight": [
        ("dweight uses the norm of x instead of total.", lambda dout, x, weight, eps: through_norm(dout, x, weight, eps)[1]),
        ("dweight uses the norm of the branch instead of total.",
         lambda dout, branch, weight, eps: through_norm(dout, branch, weight, eps)[1]),
        ("dweight has the norm of x + branch: total has the branch after dropout.",
         lambda dout, x, branch, weight, eps: through_norm(dout, x + branch, weight, eps)[1]),
        ("dweight uses total instead of n: rstd is missing.", lambda dout, stream: over_rows(dout * stream)),
        ("dweight uses dtotal in place of dout: weight has no part in total.", lambda dtotal, n: over_rows(dtotal * n)),
        ("dweight uses dtotal + dout in place of dout: weight has no part in total.",
         lambda dtotal, dout, n: over_rows((dtotal + dout) * n)),
        ("dweight uses dx in place of dout: sum dout * n.", lambda dx, n: over_rows(dx * n)),
        ("dweight uses dn in place of dout: weight is in it, but the derivative of weight * n by weight is n.",
         lambda dn, n: over_rows(dn * n)),
        ("dweight is the sum of dout, the gradient of a bias: sum dout * n.", lambda dout: over_rows(dout)),
        ("dweight is the sum of dtotal: sum dout * n.", lambda dtotal: over_rows(dtotal)),
        ("dweight is multiplied by the mask of dropout: the branch was dropped before the norm.",
         lambda dout, n, mask: over_rows(dout * n * mask)),
        ("dweight uses x, not normalised, in place of n.", lambda dout, x: over_rows(dout * x)),
    ],
}, outputs=("total", "out"))  # fmt: skip
TABLES = [DROPOUT, ADD_RMSNORM]
