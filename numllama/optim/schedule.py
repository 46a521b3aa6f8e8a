"""The learning rate over a run: a linear warm-up, then half a cosine.                       Loshchilov & Hutter 2017, eq. 5"""

from math import cos, pi


def cosine_schedule(step: int, max_lr: float, min_lr: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of a step.

    Parameters
    ----------
    step : int
        The rate rises from 0 at step 0 to `max_lr` at `warmup_steps`, falls to `min_lr` at `total_steps`, and stays
        there. Trainers count steps from 1, so that none has a rate of zero.
    max_lr, min_lr : float
    warmup_steps, total_steps : int

    Returns
    -------
    float
    """
    if step < warmup_steps:
        return max_lr * step / warmup_steps
    if step >= total_steps:
        return min_lr
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + (max_lr - min_lr) * 0.5 * (1 + cos(pi * progress))
