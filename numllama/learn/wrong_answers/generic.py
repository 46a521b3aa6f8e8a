"""Mistakes that any result may have: its sign, a factor, the order of results, a sum over rows that is missing."""

from collections.abc import Iterator

import numpy as np

from numllama.learn.wrong_answers.table import SIZES, Case, as_tuple, packed

Candidates = Iterator[tuple[str, np.ndarray]]
SCALARS = ("count", "cap", "scale")  # other numbers that a result may be multiplied by


def generic(case: Case, result: str) -> Candidates:
    """Sentences and wrong arrays, from simple to less simple."""
    right = case.results[result]
    yield f"{result} is all zeros: nothing was written into the array.", np.zeros_like(right)
    if result in case.table.outputs:
        yield from _outputs(case, result)
    else:
        yield from _taken(case, result)
        if case.table.independent and np.ndim(as_tuple(case.dout)[0]) > 1:
            yield from _rows(case, result)
        yield from _dout(case, result)
    if right.ndim == 2:
        yield f"{result} is transposed: (a.T @ b).T is b.T @ a.", right.T
        yield f"{result} is transposed and then reshaped until it fits: a reshape does not exchange axes.", _reshaped(right)


def _outputs(case: Case, result: str) -> Candidates:
    for name, array in case.arguments.items():
        if isinstance(array, np.ndarray):
            yield f"{result} is {name} itself: the op is not applied.", array
    for other in case.table.outputs:
        if other != result:
            order = ", ".join(case.table.outputs)
            yield f"{result} is {other}: forward returns {order}, in this order.", case.results[other]


def _taken(case: Case, result: str) -> Candidates:
    """Another array in place of the result, or added to it."""
    order = ", ".join(case.table.gradients)
    for other in case.table.gradients:
        if other != result:
            yield f"{result} has the numbers of {other}: backward returns {order}, in this order.", case.results[other]
    for name, dout in zip(dout_names(case), as_tuple(case.dout), strict=True):
        yield f"{result} is {name} itself: it is not multiplied by the derivative of {case.input_of(result)}.", np.asarray(dout)
    for name, array in {**case.arguments, **{each: case.results[each] for each in case.table.outputs}}.items():
        if isinstance(array, np.ndarray) and array.ndim:
            yield f"{result} is {name} itself, and no gradient.", array
    own = case.arguments[case.input_of(result)]
    name, right = case.input_of(result), case.results[result]
    yield f"{result} is added to {name}: start from zeros, not from {name} or a copy of it.", own + right
    yield f"{result} is {name} after a step of gradient descent: return the gradient alone.", own - right


def _rows(case: Case, result: str) -> Candidates:
    """Parts of the sum over rows."""
    right, parts = case.results[result], row_parts(case, result)
    lead = parts.ndim - right.ndim
    first, last = (0,) * lead, (-1,) * lead
    yield f"{result} has the part of the last row only: each row overwrites the one before instead of adding to it.", parts[last]
    yield f"{result} has the part of the first row only: add up those of all rows.", parts[first]
    inner = tuple(range(lead - 1))
    yield f"{result} has the part of dout[-1] only: add up all along the first axis.", parts[-1].sum(inner)
    yield f"{result} has the part of dout[0] only: add up all along the first axis.", parts[0].sum(inner)
    if lead == 2:
        yield f"{result} has the part of the last token of each sequence only.", parts[:, -1].sum(0)
        yield f"{result} has the part of the first token of each sequence only.", parts[:, 0].sum(0)
    if right.shape[:lead] == parts.shape[:lead]:
        return  # one gradient for each row: there is no sum
    shape = case.arguments[case.input_of(result)].shape
    yield f"{result} is not summed over the rows: it must have the shape {shape}.", parts
    yield f"{result} is not summed over the rows: it must have the shape {shape}.", parts.reshape(-1, *right.shape)
    if lead == 2:
        for axis, other in ((0, 1), (1, 0)):
            sentence = f"{result} is summed over axis {axis} only: sum over axis {other} too, or flatten the leading axes first."
            yield sentence, parts.sum(axis)
    yield f"{result} is summed over its own axes too: sum over the rows only, so that it has the shape {shape}.", right.sum()
    if right.ndim == 1:
        yield f"{result} is summed over the last axis instead of the rows: it must have the shape {shape}.", parts.sum(-1)
    yield f"{result} is right, but repeated for each row: it must have the shape {shape}.", np.broadcast_to(right, parts.shape)


def _dout(case: Case, result: str) -> Candidates:
    ones = packed([np.ones_like(dout) for dout in as_tuple(case.dout)])
    yield f"{result} ignores dout: it is the gradient for a dout of ones, and the chain rule multiplies by dout.", (
        case.backward(ones)[result]
    )
    right, dout = case.results[result], np.asarray(as_tuple(case.dout)[-1])
    if dout.shape == right.shape:
        yield f"{result} has the factor dout twice.", right * dout
    squares = packed([np.asarray(each) ** 2 for each in as_tuple(case.dout)])
    yield f"{result} has dout squared: each element of dout enters once.", case.backward(squares)[result]


def _reshaped(right: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(right.T).reshape(right.shape)


def row_parts(case: Case, result: str) -> np.ndarray:
    """What each row of dout adds to a gradient: shape (rows..., shape of the gradient). The backward is linear in dout."""
    douts, lead = as_tuple(case.dout), np.shape(as_tuple(case.dout)[0])[:-1]
    parts = np.zeros((*lead, *case.results[result].shape))
    for row in np.ndindex(*lead):
        only = [np.zeros_like(dout) for dout in douts]
        for masked, dout in zip(only, douts, strict=True):
            index = row if dout.shape[:-1] == lead else (int(np.ravel_multi_index(row, lead)),)
            masked[index] = dout[index]
        parts[row] = case.backward(packed(only))[result]
    return parts


def dout_names(case: Case) -> list[str]:
    """dout, or one name for each output."""
    several = len(case.table.outputs) > 1
    return [f"d{name}" if several else "dout" for name in case.table.outputs]


# ------------------------------------------------------------------------------------------------ factors


def factor_of(actual: np.ndarray, right: np.ndarray, tolerance: float) -> float | None:
    """The number that `right` is multiplied by in `actual`; None if there is none."""
    if actual.shape != right.shape or actual.size < 2 or not right.any():
        return None
    factor = float((actual * right).sum() / (right * right).sum())
    close = np.linalg.norm(actual - factor * right) <= tolerance * abs(factor) * np.linalg.norm(right)
    return factor if factor and close else None


def factor_sentence(case: Case, result: str, factor: float) -> str | None:
    """What a factor usually comes from."""
    if is_near(factor, -1):
        return f"{result} has the wrong sign everywhere."
    for inverse, value in ((False, factor), (True, 1 / factor)):
        names = sizes_of(case, result, value)
        if is_near(value, 2):
            size = f", or 2 is {names[0]}" if names else ""
            if inverse:
                return f"{result} is half of what it should be: two equal terms are averaged, a factor 2 is missing{size}."
            return f"{result} is twice what it should be: a term is added twice, a factor 1/2 is missing{size}."
        if names:
            return _size_sentence(result, names, round(value), inverse, _is_sum(case, result))
    return None


def factor_words(case: Case, factor: float) -> str:
    """A factor of a result that has another mistake too."""
    if is_near(factor, -1):
        return "its sign is wrong"
    for name in (*SIZES, *SCALARS):
        value = case.values.get(name)
        if isinstance(value, int | float) and value not in (0, 1):
            for word, power in (("multiplied", value), ("divided", 1 / value)):
                if is_near(factor, power):
                    return f"it is {word} by {value:.6g}, which is {name}"
    return f"it is multiplied by {factor:.6g}"


def sizes_of(case: Case, result: str, value: float) -> list[str]:
    """The sizes that have this value; those that count rows come first."""
    right = case.results[result]
    names = [f"{name}, {SIZES[name]}" for name, size in case.sizes.items() if size > 1 and is_near(value, size)]
    return names or ["the number of all elements"] * (right.ndim > 1 and is_near(value, right.size))


def _size_sentence(result: str, names: list[str], size: int, inverse: bool, is_sum: bool) -> str:
    if not inverse:
        return f"{result} is {size} times too large ({' or '.join(names)}): a division is missing, or a sum is repeated."
    if is_sum:
        return f"{result} is divided by {size} ({' or '.join(names)}): it is a sum, not a mean."
    return f"{result} is divided by {size} ({' or '.join(names)}): nothing divides here, for dout has the loss's mean in it."


def _is_sum(case: Case, result: str) -> bool:
    """Whether a gradient has no axis of rows, and so is a sum over them."""
    lead = np.shape(as_tuple(case.dout)[0])[:-1]
    return result not in case.table.outputs and case.results[result].shape[: len(lead)] != lead


def is_near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)
