"""What rounding in a dtype does to numbers."""

from typing import Any

import numpy as np

from numllama.learn.vectors import TOLERANCES

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
ALLOWED = TOLERANCES | {"float16": 1e-2}


def rounding(dtype: str) -> Any:
    """A function that changes each number by up to the roundoff of a dtype, at random."""
    rng, unit = np.random.default_rng(0), ROUNDOFF[dtype]

    def rounded(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            return value
        return value * (1 + unit * rng.choice((-1.0, 1.0), value.shape))

    return rounded
