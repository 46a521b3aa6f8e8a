"""Launcher of AdamW's kernel."""

from math import sqrt

from numllama.backend import Array, real_dtype
from numllama.cuda import launch


def adamw_update(
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    copy: Array | None = None,
) -> None:
    real = real_dtype(w.dtype)
    if w.dtype != real or not launch.is_plain(w, g, m, v) or not (copy is None or launch.is_plain(copy)):
        return NotImplemented
    beta1, beta2 = betas
    widest = w.dtype if copy is None else copy.dtype
    numbers = (1 - beta1, 1 - beta2, sqrt(1 - beta2**t), eps, lr / (1 - beta1**t), 1 - lr * weight_decay)
    arrays, values = [w, g, m, v, copy], [real.type(number) for number in numbers]
    launch.elementwise("adamw", "adamw", arrays, values, width_of=widest, DTYPE=w.dtype, COPY=widest)
    return None
