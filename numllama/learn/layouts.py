"""The same numbers in another order: transposed weights, heads split or merged, axes exchanged, RoPE's other layout.

A layout is no fault. Axes are written as letters, from the right to the left of memory: "B h T D" is an array (B, h, T, D), and
"B T (hD)" the same values with the heads of a token next to each other.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from numllama.errors import DataError, shown
from numllama.learn.mistakes.mistake import short_name
from numllama.learn.reference import Reference
from numllama.model.config import ModelConfig

SPLIT, MERGED, SQUARE, PLAIN = "B h T D", "B T (hD)", "B h T S", "B T X"
OTHERS = {  # arrangements in which other implementations hold what stands here in the first one
    SPLIT: ("B T h D", "B T (hD)", "T h D", "T (hD)", "(Bh) T D", "(BT) h D", "(BT) (hD)"),
    MERGED: ("B T h D", "B h T D", "T h D", "h T D", "(BT) h D", "(Bh) T D", "(BT) (hD)"),
    SQUARE: ("(Bh) T S",),
    PLAIN: ("(BT) X",),
}
TURNED = ("q", "k", "q_heads", "k_heads", "q_norm", "k_norm", "q_rotated", "k_rotated", "k_repeated")
ARRANGED: dict[str, str] = {
    **dict.fromkeys((*TURNED[2:], "v_heads", "v_repeated", "head_outputs"), SPLIT),
    **dict.fromkeys(("q", "k", "v", "merged"), MERGED),
    **dict.fromkeys(("scores", "attention"), SQUARE),
}
OTHER_ROPE = "RoPE's other layout"


class Arranged(NamedTuple):
    """An array in the reference's layout, and what was done to it, in words; empty if nothing."""

    array: np.ndarray
    how: str = ""


def arrangements(theirs: np.ndarray, name: str, shape: tuple[int, ...], head_dim: int) -> Iterator[Arranged]:
    """The ways to read an array as one of the given shape; the most likely first.

    Parameters
    ----------
    theirs : array
    name : str
        The short name of the value: "q", "wq", "after_ffn".
    shape : tuple of int
    head_dim : int
    """
    if _without_ones(theirs.shape) == _without_ones(shape):
        yield Arranged(theirs.reshape(shape))
    if len(shape) == 2:
        if theirs.shape == shape[::-1]:
            yield Arranged(theirs.T, "transposed")
        return
    ours = ARRANGED.get(name, PLAIN)
    if len(shape) != len(_groups(ours)):                               # gains, losses, tables of RoPE
        return
    sizes = _sizes(ours, shape, head_dim)
    for other in OTHERS[ours]:
        moved = _moved(theirs, other, ours, sizes)
        if moved is not None:
            yield Arranged(moved.reshape(shape), f"axes {other} instead of {ours}")


def turned(array: np.ndarray, config: ModelConfig, axis: int) -> np.ndarray:
    """Components of each head in the order of this configuration's RoPE, from those of the other layout."""
    D = config.head_dim
    halves = np.r_[0:D:2, 1:D:2]                                       # from neighbours to halves
    order = halves if config.rope_layout == "half" else np.argsort(halves)
    split = array.reshape(*array.shape[:axis], array.shape[axis] // D, D, *array.shape[axis + 1 :])
    return split.take(order, axis + 1).reshape(array.shape)


def turned_axis(name: str, array: np.ndarray) -> int | None:
    """The axis on which components of queries and keys stand: rows of weights, the last axis of values."""
    kind, short = name.partition("/")[0], short_name(name)
    if kind in ("weights", "d_weights", "after"):
        return 0 if short in ("wq", "wk", "q_norm", "k_norm") else None
    return array.ndim - 1 if short in TURNED else None


def arranged_like(found: Mapping[str, np.ndarray], reference: Reference) -> dict[str, Arranged]:
    """The dump in the reference's layout. What single tensors leave open is decided by all of them together."""
    c, options = reference.config, {}
    ours = {name: reference.expected(name) for name in found}
    for name, array in found.items():
        fits = list(arrangements(array.astype(np.float64), short_name(name), ours[name].shape, c.head_dim))
        if not fits:
            raise DataError(f"{name} has shape {shown(array.shape)}, but must have {shown(ours[name].shape)}")
        options[name] = fits
    off = {name: [norm(reference.cleaned(name, each.array) - ours[name]) for each in fits] for name, fits in options.items()}
    chosen = {name: fits[_closest(off[name])] for name, fits in options.items()}
    for kind in ("d_weights", "after"):
        matrices = [name for name in found if ours[name].ndim == 2 and name.partition("/")[0] == kind]
        second = sum(_vote(options[name], off[name]) for name in matrices) > 0
        for name in matrices:                                          # as its weight is, or as most are
            weight = chosen.get(name.replace(kind, "weights"))
            other = weight.how != "" if weight and kind == "d_weights" else second
            chosen[name] = options[name][min(int(other), len(options[name]) - 1)]
    return chosen | _turned_like(chosen, ours, c)


def _turned_like(chosen: Mapping[str, Arranged], ours: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Arranged]:
    """Queries and keys, turned to this configuration's RoPE if the dump has the other one: in its weights, or in all its values.

    Values that change their layout on the way are no layout, but a fault.
    """
    pairs: dict[str, list[Arranged]] = {}
    votes: dict[str, int] = {}
    for name, each in chosen.items():
        axis = turned_axis(name, each.array)
        if axis is not None:
            how = f"{each.how}, {OTHER_ROPE}" if each.how else OTHER_ROPE
            pairs[name] = [each, Arranged(turned(each.array, config, axis), how)]
            group = "weights" if name.startswith("weights/") else f"{'after' if 'rotated' in name else 'before'} RoPE"
            votes[group] = votes.get(group, 0) + _vote(pairs[name], [norm(both.array - ours[name]) for both in pairs[name]])
    deciding = [votes["weights"]] if votes.get("weights") else votes.values()
    other = bool(votes) and all(count > 0 for count in deciding)
    return {name: both[other] for name, both in pairs.items()}


def _vote(fits: list[Arranged], errors: list[float]) -> int:
    """1 for the second of two arrangements, -1 for the first, 0 for neither: for the one that fits alone, or much better."""
    if len(fits) == 1:
        return 1 if fits[0].how else -1
    first, second = errors[:2]
    return (second < first / 2) - (first < second / 2)


def _closest(errors: list[float]) -> int:
    """The first arrangement, or another whose error is much smaller."""
    best = min(range(len(errors)), key=errors.__getitem__)
    return best if errors[best] < errors[0] / 2 else 0


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _sizes(spec: str, shape: tuple[int, ...], head_dim: int) -> dict[str, int]:
    """The size of each axis by its letter."""
    sizes = {}
    for group, size in zip(_groups(spec), shape, strict=True):
        sizes |= dict(zip(group, (size // head_dim, head_dim), strict=True)) if len(group) == 2 else {group: size}
    return sizes


def _moved(array: np.ndarray, theirs: str, ours: str, sizes: Mapping[str, int]) -> np.ndarray | None:
    """`array` with its axes in our order; None if it is not of that arrangement."""
    groups = _groups(theirs)
    if array.shape != tuple(math.prod(sizes[letter] for letter in group) for group in groups):
        return None
    letters, wanted = "".join(groups), "".join(_groups(ours))
    missing = [letter for letter in wanted if letter not in letters]   # a batch of one
    if any(sizes[letter] != 1 for letter in missing):
        return None
    letters = "".join(missing) + letters
    return array.reshape([sizes[letter] for letter in letters]).transpose([letters.index(letter) for letter in wanted])


def _groups(spec: str) -> list[str]:
    return [group.strip("()") for group in spec.split()]


def norm(array: Any) -> float:
    """The root of the sum of all squares."""
    with np.errstate(invalid="ignore"):
        return float(np.linalg.norm(np.asarray(array, np.float64).ravel()))


def difference(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """theirs - ours; 0 where both are the same infinity or both not a number, infinite where only one is."""
    with np.errstate(invalid="ignore"):
        plain = theirs - ours
    alike = (theirs == ours) | (np.isnan(theirs) & np.isnan(ours))
    return np.where(alike, 0, np.where(np.isfinite(plain), plain, math.inf))
