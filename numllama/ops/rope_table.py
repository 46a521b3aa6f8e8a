"""RoPE's table:  angle[t, j] = t · theta^(−2j/D)                                          Su et al. 2021, eq. 34

A longer context than the one trained on needs slower turns: position interpolation divides every frequency by a factor
(Chen et al. 2023), Llama 3.1 only the slow ones (Dubey et al. 2024).
"""

import math
from collections.abc import Mapping

import numpy as np

from numllama.backend import Array, xp_of
from numllama.checks import checked


@checked
def rope_table(
    positions: Array, D: int, theta: float, scaling: Mapping | None = None, dtype: str | np.dtype = "float32"
) -> tuple[Array, Array]:
    """Cosines and sines of the angles, for :func:`rope_forward`.

    Parameters
    ----------
    positions : integer array, shape (T,) or (B, T)
    D : int
        Head size; even.
    theta : float
        Base of the frequencies: 10000 in Llama 2, 500000 in Llama 3.
    scaling : mapping, optional
        Scaling of the frequencies, by its ``rope_type``: ``llama3`` (the default) with the keys ``factor``,
        ``low_freq_factor``, ``high_freq_factor`` and ``original_max_position_embeddings``; or ``linear`` with ``factor``.
    dtype : dtype
        The tables' dtype, that of the vectors they turn. Angles are always computed in float64.

    Returns
    -------
    cos, sin : arrays, shape (T, D/2), or (B, 1, T, D/2) where each sequence has its own positions
    """
    if D < 2 or D % 2:
        raise ValueError(f"D is {D}, but RoPE turns pairs of components and needs an even head size")
    xp = xp_of(positions)
    frequencies = theta ** (-xp.arange(0, D, 2, dtype="float64") / D)  # (D/2,)
    if scaling is not None:
        linear = scaling.get("rope_type") == "linear"                  # position interpolation: Chen et al. 2023
        frequencies = frequencies / scaling["factor"] if linear else _llama3_scaling(frequencies, scaling)
    angles = positions[..., None] * frequencies                        # (T, D/2) or (B, T, D/2)
    if angles.ndim == 3:
        angles = angles[:, None]                                       # (B, 1, T, D/2)
    return xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)


def _llama3_scaling(frequencies: Array, scaling: Mapping) -> Array:
    """Llama 3.1: divide by `factor` the frequencies that make few turns within the original context; blend in between."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)    # (D/2,)
    kept = ((turns - low) / (high - low)).clip(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])
