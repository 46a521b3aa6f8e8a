"""Wrong answers to a step of AdamW."""

import numpy as np

from numllama.learn.wrong_answers.table import Rows


def means(g, m, v, betas):
    """The running means after this step."""
    return betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g


def moved(w, g, m, v, t, lr, betas, eps, weight_decay, correct=(1, 1), decay=None, step=None):
    """The weights after the step, with something else in place of a part of it."""
    m, v = means(g, m, v, betas)
    m_hat, v_hat = (mean / (1 - beta**t) if is_corrected else mean
                    for mean, beta, is_corrected in zip((m, v), betas, correct, strict=True))  # fmt: skip
    return w - (lr * weight_decay * w if decay is None else decay) - lr * (step or quotient)(m_hat, v_hat, eps)


def quotient(m, v, eps):
    return m / (np.sqrt(v) + eps)


def with_l2(w, g, m, v, t, lr, betas, eps, weight_decay):
    """Adam with the decay in the gradient."""
    return moved(w, g + weight_decay * w, m, v, t, lr, betas, eps, 0)


def changed(**changes):
    """:func:`moved` as a row, with these parts changed; those that are functions are given the arguments."""
    def row(w, g, m, v, t, lr, betas, eps, weight_decay):
        arguments = dict(w=w, g=g, m=m, v=v, t=t, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        return moved(**arguments | {name: change(**arguments) if callable(change) and name != "step" else change
                                    for name, change in changes.items()})  # fmt: skip

    return row


ROWS: dict[str, Rows] = {
    "w": [
        ("w lacks both bias corrections: m and v start at zero, so divide by 1 - beta1**t and 1 - beta2**t.",
         changed(correct=(0, 0))),
        ("w corrects v but not m: m / (1 - beta1**t) is missing.", changed(correct=(0, 1))),
        ("w corrects m but not v: v / (1 - beta2**t) is missing.", changed(correct=(1, 0))),
        ("w counts the steps from 0 and adds 1 again: t is the number of this step, from 1.",
         changed(t=lambda t, **_: t + 1)),
        ("w has the correction of the step before: t is the number of this step, from 1.", changed(t=lambda t, **_: t - 1)),
        ("w has eps inside the root: it is added to sqrt(v_hat).", changed(step=lambda m, v, eps: m / np.sqrt(v + eps))),
        ("w lacks eps.", changed(eps=0.0)),
        ("w adds eps to a root that is not corrected: with the corrections outside, eps is multiplied by sqrt(1 - beta2**t) too.",
         lambda w, g, m, v, t, lr, betas, eps, weight_decay:
         moved(w, g, m, v, t, lr, betas, eps / np.sqrt(1 - betas[1] ** t), weight_decay)),
        ("w has no root: divide by sqrt(v_hat), not by v_hat.", changed(step=lambda m, v, eps: m / (v + eps))),
        ("w adds the weight decay to the gradient: in AdamW it is decoupled, and the moments do not see it.", with_l2),
        ("w lacks the weight decay.", changed(decay=0)),
        ("w has a weight decay without lr: it is lr * weight_decay * w.",
         changed(decay=lambda w, weight_decay, **_: weight_decay * w)),
        ("w adds the weight decay: it shrinks the weights.",
         changed(decay=lambda w, lr, weight_decay, **_: -lr * weight_decay * w)),
        ("w decays after the step: the decay is a share of the weights before it.",
         lambda w, g, m, v, t, lr, betas, eps, weight_decay:
         moved(w, g, m, v, t, lr, betas, eps, 0) * (1 - lr * weight_decay)),
        ("w is moved along the gradient: the step is subtracted.", changed(step=lambda m, v, eps: -quotient(m, v, eps))),
        ("w uses the gradient in place of its running mean.",
         lambda w, g, m, v, t, lr, betas, eps, weight_decay:
         w - lr * weight_decay * w - lr * quotient(g, means(g, m, v, betas)[1] / (1 - betas[1] ** t), eps)),
        ("w uses the moments from before this step: update m and v first.",
         lambda w, m, v, t, lr, betas, eps, weight_decay:
         w - lr * weight_decay * w - lr * quotient(m / (1 - betas[0] ** t), v / (1 - betas[1] ** t), eps)),
        ("w lacks lr in the step.",
         lambda w, g, m, v, t, lr, betas, eps, weight_decay:
         moved(w, g, m, v, t, 1.0, betas, eps, weight_decay, decay=lr * weight_decay * w)),
        ("w is the step itself: subtract it from w.",
         lambda w, g, m, v, t, lr, betas, eps, weight_decay: w - moved(w, g, m, v, t, lr, betas, eps, weight_decay)),
        ("w is unchanged.", lambda w: w),
    ],
    "m": [
        ("m lacks the factor 1 - beta1 of the gradient.", lambda g, m, betas: betas[0] * m + g),
        ("m exchanges beta1 and 1 - beta1: most of the old mean stays.", lambda g, m, betas: (1 - betas[0]) * m + betas[0] * g),
        ("m has beta2 in place of beta1: betas is (beta1, beta2).", lambda g, m, betas: betas[1] * m + (1 - betas[1]) * g),
        ("m is the corrected mean: return it as it is kept, for the next step starts from it.",
         lambda g, m, v, t, betas: means(g, m, v, betas)[0] / (1 - betas[0] ** t)),
        ("m has the weight decay in it: in AdamW the gradient stays as it is.",
         lambda w, g, m, v, betas, weight_decay: means(g + weight_decay * w, m, v, betas)[0]),
        ("m is the gradient: the old mean is missing.", lambda g: g),
        ("m is the old mean: the gradient is missing.", lambda m: m),
        ("m subtracts the gradient.", lambda g, m, betas: betas[0] * m - (1 - betas[0]) * g),
        ("m is v: return w, m, v, in this order.", lambda g, m, v, betas: means(g, m, v, betas)[1]),
    ],
    "v": [
        ("v is the mean of g: it is that of its square.", lambda g, v, betas: betas[1] * v + (1 - betas[1]) * g),
        ("v lacks the factor 1 - beta2 of the squared gradient.", lambda g, v, betas: betas[1] * v + g * g),
        ("v squares 1 - beta2 too.", lambda g, v, betas: betas[1] * v + ((1 - betas[1]) * g) ** 2),
        ("v exchanges beta2 and 1 - beta2: most of the old mean stays.",
         lambda g, v, betas: (1 - betas[1]) * v + betas[1] * g * g),
        ("v has beta1 in place of beta2: betas is (beta1, beta2).", lambda g, v, betas: betas[0] * v + (1 - betas[0]) * g * g),
        ("v is the corrected mean: return it as it is kept, for the next step starts from it.",
         lambda g, m, v, t, betas: means(g, m, v, betas)[1] / (1 - betas[1] ** t)),
        ("v has the weight decay in it: in AdamW the gradient stays as it is.",
         lambda w, g, m, v, betas, weight_decay: means(g + weight_decay * w, m, v, betas)[1]),
        ("v is the square of m: it is the mean of g squared, not the square of the mean.",
         lambda g, m, v, betas: means(g, m, v, betas)[0] ** 2),
        ("v has the square of m in place of that of g.",
         lambda g, m, v, betas: betas[1] * v + (1 - betas[1]) * means(g, m, v, betas)[0] ** 2),
        ("v is its own root: the root is taken for the step alone.", lambda g, m, v, betas: np.sqrt(means(g, m, v, betas)[1])),
        ("v is the old mean: the gradient is missing.", lambda v: v),
    ],
}  # fmt: skip
