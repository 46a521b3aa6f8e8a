"""LayerNorm:  out = weight · (x − mean) / std + bias,   std = sqrt(var(x) + eps)      Ba, Kiros & Hinton 2016, eq. 4

Write r = 1 / std, n = (x − mean)·r and dn = dout·weight. Every component of x moves the mean and r:
    ∂n[i]/∂x[j] = r · (δᵢⱼ − 1/C − n[i]·n[j]/C)
    dx      = r · (dn − mean(dn) − n · mean(dn·n))
    dweight = Σ over rows of dout·n        dbias = Σ over rows of dout
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class LayerNormCache(NamedTuple):
    """What backward needs."""

    x: Array                                                           # (..., C)
    weight: Array                                                      # (C,)
    mean: Array                                                        # (..., 1)
    rstd: Array                                                        # (..., 1): 1 / std


@accelerated(by_rows=True)
def layernorm_forward(x: Array, weight: Array, bias: Array, eps: float) -> tuple[Array, LayerNormCache]:
    """Shift and scale each row to mean zero and variance one, then by a learned gain and bias.

    Parameters
    ----------
    x : array, shape (..., C)
    weight, bias : array, shape (C,)
    eps : float
        Added to the (biased) variance.

    Returns
    -------
    out : array, shape (..., C)
    cache : LayerNormCache
    """
    check_shape("weight", weight, (x.shape[-1],))
    check_shape("bias", bias, (x.shape[-1],))
    xp = xp_of(x)
    mean = x.mean(-1, keepdims=True)                                   # (..., 1)
    centred = x - mean                                                 # (..., C)
    rstd = 1.0 / xp.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return centred * rstd * weight + bias, LayerNormCache(x, weight, mean, rstd)


@accelerated(by_rows=True)
def layernorm_backward(dout: Array, cache: LayerNormCache) -> tuple[Array, Array, Array]:
    """Gradients of :func:`layernorm_forward`: ``dx`` (..., C), ``dweight`` and ``dbias`` (C,)."""
    x, weight, mean, rstd = cache
    check_shape("dout", dout, x.shape)
    C = x.shape[-1]
    n = (x - mean) * rstd                                              # (..., C)
    dweight = (dout * n).reshape(-1, C).sum(0)                         # (C,)
    dbias = dout.reshape(-1, C).sum(0)                                 # (C,)
    dn = dout * weight                                                 # (..., C)
    dx = rstd * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, dweight, dbias
