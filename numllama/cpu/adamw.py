"""AdamW's step in place, with one temporary: memory is its limit. As m += (1 − β₁)·(g − m), v += (1 − β₂)·(g² − v)."""

from math import sqrt

import numpy as np

from numllama.cpu.rounding import write_rounded


def adamw_update(
    w: np.ndarray,
    g: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    copy: np.ndarray | None = None,
) -> None:
    beta1, beta2 = betas
    d = g - m                                                          # the only temporary
    d *= 1 - beta1
    m += d
    np.multiply(g, g, out=d)
    d -= v
    d *= 1 - beta2
    v += d
    np.sqrt(v, out=d)
    c = sqrt(1 - beta2**t)
    d += c * eps
    np.divide(m, d, out=d)
    d *= lr * c / (1 - beta1**t)                                       # lr · m̂ / (√v̂ + eps)
    w *= 1 - lr * weight_decay
    w -= d
    if copy is not None:
        write_rounded(w, copy)
