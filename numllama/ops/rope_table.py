"""RoPE's table:  angle[t, j] = t · ω[j],   ω[j] = theta^(−2j/D)                          Su et al. 2021, eq. 34

A longer context than the one trained on needs slower turns: :mod:`numllama.ops.rope_scaling` changes ω.
"""

from collections.abc import Mapping

import numpy as np

from numllama.backend import Array, xp_of
from numllama.checks import checked
from numllama.ops.rope_scaling import attention_factor, scaled


@checked
def rope_table(
    positions: Array, D: int, theta: float, scaling: Mapping | None = None, dtype: str | np.dtype = "float32"
) -> tuple[Array, Array]:
    """Cosines and sines of the angles, for :func:`rope_forward`.

    Parameters
    ----------
    positions : integer array, shape (T,) or (B, T)
        Where the scaling depends on the length of the sequence, that is the largest position + 1.
    D : int
        Head size; even.
    theta : float
        Base of the frequencies: 10000 in Llama 2, 500000 in Llama 3.
    scaling : mapping, optional
        Scaling of the frequencies, by its ``rope_type``: ``llama3`` (the default), ``linear``, ``dynamic``, ``yarn`` or
        ``longrope``, with the keys of ``numllama.rope_types.ROPE_SCALING``, as in a config.json.
    dtype : dtype
        The tables' dtype, that of the vectors they turn. Angles are always computed in float64.

    Returns
    -------
    cos, sin : arrays, shape (T, D/2), or (B, 1, T, D/2) where each sequence has its own positions
        Multiplied by the attention factor of ``yarn`` and ``longrope``.
    """
    if D < 2 or D % 2:
        raise ValueError(f"D is {D}, but RoPE turns pairs of components and needs an even head size")
    xp, factor = xp_of(positions), attention_factor(scaling)
    frequencies = theta ** (-xp.arange(0, D, 2, dtype="float64") / D)  # (D/2,)
    frequencies = scaled(frequencies, positions, theta, scaling)
    angles = positions[..., None] * frequencies                        # (T, D/2) or (B, T, D/2)
    if angles.ndim == 3:
        angles = angles[:, None]                                       # (B, 1, T, D/2)
    return (factor * xp.cos(angles)).astype(dtype), (factor * xp.sin(angles)).astype(dtype)
