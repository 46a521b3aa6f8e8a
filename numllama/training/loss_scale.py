"""The scale of gradients in float16."""

import numpy as np

LARGEST_SCALE, STEPS_TO_GROW = 2.0**16, 2000


class LossScale:
    """Factor of all gradients in backward, so that small ones survive in float16.           Micikevicius et al. 2018, section 3.2

    Halved when a gradient overflows, whose step is then skipped; doubled after 2000 steps without an overflow. 1 in other dtypes.

    Attributes
    ----------
    value : float
    adjusts : bool
        False in other dtypes.
    """

    def __init__(self, dtype: np.dtype) -> None:
        self.adjusts = bool(dtype == np.float16)
        self.value = LARGEST_SCALE if self.adjusts else 1.0
        self._steps_since_change = 0

    def update(self, finite: bool) -> bool:
        """Adjust the scale after a step; True if a lower one may help where this was too high."""
        self._steps_since_change += 1
        if not finite and self.value > 1:
            self.value, self._steps_since_change = self.value / 2, 0
            return True
        if self.value < LARGEST_SCALE and self._steps_since_change >= STEPS_TO_GROW:
            self.value, self._steps_since_change = 2 * self.value, 0
        return False

    @property
    def state(self) -> list[float]:
        """The scale and the number of steps since it changed, as a checkpoint holds them."""
        return [self.value, self._steps_since_change]

    def load(self, state: list[float]) -> None:
        """Take over a checkpoint's state."""
        self.value, self._steps_since_change = state[0], int(state[1])
