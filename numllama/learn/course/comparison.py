"""How an array that a file has returned differs from the right one."""

import math
from typing import NamedTuple

import numpy as np

from numllama.errors import shown
from numllama.learn.course.symptoms import worst_index

RIGHT = 1e-9  # relative error up to which float64 results count as equal


class Element(NamedTuple):
    """An element that is wrong: the one that is furthest off."""

    index: tuple[int, ...]
    expected: float
    got: float


def compare(actual: np.ndarray | str, expected: np.ndarray) -> tuple[str, str, Element | None]:
    """The verdict on one array, how it differs from the expected one, and its worst element."""
    expected = np.asarray(expected)
    if isinstance(actual, str):
        return "wrong", f"it {actual}", None
    if actual.shape != expected.shape:
        swapped = actual.shape[::-1] == expected.shape and actual.ndim == 2
        message = f"its shape is {shown(actual.shape)}, but must be {expected.shape}"
        return "wrong", message + (": is it transposed?" if swapped else ""), None
    same = actual == expected  # an infinity that is right, too
    if expected.dtype.kind in "iu" and not same.all():  # token ids: how far they are off says nothing
        index = tuple(int(i) for i in np.argwhere(~same)[0])
        element = Element(index, float(expected[index]), float(actual[index]))
        return "wrong", f"{(~same).sum()} of {same.size} numbers differ", element
    finite = np.where(np.isfinite(expected), expected, 0.0).astype(np.float64)
    norm = float(np.linalg.norm(finite))
    strange = ~(np.isfinite(actual) & np.isfinite(expected) | same)
    off = np.where(same | strange, 0.0, np.where(strange, 0.0, actual.astype(np.float64)) - finite)
    error = float(np.linalg.norm(off)) / norm
    if error <= RIGHT and not strange.any():
        return "right", "", None
    index = worst_index(actual, expected)
    element = Element(index, float(expected[index]), float(actual[index]))
    if strange.any():
        n = int(strange.sum())
        kind = "finite, but must not be" if np.isfinite(actual[strange]).all() else "infinite or not a number"
        return "wrong", f"{n} of {actual.size} elements {'is' if n == 1 else 'are'} {kind}", element
    factor = float((np.where(same, finite, actual) * finite).sum()) / norm**2
    if factor != 0 and np.linalg.norm(off + finite - factor * finite) <= RIGHT * norm * abs(factor):
        return "wrong", "the sign" if math.isclose(factor, -1) else f"{factor:.6g} times what it should be", element
    if actual.dtype != np.float64 and error < 1e-5:
        return "wrong", f"it is rounded to {actual.dtype}, but the inputs are float64", element
    return "wrong", f"off by {error:.1%} of its norm" if error > 1e-3 else f"off by {error:.1e} of its norm", element
