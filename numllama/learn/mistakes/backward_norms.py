"""Mistakes in the backward of RMSNorm.  The right one, with r = 1 / rms(x), n = x·r and dn = dout·weight:

    dx      = r · (dn − n · mean(dn·n))
    dweight = Σ over rows of dout·n
"""

import numpy as np

from numllama.learn.mistakes.mistake import Catalogue, DoesNotApply

catalogue = Catalogue()
backward = catalogue.backward


def mean(x):
    return x.mean(-1, keepdims=True)


def rstd(x, eps):
    return 1 / np.sqrt(mean(x * x) + eps)


def parts(dout, x, weight, eps):
    """r, n and dn."""
    r = rstd(x, eps)
    return r, x * r, dout * weight


def over_rows(rows):
    return rows.reshape(-1, rows.shape[-1]).sum(0)


# ------------------------------------------------------------------------------------------------ dx


@backward("rmsnorm", "The second term of dx is missing, as if rms(x) were a constant.")
def _(dout, x, weight, eps):
    r, _, dn = parts(dout, x, weight, eps)
    return {"x": r * dn}


@backward("rmsnorm", "The second term of dx is added instead of subtracted.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn + n * mean(dn * n))}


@backward("rmsnorm", "The second term of dx has the sum of dn·n instead of its mean.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * (dn * n).sum(-1, keepdims=True))}


@backward("rmsnorm", "The second term of dx has x instead of n twice: 1/rms² is missing in it.")
def _(dout, x, weight, eps):
    r, _, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - x * mean(dn * x))}


@backward("rmsnorm", "The second term of dx is not divided by rms, or has x instead of n once.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * mean(dn * x))}


@backward("rmsnorm", "The second term of dx has one 1/rms too many.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * r * mean(dn * n))}


@backward("rmsnorm", "The second term of dx lacks the gain: mean(dout·n) instead of mean(dn·n).")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * mean(dout * n))}


@backward("rmsnorm", "The second term of dx has the output, with its gain, instead of n.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * weight * mean(dn * n * weight))}


@backward("rmsnorm", "The second term of dx is a mean over tokens instead of components.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * (dn * n).mean(-2, keepdims=True))}


@backward("rmsnorm", "The second term of dx has one mean over all rows instead of a mean for each.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - n * (dn * n).mean())}


@backward("rmsnorm", "The second term of dx lacks the factor n.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - mean(dn * n))}


@backward("rmsnorm", "In dx, the gain multiplies the result instead of dout.")
def _(dout, x, weight, eps):
    r, n, _ = parts(dout, x, weight, eps)
    return {"x": r * weight * (dout - n * mean(dout * n))}


@backward("rmsnorm", "dx lacks the gain: dout instead of dn.")
def _(dout, x, weight, eps):
    r, n, _ = parts(dout, x, weight, eps)
    return {"x": r * (dout - n * mean(dout * n))}


@backward("rmsnorm", "dx is not divided by rms.")
def _(dout, x, weight, eps):
    _, n, dn = parts(dout, x, weight, eps)
    return {"x": dn - n * mean(dn * n)}


@backward("rmsnorm", "dx is divided by rms twice.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * r * (dn - n * mean(dn * n))}


@backward("rmsnorm", "dx is multiplied by rms instead of divided.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": (dn - n * mean(dn * n)) / r}


@backward("rmsnorm", "dx has the wrong sign.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (n * mean(dn * n) - dn)}


@backward("rmsnorm", "dx is LayerNorm's: the mean of dn is subtracted too.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * (dn - mean(dn) - n * mean(dn * n))}


@backward("rmsnorm", "dx is LayerNorm's: x is centered, and the mean of dn is subtracted.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x - mean(x), weight, eps)
    return {"x": r * (dn - mean(dn) - n * mean(dn * n))}


@backward("rmsnorm", "In dx, the root is missing: r is 1 / (mean(x²) + eps).")
def _(dout, x, weight, eps):
    r, n, dn = rstd(x, eps) ** 2, x * rstd(x, eps) ** 2, dout * weight
    return {"x": r * (dn - n * mean(dn * n))}


@backward("rmsnorm", "In dx, the norm is √Σx² instead of √mean(x²).")
def _(dout, x, weight, eps):
    r = 1 / np.sqrt((x * x).sum(-1, keepdims=True) + eps)
    n, dn = x * r, dout * weight
    return {"x": r * (dn - n * (dn * n).sum(-1, keepdims=True))}


@backward("rmsnorm", "The backward leaves out eps.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, 0.0)
    return r * (dn - n * mean(dn * n)), over_rows(dout * n)


@backward("rmsnorm", "In the backward, eps stands outside of the root.")
def _(dout, x, weight, eps):
    r = 1 / (np.sqrt(mean(x * x)) + eps)
    n, dn = x * r, dout * weight
    return r * (dn - n * mean(dn * n)), over_rows(dout * n)


@backward("rmsnorm", "In dx, the gain is 1 + weight, as in Gemma.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, 1 + weight, eps)
    return {"x": r * (dn - n * mean(dn * n))}


@backward("rmsnorm", "The norm is left out on the way back: dx is dout.")
def _(dout, x, weight, eps):
    return {"x": dout}


@backward("attn_norm", "The residual stream gets no gradient through attention's norm.")
def _(dout, x, weight, eps):
    return {"x": None}


@backward("ffn_norm", "The residual stream gets no gradient through the feed-forward's norm.")
def _(dout, x, weight, eps):
    return {"x": None}


@backward("norm q_norm k_norm", "The gradient stops at this norm.")
def _(dout, x, weight, eps):
    return {"x": None}


@backward("rmsnorm", "The gain multiplies dx twice: it is in dn, and multiplies the result again.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return {"x": r * weight * (dn - n * mean(dn * n))}


@backward("rmsnorm", "In dx, the gain is squared: dn has it twice.")
def _(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight**2, eps)
    return {"x": r * (dn - n * mean(dn * n))}


@backward("attn_norm", "The residual's gradient is added before the norm's backward instead of after it.")
def _(dout, x, weight, eps, d_after_attention):
    return {"x": right_dx(dout + d_after_attention, x, weight, eps) - d_after_attention}


@backward("ffn_norm", "The residual's gradient is added before the norm's backward instead of after it.")
def _(dout, x, weight, eps, d_after_ffn):
    return {"x": right_dx(dout + d_after_ffn, x, weight, eps) - d_after_ffn}


def right_dx(dout, x, weight, eps):
    r, n, dn = parts(dout, x, weight, eps)
    return r * (dn - n * mean(dn * n))


@backward("attn_norm", "The backward has the 1/rms of ffn_norm, which has overwritten that of this norm.")
def _(dout, x, weight, eps, after_attention):
    return with_rstd(rstd(after_attention, eps), dout, x, weight)


@backward("ffn_norm", "The backward has the 1/rms of attn_norm instead of this norm's.")
def _(dout, x, weight, eps, block_input):
    return with_rstd(rstd(block_input, eps), dout, x, weight)


@backward("attn_norm ffn_norm", "The backward has the 1/rms of the final norm, which has overwritten that of this norm.")
def _(dout, x, weight, eps, last):
    return with_rstd(rstd(last, eps), dout, x, weight)


def with_rstd(r, dout, x, weight):
    """Both gradients with another norm's 1/rms."""
    n, dn = x * r, dout * weight
    return r * (dn - n * mean(dn * n)), over_rows(dout * n)


# ------------------------------------------------------------------------------------------------ dweight


@backward("rmsnorm", "The gain's gradient has x instead of n.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x)}


@backward("rmsnorm", "The gain's gradient is multiplied by 1/rms twice.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x * rstd(x, eps) ** 2)}


@backward("rmsnorm", "The gain's gradient has dn instead of dout: the gain is in it.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * weight * x * rstd(x, eps))}


@backward("rmsnorm", "The gain's gradient is that of a bias: the sum of dout.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout)}


@backward("rmsnorm", "The gain's gradient is centered, as LayerNorm's: (x − mean) / std.")
def _(dout, x, weight, eps):
    centered = x - mean(x)
    return {"weight": over_rows(dout * centered * rstd(centered, eps))}


@backward("rmsnorm", "The gain's gradient is a mean over all rows instead of a sum.")
def _(dout, x, weight, eps):
    rows = dout * x * rstd(x, eps)
    return {"weight": rows.reshape(-1, rows.shape[-1]).mean(0)}


@backward("rmsnorm", "The gain's gradient is a mean over sequences instead of a sum.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x * rstd(x, eps)) / len(x)}


@backward("rmsnorm", "The gain's gradient is a mean over tokens and a sum over sequences.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x * rstd(x, eps)) / x.shape[-2]}


@backward("rmsnorm", "The gain's gradient is that of the last sequence only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[-1])}


@backward("rmsnorm", "The gain's gradient is that of the first sequence only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[0])}


@backward("attn_norm ffn_norm norm", "The gain's gradient is that of the first token of each sequence only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[..., 0, :])}


@backward("rmsnorm", "The gain's gradient is that of the last token of each sequence only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[..., -1, :])}


@backward("rmsnorm", "The gain's gradient is that of the last row only: each row overwrites it.")
def _(dout, x, weight, eps):
    return {"weight": (dout * x * rstd(x, eps)).reshape(-1, x.shape[-1])[-1]}


@backward("rmsnorm", "The gain's gradient is added twice.")
def _(dout, x, weight, eps):
    return {"weight": 2 * over_rows(dout * x * rstd(x, eps))}


@backward("rmsnorm", "The gain gets no gradient.")
def _(dout, x, weight, eps):
    return {"weight": None}


@backward("q_norm k_norm", "The gain's gradient is a mean over heads instead of a sum.")
def _(dout, x, weight, eps):
    return {"weight": over_rows(dout * x * rstd(x, eps)) / several_heads(x)}


@backward("q_norm k_norm", "The gain's gradient is that of the last head only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[:, several_heads(x) - 1])}


@backward("q_norm k_norm", "The gain's gradient is that of the first head only.")
def _(dout, x, weight, eps):
    return {"weight": over_rows((dout * x * rstd(x, eps))[:, several_heads(x) * 0])}


def several_heads(x):
    if x.shape[1] == 1:
        raise DoesNotApply
    return x.shape[1]
