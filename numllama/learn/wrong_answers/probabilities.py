"""Wrong answers to softmax and cross-entropy."""

import numpy as np

from numllama.learn.wrong_answers.table import Table
from numllama.ops import IGNORE


def total(x):
    return x.sum(-1, keepdims=True)


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


# ------------------------------------------------------------------------------------------------ softmax


def softmax_values(dout, x):
    (B, T, n), p = x.shape, softmax(x)
    N, e = B * T, np.exp(x - x.max(-1, keepdims=True))
    return locals()


SOFTMAX = Table("softmax", softmax_values, {
    "out": [
        ("out is exp(x - max), or exp(x) divided by its maximum: divide by the sum.", lambda e: e),
        ("out is exp(x) without the division by its sum.", lambda x: np.exp(x)),
        ("out is the logarithm of p: return p itself.", lambda p: np.log(p)),
        ("out sums over the rows instead of the last axis.", lambda x: softmax(x, -2)),
        ("out sums over axis 0 instead of the last axis.", lambda x: softmax(x, 0)),
        ("out sums over the whole array: each row sums to 1 by itself.", lambda e: e / e.sum()),
        ("out sums over the whole array, with one maximum for it: each row sums to 1 by itself.",
         lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()),
        ("out divides by the mean of exp(x - max) instead of its sum.", lambda p, n: p * n),
        ("out divides x by its sum: exp comes first.", lambda x: x / total(x)),
        ("out is the sigmoid of each x: the probabilities of a row share one sum.", lambda x: 1 / (1 + np.exp(-x))),
        ("out is the softmax of -x.", lambda x: softmax(-x)),
        ("out divides exp(x - max) by the sum of exp(x): subtract the maximum in both.", lambda x, e: e / total(np.exp(x))),
        ("out divides exp(x) by the sum of exp(x - max): subtract the maximum in both.", lambda x, e: np.exp(x) / total(e)),
        ("out uses powers of 2 instead of e.", lambda x: 2**x / total(2**x)),
        ("out divides x by its maximum instead of subtracting it.", lambda x: softmax(x / x.max(-1, keepdims=True))),
    ],
    "dx": [
        ("dx is p * dout: x[j] also enters the sum that divides every p[i], so dx = p * (dout - Σ dout * p).",
         lambda p, dout: p * dout),
        ("dx keeps only the diagonal of the Jacobian, p * (1 - p): the other p[i] depend on x[j] too.",
         lambda p, dout: p * (1 - p) * dout),
        ("dx keeps only the off-diagonal part of the Jacobian: p[i] * (1 - p[i]) is missing.",
         lambda p, dout: p * dout * p - p * total(dout * p)),
        ("dx is p * (1 - p), the diagonal of the Jacobian, without dout.", lambda p: p * (1 - p)),
        ("dx adds the sum instead of subtracting it.", lambda p, dout: p * (dout + total(dout * p))),
        ("dx has the second term only: p * dout is missing.", lambda p, dout: -p * total(dout * p)),
        ("dx lacks the outer p: it is p * (dout - Σ dout * p).", lambda p, dout: dout - total(dout * p)),
        ("dx lacks the outer p before the sum: p multiplies both terms.", lambda p, dout: p * dout - total(dout * p)),
        ("dx lacks p before dout: p multiplies both terms.", lambda p, dout: dout - p * total(dout * p)),
        ("dx has the outer p twice: it is p * (dout - Σ dout * p).", lambda p, dout: p * p * (dout - total(dout * p))),
        ("dx multiplies the sum by p twice: it is p * (dout - Σ dout * p).",
         lambda p, dout: p * (dout - p * total(dout * p))),
        ("dx takes p out of the sum: it is Σ dout * p, and not p * Σ dout.", lambda p, dout: p * (dout - p * total(dout))),
        ("dx lacks p in the sum: it is Σ dout * p.", lambda p, dout: p * (dout - total(dout))),
        ("dx is that of log-softmax, dout - p * Σ dout.", lambda p, dout: dout - p * total(dout)),
        ("dx uses the mean of dout * p instead of the sum.", lambda p, dout: p * (dout - (dout * p).mean(-1, keepdims=True))),
        ("dx sums over the rows instead of the last axis.", lambda p, dout: p * (dout - (dout * p).sum(-2, keepdims=True))),
        ("dx sums over axis 0 instead of the last axis.", lambda p, dout: p * (dout - (dout * p).sum(0, keepdims=True))),
        ("dx sums over the whole array: each row has a sum of its own, over the last axis.",
         lambda p, dout: p * (dout - (dout * p).sum())),
        ("dx uses the sum of p, which is 1, in place of Σ dout * p.", lambda p, dout: p * (dout - 1)),
        ("dx uses 1 in place of dout in its first term: it is p * (dout - Σ dout * p).",
         lambda p, dout: p * (1 - total(dout * p))),
        ("dx is p - dout, as if a cross-entropy followed.", lambda p, dout: p - dout),
        ("dx uses x in place of p: the cache holds probabilities.", lambda x, dout: x * (dout - total(dout * x))),
        ("dx uses exp(x - max) in place of p: divide by its sum.", lambda e, dout: e * (dout - total(dout * e))),
        ("dx uses exp(x) in place of p: divide by its sum.", lambda x, dout: np.exp(x) * (dout - total(dout * np.exp(x)))),
        ("dx is the softmax of dout: multiply dout by the Jacobian of p.", lambda dout: softmax(dout)),
        ("dx uses the softmax of p in place of p: the cache holds probabilities already.",
         lambda p, dout: softmax(p) * (dout - total(dout * softmax(p)))),
        ("dx is all zeros, the gradient for a dout of ones: the probabilities sum to 1, and dout must enter.",
         lambda p: np.zeros_like(p)),
    ],
})  # fmt: skip


# ------------------------------------------------------------------------------------------------ cross-entropy


def cross_entropy_values(dout, logits, targets):
    (B, T, V), counted = logits.shape, targets != IGNORE
    N, count, p = B * T, int(counted.sum()), softmax(logits)
    m, kept = logits.max(-1, keepdims=True), counted[..., None] / count
    lse = (m + np.log(total(np.exp(logits - m))))[..., 0]
    onehot = ones_at(targets, V)
    picked = (logits * ones_at(targets, V)).sum(-1)
    losses = np.where(counted, lse - picked, 0)
    return locals()


def ones_at(targets, V):
    """A one at each target; zeros where the target is ignored."""
    return (targets[..., None] == np.arange(V)).astype(float)


def instead(targets, token):
    """Targets with a token in place of the ignored ones."""
    return np.where(targets == IGNORE, token, targets)


CROSS_ENTROPY = Table("cross_entropy", cross_entropy_values, {
    "out": [
        ("out is the sum of the losses: divide by count.", lambda losses: losses.sum()),
        ("out is divided by the number of all targets: the ignored ones do not count.", lambda losses: losses.mean()),
        ("out has one loss for each target: sum them and divide by count.", lambda losses: losses),
        ("out has one loss for each target, already divided by count: sum them.", lambda losses, count: losses / count),
        ("out has the wrong sign: the loss is -log p.", lambda losses, count: -losses.sum() / count),
        ("out lacks the log-sum-exp: the loss is lse - logits[target].",
         lambda picked, counted, count: -picked[counted].sum() / count),
        ("out lacks the target's logit: the loss is lse - logits[target].",
         lambda lse, counted, count: lse[counted].sum() / count),
        ("out adds the target's logit instead of subtracting it.",
         lambda lse, picked, counted, count: (lse + picked)[counted].sum() / count),
        ("out forgets to add the maximum again: lse = max + log Σ exp(logits - max).",
         lambda losses, m, counted, count: (losses - np.where(counted, m[..., 0], 0)).sum() / count),
        ("out subtracts the maximum twice: lse = max + log Σ exp(logits - max).",
         lambda losses, m, counted, count: (losses - np.where(counted, 2 * m[..., 0], 0)).sum() / count),
        ("out is in bits: take the natural logarithm.", lambda losses, count: losses.sum() / count / np.log(2)),
        ("out lacks the logarithm: the loss is -log p, not 1 - p.",
         lambda losses, counted, count: (1 - np.exp(-losses))[counted].mean()),
        ("out is minus the mean probability: the loss is -log p.", lambda losses, counted: -np.exp(-losses)[counted].mean()),
        ("out is the logarithm of the mean probability: take the logarithm first, then the mean.",
         lambda losses, counted: -np.log(np.exp(-losses)[counted].mean())),
        ("out is the perplexity, exp(loss).", lambda losses, count: np.exp(losses.sum() / count)),
        ("out counts ignored targets as the last token: index -1 is the end of the row.",
         lambda logits, targets, V, lse: (lse - (logits * ones_at(instead(targets, V - 1), V)).sum(-1)).mean()),
        ("out counts ignored targets as token 0.",
         lambda logits, targets, V, lse: (lse - (logits * ones_at(instead(targets, 0), V)).sum(-1)).mean()),
        ("out adds the losses of ignored targets, taken for the last token, but does not count them.",
         lambda logits, targets, V, lse, count: (lse - (logits * ones_at(instead(targets, V - 1), V)).sum(-1)).sum() / count),
        ("out averages within each sequence first, then over sequences: sum all losses and divide once, by count.",
         lambda losses, counted: (losses.sum(1) / counted.sum(1)).mean()),
        ("out is divided by the number of sequences: divide by count.", lambda losses, B: losses.sum() / B),
        ("out is divided by the number of tokens in a sequence: divide by count.", lambda losses, T: losses.sum() / T),
        ("out lacks the sum's exp: lse is the logarithm of Σ exp(logits).",
         lambda picked, logits, counted, count: (np.log(abs(logits.sum(-1))) - picked)[counted].sum() / count),
        ("out is that of softmax over the rows instead of the last axis.",
         lambda logits, onehot, count: -(np.log(softmax(logits, -2)) * onehot).sum() / count),
        ("out takes softmax twice: the logits are not probabilities yet.",
         lambda p, onehot, count: -(np.log(softmax(p)) * onehot).sum() / count),
    ],
    "dlogits": [
        ("dlogits is not divided by count: the loss is a mean over the targets that count.",
         lambda p, onehot, counted, dout: dout * (p - onehot) * counted[..., None]),
        ("dlogits is divided by the number of all targets: the ignored ones do not count.",
         lambda dlogits, N, count: dlogits * count / N),
        ("dlogits is divided by count twice, or by V as well: divide once, by count.",
         lambda dlogits, count: dlogits / count),
        ("dlogits is divided by the number of tokens in a sequence instead of count.",
         lambda dlogits, T, count: dlogits * count / T),
        ("dlogits is divided by the number of sequences instead of count.", lambda dlogits, B, count: dlogits * count / B),
        ("dlogits averages within each sequence first, then over sequences: divide once, by count.",
         lambda p, onehot, counted, dout, B: dout * counted[..., None] * (p - onehot) / counted.sum(1)[:, None, None] / B),
        ("dlogits lacks dout, the gradient of the loss.", lambda p, onehot, kept: (p - onehot) * kept),
        ("dlogits lacks dout and the division by count.", lambda p, onehot, counted: (p - onehot) * counted[..., None]),
        ("dlogits is p - onehot in every row: ignored rows get zero, and dout / count multiplies the rest.",
         lambda p, onehot: p - onehot),
        ("dlogits lacks dout, and ignored rows are not zeroed.", lambda p, onehot, count: (p - onehot) / count),
        ("dlogits is multiplied by dout twice.", lambda dlogits, dout: dlogits * dout),
        ("dlogits has the softmax's gradient in ignored rows: those get zero.",
         lambda p, onehot, dout, count: dout * (p - onehot) / count),
        ("dlogits counts ignored targets as the last token: index -1 is the end of the row, and such rows get zero.",
         lambda p, targets, V, dout, count: dout * (p - ones_at(instead(targets, V - 1), V)) / count),
        ("dlogits counts ignored targets as token 0: such rows get zero.",
         lambda p, targets, V, dout, count: dout * (p - ones_at(instead(targets, 0), V)) / count),
        ("dlogits subtracts 1 at the last token of ignored rows, index -1: such rows get zero.",
         lambda p, targets, V, dout, count, kept: dout * (p * kept - ones_at(instead(targets, V - 1), V) / count)),
        ("dlogits has the softmax's gradient in ignored rows, and counts them: those get zero.",
         lambda p, onehot, dout, N: dout * (p - onehot) / N),
        ("dlogits counts ignored targets as the last token, and in count as well.",
         lambda p, targets, V, dout, N: dout * (p - ones_at(instead(targets, V - 1), V)) / N),
        ("dlogits lacks the 1 that is subtracted at the target: it is p - onehot.", lambda p, kept, dout: dout * p * kept),
        ("dlogits lacks p: the log-sum-exp has the softmax as its gradient.", lambda onehot, kept, dout: -dout * onehot * kept),
        ("dlogits adds 1 at the target instead of subtracting it.", lambda p, onehot, kept, dout: dout * (p + onehot) * kept),
        ("dlogits has the wrong sign: it is p - onehot, predicted minus wanted.", lambda dlogits: -dlogits),
        ("dlogits subtracts 1 at the target after the division by count: subtract first.",
         lambda p, onehot, kept, dout, counted: dout * p * kept - onehot),
        ("dlogits subtracts 1 at the target after the division by count: subtract first, then multiply by dout / count.",
         lambda p, onehot, kept, dout: dout * (p * kept - onehot)),
        ("dlogits subtracts 1 everywhere instead of at the target.", lambda p, kept, dout: dout * (p - 1) * kept),
        ("dlogits uses the logits in place of their softmax.",
         lambda logits, onehot, kept, dout: dout * (logits - onehot) * kept),
        ("dlogits uses log p in place of p.", lambda p, onehot, kept, dout: dout * (np.log(p) - onehot) * kept),
        ("dlogits uses exp(logits - max) in place of p: divide by its sum, or subtract lse in the exponent.",
         lambda logits, m, onehot, kept, dout: dout * (np.exp(logits - m) - onehot) * kept),
        ("dlogits uses exp(logits) in place of p: subtract lse in the exponent.",
         lambda logits, onehot, kept, dout: dout * (np.exp(logits) - onehot) * kept),
        ("dlogits uses exp(lse - logits) in place of p: it is exp(logits - lse).",
         lambda logits, lse, onehot, kept, dout: dout * (np.exp(lse[..., None] - logits) - onehot) * kept),
        ("dlogits uses exp(logits) / lse in place of p: lse is the logarithm of the sum.",
         lambda logits, lse, onehot, kept, dout: dout * (np.exp(logits) / lse[..., None] - onehot) * kept),
        ("dlogits uses the sigmoid in place of the softmax.",
         lambda logits, onehot, kept, dout: dout * (1 / (1 + np.exp(-logits)) - onehot) * kept),
        ("dlogits uses the softmax over the rows instead of the vocabulary.",
         lambda logits, onehot, kept, dout: dout * (softmax(logits, -2) - onehot) * kept),
        ("dlogits goes through softmax's backward again: p - onehot is the gradient of the logits already.",
         lambda p, dlogits: p * (dlogits - total(p * dlogits))),
        ("dlogits is the gradient of the probabilities, -onehot / p: softmax's backward is missing.",
         lambda p, onehot, kept, dout: -dout * onehot / p * kept),
        ("dlogits is the target's only: all logits of the row enter its log-sum-exp.", lambda dlogits, onehot: dlogits * onehot),
        ("dlogits subtracts 1 at the likeliest token instead of the target.",
         lambda p, logits, V, kept, dout: dout * (p - ones_at(logits.argmax(-1), V)) * kept),
        ("dlogits subtracts 1 at the next row's target: targets are shifted already.",
         lambda p, targets, V, kept, dout: dout * (p - ones_at(np.roll(targets, -1, 1), V)) * kept),
        ("dlogits is twice what it should be, as of a squared error: cross-entropy has no factor 2.",
         lambda dlogits: 2 * dlogits),
        ("dlogits is multiplied by p: the 1/p of the logarithm cancels it.",
         lambda dlogits, p: dlogits * p),
        ("dlogits adds dout instead of multiplying by it.", lambda p, onehot, kept, dout: (p - onehot) * kept + dout),
    ],
}, independent=False)  # fmt: skip


TABLES = [SOFTMAX, CROSS_ENTROPY]
