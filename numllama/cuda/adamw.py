"""Launchers of AdamW's kernel."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

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
) -> Any:
    if not supports(w, g, m, v, copy):
        return NotImplemented
    numbers = map(w.dtype.type, step_numbers(t, lr, betas, weight_decay))
    _launch(w, g, m, v, copy, w.size, betas, eps, [*numbers, None, None])
    return None


def supports(w: Array, g: Array, m: Array, v: Array, copy: Array | None) -> bool:
    """Whether the kernel can update these."""
    return w.dtype == real_dtype(w.dtype) and launch.is_plain(w, g, m, v) and (copy is None or launch.is_plain(copy))


def step_numbers(t: int, lr: float, betas: tuple[float, float], weight_decay: float) -> tuple[float, float, float]:
    """Numbers that change each step: bias correction of √v, learning rate with that of m, factor of weight decay."""
    return 1 / sqrt(1 - betas[1] ** t), lr / (1 - betas[0] ** t), 1 - lr * weight_decay


def adamw_update_by(
    numbers: Array,
    factor: Array,
    matrices: int,
    w: Array,
    g: Array,
    m: Array,
    v: Array,
    copy: Array | None,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """One step of all parameters, with numbers from the device; the first `matrices` have a copy and decay.

    `numbers` are those of :func:`step_numbers` and the decay factor of the rest; `factor` scales gradients (0: no step).
    """
    _launch(w, g, m, v, copy, matrices, betas, eps, [*map(w.dtype.type, (0, 0, 0)), numbers, factor])


def _launch(
    w: Array, g: Array, m: Array, v: Array, copy: Array | None, matrices: int, betas: tuple, eps: float, values: Sequence
) -> None:
    widest = w.dtype if copy is None else copy.dtype
    constants = map(w.dtype.type, (1 - betas[0], 1 - betas[1], eps))
    defines = {"DTYPE": w.dtype, "COPY": widest}
    launch.elementwise(
        "adamw", "adamw", [w, g, m, v, copy], [launch.int64(matrices), *constants, *values], width_of=widest, **defines
    )
