"""Wrong answers to RMSNorm, LayerNorm and the residual sum with its norm."""

import numpy as np

from numllama.learn.wrong_answers.table import Table


def mean(x):
    return x.mean(-1, keepdims=True)


def total(x):
    return x.sum(-1, keepdims=True)


def over_rows(x):
    """The sum over all rows."""
    return x.reshape(-1, x.shape[-1]).sum(0)


# ------------------------------------------------------------------------------------------------ RMSNorm


def rmsnorm_values(dout, x, weight, eps):
    B, T, C = x.shape
    N, ms = B * T, mean(x * x)
    rstd = 1 / np.sqrt(ms + eps)
    n, dn = x * rstd, dout * weight
    return locals()


RMSNORM = Table("rmsnorm", rmsnorm_values, {
    "out": [
        ("out lacks weight: the normalised x is multiplied by it.", lambda n: n),
        ("out uses the sum of x² instead of its mean: rms is the root of a mean.",
         lambda x, weight, eps: x / np.sqrt(total(x * x) + eps) * weight),
        ("out subtracts the mean of x, as LayerNorm does: RMSNorm does not centre.",
         lambda x, weight, eps: (x - mean(x)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight),
        ("out divides by the standard deviation of x: rms is the root of mean(x²), without subtracting the mean.",
         lambda x, weight, eps: x / np.sqrt(x.var(-1, keepdims=True) + eps) * weight),
        ("out lacks the root: divide by rms = sqrt(mean(x²) + eps).", lambda x, weight, ms, eps: x / (ms + eps) * weight),
        ("out adds eps outside the root: it is sqrt(mean(x²) + eps).",
         lambda x, weight, ms, eps: x / (np.sqrt(ms) + eps) * weight),
        ("out lacks eps: it is added to mean(x²) inside the root.", lambda x, weight, ms: x / np.sqrt(ms) * weight),
        ("out subtracts eps instead of adding it.", lambda x, weight, ms, eps: x / np.sqrt(ms - eps) * weight),
        ("out is multiplied by rms instead of divided by it.", lambda x, weight, rstd: x / rstd * weight),
        ("out is multiplied by 1 + weight, as in Gemma: here weight itself is the gain.", lambda n, weight: n * (1 + weight)),
        ("out adds weight, as if it were a bias: weight is a factor.", lambda n, weight: n + weight),
        ("out has one mean over all of x: each row has its own, over the last axis.",
         lambda x, weight, eps: x / np.sqrt((x * x).mean() + eps) * weight),
        ("out uses means over axis 0 instead of the last axis.",
         lambda x, weight, eps: x / np.sqrt((x * x).mean(0, keepdims=True) + eps) * weight),
        ("out uses means over the tokens instead of the last axis.",
         lambda x, weight, eps: x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * weight),
        ("out uses the square of the mean instead of the mean of the square.",
         lambda x, weight, eps: x / np.sqrt(mean(x) ** 2 + eps) * weight),
        ("out divides by the mean of |x| instead of the root of mean(x²).",
         lambda x, weight, eps: x / (mean(abs(x)) + eps) * weight),
        ("out is x times weight: the division by rms is missing.", lambda x, weight: x * weight),
    ],
    "dx": [
        ("dx treats rstd as a constant: it also depends on x, which gives the second term.", lambda rstd, dn: rstd * dn),
        ("dx adds the second term, which must be subtracted: rstd falls when |x[j]| grows.",
         lambda rstd, n, dn: rstd * (dn + n * mean(dn * n))),
        ("dx keeps only the second term: x also enters its own output, which gives rstd * dn.",
         lambda rstd, n, dn: -rstd * n * mean(dn * n)),
        ("dx has the sum of dn * n in its second term, but it is the mean: 1/C comes from the mean in rms(x).",
         lambda rstd, n, dn: rstd * (dn - n * total(dn * n))),
        ("dx uses x instead of n twice in its second term: rstd² is missing there.",
         lambda rstd, x, dn: rstd * (dn - x * mean(dn * x))),
        ("dx lacks one rstd in its second term: it is rstd * n * mean(dn * n), or rstd³ * x * mean(dn * x).",
         lambda rstd, n, x, dn: rstd * (dn - n * mean(dn * x))),
        ("dx has one rstd too many in its second term: it is rstd * n * mean(dn * n).",
         lambda rstd, n, dn: rstd * (dn - n * rstd * mean(dn * n))),
        ("dx has twice its second term: the 2 of (x²)' cancels with the 1/2 of the root's derivative.",
         lambda rstd, n, dn: rstd * (dn - 2 * n * mean(dn * n))),
        ("dx has half of its second term: the 1/2 of the root's derivative cancels with the 2 of (x²)'.",
         lambda rstd, n, dn: rstd * (dn - n * mean(dn * n) / 2)),
        ("dx lacks weight in its second term: it is mean(dn * n), not mean(dout * n).",
         lambda rstd, n, dn, dout: rstd * (dn - n * mean(dout * n))),
        ("dx uses the output weight * n in place of n in its second term: it is n * mean(dn * n).",
         lambda rstd, n, dn, weight: rstd * (dn - n * weight * mean(dn * n * weight))),
        ("dx lacks dn in the mean of its second term: it is mean(dn * n).", lambda rstd, n, dn: rstd * (dn - n * mean(n))),
        ("dx uses mean(dn) instead of mean(dn * n) in its second term.", lambda rstd, n, dn: rstd * (dn - n * mean(dn))),
        ("dx uses mean(dn) * mean(n) instead of mean(dn * n): the product comes before the mean.",
         lambda rstd, n, dn: rstd * (dn - n * mean(dn) * mean(n))),
        ("dx lacks the factor n in its second term: it is n * mean(dn * n).", lambda rstd, n, dn: rstd * (dn - mean(dn * n))),
        ("dx lacks the mean in its second term: every component of x moves all outputs of its row.",
         lambda rstd, n, dn: rstd * (dn - n * dn * n)),
        ("dx divides dn * n by C instead of averaging it over the row: every component of x moves all outputs of its row.",
         lambda rstd, n, dn, C: rstd * (dn - n * dn * n / C)),
        ("dx has a mean over the tokens in its second term: it runs over the components, the last axis.",
         lambda rstd, n, dn: rstd * (dn - n * (dn * n).mean(-2, keepdims=True))),
        ("dx has a mean over axis 0 in its second term: it runs over the components, the last axis.",
         lambda rstd, n, dn: rstd * (dn - n * (dn * n).mean(0, keepdims=True))),
        ("dx has one mean over everything in its second term: each row has its own, over the last axis.",
         lambda rstd, n, dn: rstd * (dn - n * (dn * n).mean())),
        ("dx is multiplied by weight at the end instead of dout: weight must be in dn before the mean.",
         lambda rstd, n, dout, weight: rstd * weight * (dout - n * mean(dout * n))),
        ("dx lacks weight: start from dn = dout * weight.", lambda rstd, n, dout: rstd * (dout - n * mean(dout * n))),
        ("dx has weight twice: it is in dn already.", lambda rstd, n, dn, weight: rstd * weight * (dn - n * mean(dn * n))),
        ("dx has weight squared in dn: out has it once.",
         lambda rstd, n, dn, weight: rstd * (dn * weight - n * mean(dn * weight * n))),
        ("dx lacks the outer rstd: n = x * rstd, so the gradient of n is multiplied by rstd.",
         lambda n, dn: dn - n * mean(dn * n)),
        ("dx is multiplied by rstd twice: one rstd stands outside.", lambda rstd, n, dn: rstd**2 * (dn - n * mean(dn * n))),
        ("dx is divided by rstd instead of multiplied: rstd is 1 / rms already.",
         lambda rstd, n, dn: (dn - n * mean(dn * n)) / rstd),
        ("dx subtracts mean(dn), as LayerNorm does: RMSNorm has no mean to go back through.",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - n * mean(dn * n))),
        ("dx is dout * weight: the normalisation is left out on the way back.", lambda dn: dn),
        ("dx is dout * n, the part of each row in dweight.", lambda dout, n: dout * n),
        ("dx treats rstd as a constant, and lacks weight as well.", lambda rstd, dout: rstd * dout),
        ("dx lacks x[j] in its second term: the derivative of rstd with respect to x[j] is -rstd³ * x[j] / C.",
         lambda rstd, x, dn: rstd * dn - rstd**3 * mean(dn * x)),
        ("dx uses rstd instead of rstd³ / C in its second term, rstd³ * x * Σ(dn * x) / C.",
         lambda rstd, x, dn: rstd * dn - rstd * x * total(dn * x)),
        ("dx uses rstd² instead of rstd³ / C in its second term, rstd³ * x * Σ(dn * x) / C.",
         lambda rstd, x, dn: rstd * dn - rstd**2 * x * total(dn * x)),
    ],
    "dweight": [
        ("dweight uses x instead of n: rstd is missing.", lambda dout, x: over_rows(dout * x)),
        ("dweight has rstd twice: n is x * rstd already.", lambda dout, n, rstd: over_rows(dout * n * rstd)),
        ("dweight divides x by rstd instead of multiplying.", lambda dout, x, rstd: over_rows(dout * x / rstd)),
        ("dweight uses dn instead of dout, or out instead of n: the derivative of weight * n by weight is n.",
         lambda dn, n: over_rows(dn * n)),
        ("dweight uses dn instead of dout, and x instead of n: it sums dout * n.", lambda dn, x: over_rows(dn * x)),
        ("dweight is the sum of dout, the gradient of a bias: weight multiplies n.", lambda dout: over_rows(dout)),
        ("dweight is the sum of n, without dout.", lambda n: over_rows(n)),
        ("dweight is centred, as in LayerNorm: RMSNorm's n is x * rstd.",
         lambda dout, x, eps: over_rows(dout * (x - mean(x)) / np.sqrt(x.var(-1, keepdims=True) + eps))),
        ("dweight uses dx instead of dout: sum dout * n.", lambda dx, n: over_rows(dx * n)),
        ("dweight sums dout and n before it multiplies them: multiply first, then sum over the rows.",
         lambda dout, n: over_rows(dout) * over_rows(n)),
        ("dweight is dx summed over the rows: sum dout * n.", lambda dx: over_rows(dx)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ LayerNorm


def layernorm_values(dout, x, weight, bias, eps):
    B, T, C = x.shape
    N, centred = B * T, x - mean(x)
    rstd = 1 / np.sqrt(mean(centred * centred) + eps)
    n, dn = centred * rstd, dout * weight
    return locals()


LAYERNORM = Table("layernorm", layernorm_values, {
    "out": [
        ("out lacks weight and bias: it is weight * n + bias.", lambda n: n),
        ("out lacks bias: it is added at the end.", lambda n, weight: n * weight),
        ("out lacks weight: n is multiplied by it.", lambda n, bias: n + bias),
        ("out adds bias before the multiplication by weight: it is weight * n + bias.",
         lambda n, weight, bias: (n + bias) * weight),
        ("out exchanges weight and bias: it is weight * n + bias.", lambda n, weight, bias: n * bias + weight),
        ("out has the unbiased variance, divided by C - 1: divide by C.",
         lambda x, weight, bias, eps: (x - mean(x)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + eps) * weight + bias),
        ("out does not subtract the mean: n = (x - mean) * rstd.", lambda x, rstd, weight, bias: x * rstd * weight + bias),
        ("out divides by the root mean square, as RMSNorm: subtract the mean before squaring.",
         lambda x, weight, bias, eps: x / np.sqrt(mean(x * x) + eps) * weight + bias),
        ("out centres x, but takes mean(x²) for the variance: subtract the mean before squaring.",
         lambda x, centred, weight, bias, eps: centred / np.sqrt(mean(x * x) + eps) * weight + bias),
        ("out lacks the root: divide by the standard deviation, not the variance.",
         lambda centred, rstd, weight, bias: centred * rstd**2 * weight + bias),
        ("out adds eps outside the root: it is added to the variance.",
         lambda x, centred, weight, bias, eps: centred / (x.std(-1, keepdims=True) + eps) * weight + bias),
        ("out lacks eps: it is added to the variance.",
         lambda x, centred, weight, bias: centred / x.std(-1, keepdims=True) * weight + bias),
        ("out normalises over the batch, as batch norm: mean and variance are those of each row, over the last axis.",
         lambda x, weight, bias, eps: (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + eps) * weight + bias),
        ("out normalises over axis 0: mean and variance are over the last axis.",
         lambda x, weight, bias, eps: (x - x.mean(0)) / np.sqrt(x.var(0) + eps) * weight + bias),
        ("out has the sum of the squares in place of their mean: the variance is a mean.",
         lambda centred, weight, bias, eps: centred / np.sqrt(total(centred * centred) + eps) * weight + bias),
        ("out has one variance for all rows: each row has its own, over the last axis.",
         lambda centred, weight, bias, eps: centred / np.sqrt((centred * centred).mean() + eps) * weight + bias),
        ("out has one mean and one variance for all of x: each row has its own.",
         lambda x, weight, bias, eps: (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias),
        ("out is multiplied by the standard deviation instead of divided by it.",
         lambda centred, rstd, weight, bias: centred / rstd * weight + bias),
    ],
    "dx": [
        ("dx treats mean and rstd as constants: both depend on x, and each gives a term.", lambda rstd, dn: rstd * dn),
        ("dx treats rstd as a constant: the term n * mean(dn * n) is missing.", lambda rstd, dn: rstd * (dn - mean(dn))),
        ("dx treats the mean as a constant: the term mean(dn) is missing.", lambda rstd, n, dn: rstd * (dn - n * mean(dn * n))),
        ("dx adds mean(dn) instead of subtracting it.", lambda rstd, n, dn: rstd * (dn + mean(dn) - n * mean(dn * n))),
        ("dx adds n * mean(dn * n) instead of subtracting it.", lambda rstd, n, dn: rstd * (dn - mean(dn) + n * mean(dn * n))),
        ("dx adds both terms instead of subtracting them.", lambda rstd, n, dn: rstd * (dn + mean(dn) + n * mean(dn * n))),
        ("dx uses sums instead of means: 1/C is missing in both terms.",
         lambda rstd, n, dn: rstd * (dn - total(dn) - n * total(dn * n))),
        ("dx uses the sum of dn instead of its mean: x[j] moves the mean by 1/C.",
         lambda rstd, n, dn: rstd * (dn - total(dn) - n * mean(dn * n))),
        ("dx uses the sum of dn * n instead of its mean: 1/C is missing, from the variance.",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - n * total(dn * n))),
        ("dx has half of the term through the variance: the 2 of the square's derivative is missing.",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - n * mean(dn * n) / 2)),
        ("dx has twice the term through the variance: the 1/2 of the root's derivative is missing.",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - 2 * n * mean(dn * n))),
        ("dx uses x - mean instead of n twice in the last term: rstd² is missing there.",
         lambda rstd, centred, dn: rstd * (dn - mean(dn) - centred * mean(dn * centred))),
        ("dx lacks one rstd in its last term: it is rstd * n * mean(dn * n), or rstd³ * (x - mean) * mean(dn * (x - mean)).",
         lambda rstd, centred, n, dn: rstd * (dn - mean(dn) - n * mean(dn * centred))),
        ("dx uses x instead of n in the last term: subtract the mean and multiply by rstd.",
         lambda rstd, x, dn: rstd * (dn - mean(dn) - x * mean(dn * x))),
        ("dx has x * rstd for n: subtract the mean first.",
         lambda rstd, x, dn: rstd * (dn - mean(dn) - x * rstd * mean(dn * x * rstd))),
        ("dx uses the output, with weight and bias, instead of n in the last term.",
         lambda rstd, out, dn: rstd * (dn - mean(dn) - out * mean(dn * out))),
        ("dx lacks n before the mean in the last term: it is n * mean(dn * n).",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - mean(dn * n))),
        ("dx has n * mean(dn) for the last term: it is n * mean(dn * n).",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - n * mean(dn))),
        ("dx lacks the mean in the last term: every component of x moves the variance of its row.",
         lambda rstd, n, dn: rstd * (dn - mean(dn) - n * dn * n)),
        ("dx lacks weight in its means: they are those of dn, not of dout.",
         lambda rstd, n, dn, dout: rstd * (dn - mean(dout) - n * mean(dout * n))),
        ("dx is multiplied by weight at the end instead of dout: weight must be in dn before the means.",
         lambda rstd, n, dout, weight: rstd * weight * (dout - mean(dout) - n * mean(dout * n))),
        ("dx lacks weight: start from dn = dout * weight.",
         lambda rstd, n, dout: rstd * (dout - mean(dout) - n * mean(dout * n))),
        ("dx has weight twice: it is in dn already.",
         lambda rstd, n, dn, weight: rstd * weight * (dn - mean(dn) - n * mean(dn * n))),
        ("dx lacks the outer rstd, which multiplies all three terms.", lambda n, dn: dn - mean(dn) - n * mean(dn * n)),
        ("dx is multiplied by rstd twice: one rstd stands outside.",
         lambda rstd, n, dn: rstd**2 * (dn - mean(dn) - n * mean(dn * n))),
        ("dx is divided by rstd instead of multiplied: rstd is 1 / std already.",
         lambda rstd, n, dn: (dn - mean(dn) - n * mean(dn * n)) / rstd),
        ("dx lacks the outer rstd in mean(dn): rstd multiplies all three terms.",
         lambda rstd, n, dn: rstd * (dn - n * mean(dn * n)) - mean(dn)),
        ("dx has means over the rows, as batch norm: they run over the components, the last axis.",
         lambda rstd, n, dn: rstd * (dn - dn.mean((0, 1)) - n * (dn * n).mean((0, 1)))),
        ("dx has means over axis 0: they run over the components, the last axis.",
         lambda rstd, n, dn: rstd * (dn - dn.mean(0) - n * (dn * n).mean(0))),
        ("dx has one mean over everything: each row has its own, over the last axis.",
         lambda rstd, n, dn: rstd * (dn - dn.mean() - n * (dn * n).mean())),
        ("dx divides by C - 1 in the term through the variance: the variance has 1/C.",
         lambda rstd, n, dn, C: rstd * (dn - mean(dn) - n * total(dn * n) / (C - 1))),
        ("dx is dout * weight: the normalisation is left out on the way back.", lambda dn: dn),
        ("dx treats mean and rstd as constants, and lacks weight as well.", lambda rstd, dout: rstd * dout),
    ],
    "dweight": [
        ("dweight uses x instead of n: subtract the mean and multiply by rstd.", lambda dout, x: over_rows(dout * x)),
        ("dweight uses x - mean instead of n: rstd is missing.", lambda dout, centred: over_rows(dout * centred)),
        ("dweight has x * rstd for n: subtract the mean first.", lambda dout, x, rstd: over_rows(dout * x * rstd)),
        ("dweight has RMSNorm's n: subtract the mean.", lambda dout, x, eps: over_rows(dout * x / np.sqrt(mean(x * x) + eps))),
        ("dweight uses dn instead of dout, or weight * n instead of n: the derivative of weight * n by weight is n.",
         lambda dn, n: over_rows(dn * n)),
        ("dweight uses the output instead of n: it sums dout * n.", lambda dout, out: over_rows(dout * out)),
        ("dweight has rstd twice: n has it already.", lambda dout, n, rstd: over_rows(dout * n * rstd)),
        ("dweight is the sum of dn: sum dout * n.", lambda dn: over_rows(dn)),
        ("dweight is the sum of n, without dout.", lambda n: over_rows(n)),
        ("dweight uses dx instead of dout: sum dout * n.", lambda dx, n: over_rows(dx * n)),
    ],
    "dbias": [
        ("dbias uses dn instead of dout: weight does not multiply the bias.", lambda dn: over_rows(dn)),
        ("dbias is multiplied by bias: the bias is added, so its derivative is 1.", lambda dbias, bias: dbias * bias),
        ("dbias is multiplied by rstd: the bias is added after the division.", lambda dout, rstd: over_rows(dout * rstd)),
        ("dbias is dx summed over the rows: sum dout.", lambda dx: over_rows(dx)),
        ("dbias is the sum of dn * n: sum dout.", lambda dn, n: over_rows(dn * n)),
    ],
})  # fmt: skip
TABLES = [RMSNORM, LAYERNORM]
