"""What a wrong shape says about a result whose numbers are not known."""

import numpy as np

from numllama.learn.wrong_answers.table import Case, as_tuple


def shape_sentence(case: Case, result: str, actual: np.ndarray) -> str | None:
    """A sentence on a result of the wrong shape."""
    right = case.results[result]
    shape, needed = actual.shape, right.shape
    as_needed = f"{needed}" if result in case.table.outputs else f"{needed}, that of {case.input_of(result)}"
    if actual.size == right.size and np.allclose(actual.ravel(), right.ravel(), rtol=1e-6, atol=1e-12):
        return f"{result} has the right numbers in the shape {shape}: reshape it to {as_needed}."
    if right.ndim == 0:
        return f"{result} has the shape {shape}, but is one number: sum over all rows that count and divide by count."
    if actual.ndim == 0 or actual.size == 1:
        return f"{result} is a single number, but must have the shape {as_needed}: a sum runs over too many axes."
    if actual.ndim == 2 and shape == needed[::-1]:
        return f"{result} has the shape {shape}, the transpose of {as_needed}: exchange the factors of the product."
    if actual.size == right.size:
        return f"{result} has the shape {shape}, but must have {as_needed}: reshape it at the end, and see that axes do not mix."
    if needed and shape[-len(needed) :] == needed and len(shape) == len(needed) + 1:
        return f"{result} has the shape {shape}: sum over its first axis too, which leaves {as_needed}."
    if result not in case.table.outputs:
        lead = np.shape(as_tuple(case.dout)[0])[:-1]
        if lead and shape[: len(lead)] == lead and needed[: len(lead)] != lead:
            return f"{result} has one gradient for each row, shape {shape}: sum over the rows, which leaves {as_needed}."
        for other in case.table.gradients:
            if other != result and shape == case.results[other].shape:
                order = ", ".join(case.table.gradients)
                return f"{result} has the shape of {case.input_of(other)}: backward returns {order}, in this order."
    if shape in (needed[:-1], (*needed[:-1], 1)):
        return f"{result} has one number for each row, shape {shape}: its last axis is gone, but it must have {as_needed}."
    return None
