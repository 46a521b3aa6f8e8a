"""The report of a step, and the history that it is compared with."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SPIKE_STEPS, SPIKE_LEAST, SPIKE_HEIGHT = 50, 20, 6.0  # steps that a loss is compared with; their fewest; standard deviations


@dataclass(frozen=True)
class StepReport:
    """Results of one step.

    Attributes
    ----------
    step : int
        From 1.
    loss : float
        Mean over the batch, in nats for each token, before the step.
    lr : float
    grad_norm : float
        Before clipping.
    tokens_per_second, ms_per_step : float
        Speed of this step, without evaluation.
    memory_mb : float
        Peak memory of the workers so far, evaluation included (GPU memory on a GPU).
    skipped : bool
        The loss or the gradient was not finite, so no step was taken.
    spike : float, optional
        Standard deviations between the loss and the mean of the steps before, if it is a spike: see :func:`spike`.
    val_loss : float, optional
        Estimate on the validation split, at the steps where there is one.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    ms_per_step: float
    memory_mb: float
    skipped: bool = False
    spike: float | None = None
    val_loss: float | None = None

    def to_dict(self) -> dict:
        """Plain values, without those that are not there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def spike(loss: float, before: Sequence[float]) -> float | None:
    """By how many standard deviations a loss lies above the mean of those before it, if that is a spike: more than six.

    A deviation counts as at least a hundredth of the mean, so that a loss that hardly moves has no spikes; with fewer than twenty
    losses there is no verdict.
    """
    n = len(before)
    if n < SPIKE_LEAST:
        return None
    mean = sum(before) / n
    deviation = max(math.sqrt(sum((x - mean) ** 2 for x in before) / n), abs(mean) / 100)
    height = (loss - mean) / deviation if deviation else 0.0
    return height if height > SPIKE_HEIGHT else None


class LossHistory:
    """The losses of recent steps, and the steps that were skipped because something was not finite.

    Attributes
    ----------
    skipped, in_a_row : int
        Number of skipped steps, in all and since the last good one.
    """

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=SPIKE_STEPS)
        self.skipped = self.in_a_row = 0

    def add(self, loss: float, finite: bool, forgiven: bool) -> float | None:
        """Take in a step; returns the height of its spike, if it is one. A `forgiven` step is no sign of trouble."""
        self.skipped += not finite
        if not forgiven:
            self.in_a_row = 0 if finite else self.in_a_row + 1
        if not finite:
            return None
        height = spike(loss, self._losses)
        self._losses.append(float(loss))
        return height

    def to_dict(self) -> dict[str, Any]:
        """The fields of a checkpoint's state."""
        return {"losses": list(self._losses), "skipped": self.skipped, "skipped_in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a checkpoint's state."""
        self._losses = deque(state.get("losses", ()), maxlen=SPIKE_STEPS)
        self.skipped, self.in_a_row = state["skipped"], state["skipped_in_a_row"]
