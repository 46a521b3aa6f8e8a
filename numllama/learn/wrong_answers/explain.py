"""Names the mistake behind a wrong result of an exercise."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numllama.learn.wrong_answers import (
    adamw,
    attention,
    block,
    bpe,
    experts,
    flash_attention,
    gates,
    kv_cache,
    norms,
    probabilities,
    products,
    residual,
    rotation,
    sampling,
)
from numllama.learn.wrong_answers.generic import factor_of, factor_sentence, factor_words, generic, is_near
from numllama.learn.wrong_answers.shapes import shape_sentence
from numllama.learn.wrong_answers.table import Case, Rows, Table, packed, parameters

CLOSE = 1e-6  # relative error up to which arrays count as equal; float32 passes
EXACT = 1e-9

MODULES = (products, probabilities, gates, norms, residual, rotation, experts, attention, flash_attention)
TABLES: dict[str, Table] = {table.op: table for module in MODULES for table in module.TABLES}
PLAIN_ROWS: dict[str, dict[str, Rows]] = {  # of the exercises that are no op: their rows compute with the arguments alone
    "block": block.ROWS, "adamw": adamw.ROWS, "sampling": sampling.ROWS, "bpe": bpe.ROWS, "kv_cache": kv_cache.ROWS,
}  # fmt: skip


def explain(op: str, result: str, actual: np.ndarray, args: list[Any], dout: Any = None) -> str | None:
    """Name the mistake that gives a student's numbers.

    Parameters
    ----------
    op : str
        An exercise.
    result : str
        ``"dx"``, ``"dweight"`` and so on, or an output: ``"out"``; add_rmsnorm has ``"total"`` and ``"out"``, mixture_of_experts
        ``"out"`` and ``"probs"``.
    actual : array
        What the student's function has returned.
    args : list
        The arguments of the forward.
    dout : array or tuple of arrays
        What the backward was given; needed for gradients only.

    Returns
    -------
    str or None
        One sentence; None if the result is right, or no mistake that is known gives these numbers.
    """
    if dout is None:
        rng = np.random.default_rng(0)  # any: an output does not depend on it
        outs = Case(TABLES[op], args, None).right.values()
        dout = packed([np.asarray(rng.standard_normal(np.shape(out))) for out in outs])
    return explain_in(Case(TABLES[op], args, dout), result, actual)


def explain_in(case: Case, result: str, actual: np.ndarray) -> str | None:
    """:func:`explain` in a case, which keeps what it has computed for the next result."""
    with np.errstate(all="ignore"):
        return _explained(case, result, np.asarray(actual, np.float64))


def _explained(case: Case, result: str, actual: np.ndarray) -> str | None:
    right = case.results[result]
    if is_same(actual, right, CLOSE) or not np.isfinite(actual).all():
        return None
    if np.linalg.norm(actual) <= EXACT * np.linalg.norm(right):
        actual = np.zeros_like(actual)  # rounding errors
    own, others = [], []
    for kind, candidates in ((own, case.wrong(result, actual)), (others, generic(case, result))):
        for sentence, wrong in candidates:
            if is_same(actual, wrong, EXACT):
                return sentence
            kind.append((sentence, wrong))
    for sentence, wrong in own + others:
        if is_same(actual, wrong, CLOSE):
            return sentence
    if actual.shape != right.shape:
        return shape_sentence(case, result, actual)
    whole = factor_of(actual, right, CLOSE)
    if whole is not None and (named := factor_sentence(case, result, whole)):
        return named
    for sentence, wrong in own:
        factor = factor_of(actual, wrong, CLOSE)
        if factor is not None and (whole is None or is_near(factor, -1)):  # any multiple of a multiple would do
            return f"{sentence.removesuffix('.')}; besides, {factor_words(case, factor)}."
    return None


def explain_calls(name: str, result: str, calls: Sequence[tuple[Mapping[str, Any], np.ndarray]]) -> str:
    """Name the mistake that gives the first of some arrays, and at least half of all.

    Parameters
    ----------
    name : str
        An exercise of PLAIN_ROWS.
    result : str
    calls : sequence of (dict, array)
        What rows compute with, by name, and what the student's function has returned for it.

    Returns
    -------
    str
        One sentence; empty if no mistake that is known gives the first array.
    """
    found = {}
    with np.errstate(all="ignore"):
        for sentence, function in PLAIN_ROWS[name].get(result, []):
            same = [is_alike(actual, np.asarray(function(**{each: values[each] for each in parameters(function)})))
                    for values, actual in calls]  # fmt: skip
            if same[0] and 2 * sum(same) >= len(same):
                found[sentence] = sum(same)
    return max(found, key=lambda sentence: found[sentence], default="")


def is_alike(actual: np.ndarray, wrong: np.ndarray) -> bool:
    """Whether two arrays agree, and have the same infinities and NaN in the same places."""
    actual, wrong = np.asarray(actual), np.asarray(wrong)
    if actual.shape != wrong.shape:
        return False
    finite = np.isfinite(actual) & np.isfinite(wrong)
    return np.array_equal(actual[~finite], wrong[~finite], equal_nan=True) and is_same(actual[finite], wrong[finite], CLOSE)


def is_same(actual: np.ndarray, wrong: np.ndarray, tolerance: float) -> bool:
    """Whether two arrays agree."""
    return actual.shape == wrong.shape and bool(np.linalg.norm(actual - wrong) <= tolerance * np.linalg.norm(wrong) < np.inf)
