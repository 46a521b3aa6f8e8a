"""Launchers of the kernels that add and normalise."""

from collections.abc import Sequence

import numpy as np

from numllama.backend import Array
from numllama.cuda import launch
from numllama.cuda.dropout import mask_values, supports_mask
from numllama.cuda.rmsnorm import backward, forward, rmsnorm_forward, supports_gradient, supports_rows
from numllama.ops.add_rmsnorm import AddRMSNormCache
from numllama.ops.dropout import DropoutCache
from numllama.ops.rmsnorm import RMSNormCache

NO_MASK = 0.0, (0, 0)


def add_rmsnorm_forward(
    x: Array | None, branch: Array, weight: Array, eps: float, p: float = 0.0, key: Sequence[int] | None = None
) -> tuple[tuple[Array, Array], AddRMSNormCache]:
    if x is None and key is None:
        result = rmsnorm_forward(branch, weight, eps)
        if result is NotImplemented:
            return NotImplemented
        out, norm_cache = result
        return (branch, out), AddRMSNormCache(norm_cache, None)
    rows = (branch,) if x is None else (branch, x)
    if any(row.shape != branch.shape for row in rows) or not supports_rows(weight, *rows) or not supports_mask(p):
        return NotImplemented
    total, out = launch.empty(branch, branch.shape, branch.dtype), launch.empty(branch, branch.shape, branch.dtype)
    rstd = launch.empty(branch, (*branch.shape[:-1], 1), weight.dtype)
    drops = key is not None
    values = [np.int32(drops), *mask_values(branch, *((p, key) if drops else NO_MASK))]
    forward("add_rmsnorm", (total, out, rstd, x, branch, weight), total, eps, values=values)
    dropped = DropoutCache(p, key, branch.shape) if drops else None
    return (total, out), AddRMSNormCache(RMSNormCache(total, weight, rstd), dropped)


def add_rmsnorm_backward(
    douts: tuple[Array | None, Array], cache: AddRMSNormCache, into: Array | None = None
) -> tuple[Array, Array, Array]:
    dtotal, dout = douts
    (total, weight, rstd), dropout_cache = cache
    rows = (total, dout) if dtotal is None else (total, dout, dtotal)
    if any(row.shape != total.shape for row in rows) or not supports_rows(weight, *rows) or not supports_gradient(weight, into):
        return NotImplemented
    dx, drops = launch.empty(total, total.shape, total.dtype), dropout_cache is not None
    dbranch = launch.empty(total, total.shape, total.dtype) if drops else None
    values = [np.int32(drops), *mask_values(total, *((dropout_cache.p, dropout_cache.key) if dropout_cache else NO_MASK))]
    dweight = backward("add_rmsnorm", (dx, dbranch), (dout, dtotal, total), weight, rstd, into, values=values)
    return dx, dbranch if drops else dx, dweight
