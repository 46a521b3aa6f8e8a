"""RMSNorm:  out = weight · x / rms(x),   rms(x) = sqrt(mean(x²) + eps)            Zhang & Sennrich 2019, eq. 4

Write r = 1 / rms(x), n = x·r and dn = dout·weight. Every component of x moves r:
    ∂r/∂x[j] = −r³ · x[j] / C = −r² · n[j] / C        ∂n[i]/∂x[j] = r · (δᵢⱼ − n[i]·n[j] / C)
    dx      = r · (dn − n · mean(dn·n))
    dweight = Σ over rows of dout·n
The gradient is orthogonal to x (up to eps): a norm cannot learn to change the length of its input.
"""

from typing import NamedTuple

from numllama.backend import Array, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


class RMSNormCache(NamedTuple):
    """What backward needs; n is computed again, because rstd is C times smaller."""

    x: Array                                                           # (..., C)
    weight: Array                                                      # (C,)
    rstd: Array                                                        # (..., 1): 1 / rms(x)


@accelerated(by_rows=True)
def rmsnorm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, RMSNormCache]:
    """Scale each row to a root mean square of one, then by a learned gain.

    Parameters
    ----------
    x : array, shape (..., C)
    weight : array, shape (C,)
    eps : float
        Added inside the root; 1e-5 or 1e-6 as the checkpoint says.

    Returns
    -------
    out : array, shape (..., C)
    cache : RMSNormCache
    """
    check_shape("weight", weight, (x.shape[-1],))
    xp = xp_of(x)
    rstd = 1.0 / xp.sqrt((x * x).mean(-1, keepdims=True) + eps)        # (..., 1)
    return x * rstd * weight, RMSNormCache(x, weight, rstd)


@accelerated(by_rows=True)
def rmsnorm_backward(dout: Array, cache: RMSNormCache) -> tuple[Array, Array]:
    """Gradients of :func:`rmsnorm_forward`: ``dx`` (..., C) and ``dweight`` (C,)."""
    x, weight, rstd = cache
    check_shape("dout", dout, x.shape)
    n = x * rstd                                                       # (..., C)
    dweight = (dout * n).reshape(-1, x.shape[-1]).sum(0)               # (C,)
    dn = dout * weight                                                 # (..., C)
    dx = rstd * (dn - n * (dn * n).mean(-1, keepdims=True))            # (..., C)
    return dx, dweight
