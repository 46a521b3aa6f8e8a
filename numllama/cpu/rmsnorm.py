"""RMSNorm with sums of products in one pass, and results written where their parts were."""

import numpy as np

from numllama.checks import check_shape
from numllama.ops.rmsnorm import RMSNormCache


def rmsnorm_forward(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, RMSNormCache]:
    check_shape("weight", weight, (x.shape[-1],))
    rstd = 1.0 / np.sqrt(row_dot(x, x) / x.shape[-1] + eps)            # (..., 1)
    out = x * rstd                                                     # (..., C)
    out *= weight
    return out, RMSNormCache(x, weight, rstd)


def rmsnorm_backward(dout: np.ndarray, cache: RMSNormCache) -> tuple[np.ndarray, np.ndarray]:
    x, weight, rstd = cache
    check_shape("dout", dout, x.shape)
    C = x.shape[-1]
    dx = dout * weight                                                 # (..., C): dn
    dx -= x * (rstd**2 * row_dot(dx, x) / C)                           # n · mean(dn · n) = x · rstd² · mean(dn · x)
    dx *= rstd
    dweight = rstd.reshape(-1) @ (dout * x).reshape(-1, C)             # (C,): the sum over rows is a product with a vector
    return dx, dweight


def row_dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ a·b over the last axis, which stays with length 1: one pass without an array of products."""
    return np.vecdot(a, b)[..., None]
