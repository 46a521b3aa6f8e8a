"""RMSNorm:  out = weight · x / rms(x),   rms(x) = sqrt(mean(x²) + eps)            Zhang & Sennrich 2019, eq. 4

Write r = 1 / rms(x), n = x·r and dn = dout·weight. Every component of x moves r:
    ∂r/∂x[j] = −r³ · x[j] / C        so    dx = r·dn − x·r³·Σ(dn·x) / C = r·(dn − x·r²·Σ(dn·x) / C)
    dweight  = Σ over rows of dout·n       = Σ over rows of r·dout·x
The gradient is orthogonal to x (up to eps): a norm cannot learn to change the length of its input.
"""

from numllama.backend import Array, row_dot, xp_of
from numllama.checks import check_shape
from numllama.dispatch import accelerated


@accelerated(by_rows=True)
def rmsnorm_forward(x: Array, weight: Array, eps: float) -> tuple[Array, tuple]:
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
    cache : tuple
        ``(x, weight, rstd)``; n is computed again in backward, for rstd is C times smaller.
    """
    check_shape("weight", weight, (x.shape[-1],))
    xp = xp_of(x)
    rstd = 1.0 / xp.sqrt(row_dot(x, x) / x.shape[-1] + eps)            # (..., 1)
    out = x * rstd                                                     # (..., C)
    out *= weight
    return out, (x, weight, rstd)


@accelerated(by_rows=True)
def rmsnorm_backward(dout: Array, cache: tuple) -> tuple[Array, Array]:
    """Gradients of :func:`rmsnorm_forward`: ``dx`` (..., C) and ``dweight`` (C,)."""
    x, weight, rstd = cache
    check_shape("dout", dout, x.shape)
    C = x.shape[-1]
    dx = dout * weight                                                 # (..., C): dn, so far
    dx -= x * (rstd**2 * row_dot(dx, x) / C)
    dx *= rstd
    dweight = rstd.reshape(-1) @ (dout * x).reshape(-1, C)             # (C,): a sum over rows
    return dx, dweight
