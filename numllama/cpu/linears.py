"""Several maps of one input, which is converted once for all of them."""

import numpy as np

from numllama.cpu.linear import linear_forward
from numllama.cpu.products import as_operand
from numllama.ops import linears
from numllama.ops.linear import LinearCache


def linears_forward(
    x: np.ndarray, weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...] | None = None
) -> tuple[tuple[np.ndarray, ...], tuple[LinearCache, ...]]:
    if x.dtype != np.float32:
        return linears.linears_forward.reference(x, weights, biases)
    x = as_operand(x, weights[0])
    results = [linear_forward(x, weight, biases[m] if biases else None) for m, weight in enumerate(weights)]
    return tuple(out for out, _ in results), tuple(cache for _, cache in results)
